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
use shuttle::sync as primitives;

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
