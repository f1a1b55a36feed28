//! Who acts in a scenario, whichever model checker plays it.

use crate::checker::{JoinHandle, spawn};
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

/// Which of a scenario's roles, numbered from 0, are played beside what the scenario does itself.
#[derive(Clone, Copy)]
pub struct Cast(u32);

#[allow(dead_code, reason = "each checker chooses its casts in its own way")]
impl Cast {
    pub fn whole(roles: usize) -> Self {
        Self((1 << roles) - 1)
    }

    /// Every choice of so many roles.
    pub fn all_of(roles: usize, at_once: usize) -> impl Iterator<Item = Self> {
        let count = at_once.min(roles);
        (0..1_u32 << roles).filter(move |cast| cast.count_ones() as usize == count).map(Self)
    }

    /// Plays a role in a thread of its own, if it is cast.
    pub fn plays(self, role: usize, act: impl FnOnce() + Send + 'static) -> Option<JoinHandle<()>> {
        (self.0 >> role & 1 == 1).then(|| spawn(act))
    }
}

impl fmt::Display for Cast {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:b}", self.0)
    }
}

pub fn join_all(threads: impl IntoIterator<Item = Option<JoinHandle<()>>>) {
    // All of them begin before the first is waited for.
    for thread in threads.into_iter().flatten().collect::<Vec<_>>() {
        thread.join().unwrap();
    }
}

/// Asks a future once, as a task does that is then dropped.
pub fn ask_once(future: impl Future) {
    let _ = pin!(future).poll(&mut Context::from_waker(Waker::noop()));
}
