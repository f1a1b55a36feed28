//! The concurrent core under a model checker, in every order there is.
//!
//! The very files of `body`, `flight` and `store::stamps` are compiled here over the primitives of loom, which plays each
//! scenario with two or three actors in every order that makes a difference, and lets every atomic read return whatever
//! the memory model permits it to. There is no bound: a scenario ends when nothing is left to try. `tests/model.rs` plays
//! the same scenarios with larger casts, at random.
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

#[path = "model/arrivals.rs"]
mod arrivals;
#[path = "model/bodies.rs"]
mod bodies;
#[path = "model/flights.rs"]
mod flights;
#[path = "model/lines.rs"]
mod lines;
#[path = "model/stage.rs"]
mod stage;
#[path = "model/sync.rs"]
mod sync;

/// The checker's own, on which [`sync`] stands.
use loom::sync as primitives;

/// All that the stamps know of policy.
mod policy {
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub(crate) struct Key(pub(crate) u64);
}

/// Who decides who goes on.
mod checker {
    use crate::stage::Cast;
    use loom::sync::{Condvar, Mutex};
    pub use loom::thread::{JoinHandle, spawn};
    use std::future::Future;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::task::{Context, Poll, Wake, Waker};

    /// Pieces of a body that a script may have, at most.
    pub const PIECES: usize = 1;

    /// Plays the scenario with every choice of so many of its roles.
    pub fn explore(roles: usize, at_once: usize, scenario: impl Fn(Cast) + Send + Sync + Clone + 'static) {
        for cast in Cast::all_of(roles, at_once) {
            let mut every_order = loom::model::Builder::new();
            // The environment may not bound what is tried, or this would prove nothing.
            every_order.preemption_bound = None;
            every_order.max_permutations = None;
            every_order.max_duration = None;
            every_order.max_branches = 100_000;
            let played = Arc::new(AtomicU64::new(0));
            let (scenario, counted) = (scenario.clone(), Arc::clone(&played));
            every_order.check(move || {
                counted.fetch_add(1, Ordering::Relaxed);
                scenario(cast);
            });
            println!("{cast}: {} orders", played.load(Ordering::Relaxed));
        }
    }

    /// Waits for the future as a task does: it is asked again when its waker was called, and never without.
    pub fn block_on<F: Future>(future: F) -> F::Output {
        let alarm = Arc::new(Alarm::default());
        let waker = Waker::from(Arc::clone(&alarm));
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return output;
            }
            let mut has_rung = alarm.has_rung.lock().unwrap();
            while !*has_rung {
                has_rung = alarm.rings.wait(has_rung).unwrap();
            }
            *has_rung = false;
        }
    }

    #[derive(Default)]
    struct Alarm {
        has_rung: Mutex<bool>,
        rings: Condvar,
    }

    impl Wake for Alarm {
        fn wake(self: Arc<Self>) {
            *self.has_rung.lock().unwrap() = true;
            self.rings.notify_one();
        }
    }
}
