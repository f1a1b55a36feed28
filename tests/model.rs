//! The concurrent core under a model checker, with large casts.
//!
//! The very files of `body`, `flight` and `store::stamps` are compiled here over the locks of shuttle, which runs a
//! scenario again and again and decides at each lock who goes on: at random, and then with few but well placed changes of
//! who goes on. `tests/exhaustive.rs` plays the same scenarios with two or three actors in every order there is. A scenario
//! in which somebody waits for ever fails as a deadlock. The names of the tests are the properties.
#![allow(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests may fail as tests do")]
#![allow(missing_docs, unreachable_pub, reason = "nothing leaves a test")]

#[path = "../src/body/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the library is what uses all of it")]
mod body;
#[path = "../src/flight/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the library is what uses all of it")]
mod flight;
#[path = "../src/store/stamps.rs"]
#[allow(dead_code, unused_imports, reason = "the library is what uses all of it")]
mod stamps;

#[path = "model/bodies.rs"]
mod bodies;
#[path = "model/flights.rs"]
mod flights;
#[path = "model/lines.rs"]
mod lines;
#[path = "model/stage.rs"]
mod stage;

/// What the modules share state with, over the model checker.
mod sync {
    use shuttle::sync::atomic::AtomicBool;
    pub(crate) use shuttle::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    use shuttle::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

    /// So small that gathering happens within a few bytes.
    pub(crate) const BLOCK_BYTES: usize = 4;

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct RwLock<T>(shuttle::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap()
        }

        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap()
        }
    }

    /// The standard library's, where the checker sees who looks before it is set and who after.
    #[derive(Debug)]
    pub(crate) struct OnceLock<T> {
        is_set: AtomicBool,
        value: std::sync::OnceLock<T>,
    }

    impl<T> OnceLock<T> {
        pub(crate) fn new() -> Self {
            Self { is_set: AtomicBool::new(false), value: std::sync::OnceLock::new() }
        }

        pub(crate) fn get(&self) -> Option<&T> {
            if self.is_set.load(Ordering::Acquire) { self.value.get() } else { None }
        }

        pub(crate) fn set(&self, value: T) -> Result<(), T> {
            let result = self.value.set(value);
            self.is_set.store(true, Ordering::Release);
            result
        }
    }
}

/// All that the stamps know of policy.
mod policy {
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub(crate) struct Key(pub(crate) u64);
}

/// Who decides who goes on.
mod checker {
    use crate::stage::Cast;
    pub use shuttle::future::block_on;
    pub use shuttle::thread::{JoinHandle, spawn};

    const SCHEDULES: usize = 1_500;

    /// Pieces of a body that a script may have, at most.
    pub const PIECES: usize = 9;

    /// Plays the scenario with its whole cast.
    pub fn explore(roles: usize, _at_once: usize, scenario: impl Fn(Cast) + Send + Sync + Clone + 'static) {
        let scenario = move || scenario(Cast::whole(roles));
        shuttle::check_random(scenario.clone(), SCHEDULES);
        shuttle::check_pct(scenario, SCHEDULES, 3);
    }
}
