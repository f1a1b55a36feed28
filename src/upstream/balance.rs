//! Which of an upstream's origins gets a request.

use super::Outgoing;
use super::pool::Pool;
use super::settings::Balance;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Chooses among origins.
#[derive(Debug)]
pub(super) struct Chooser {
    balance: Balance,
    turn: AtomicUsize,
}

impl Chooser {
    pub(super) fn new(balance: Balance) -> Self {
        Self { balance, turn: AtomicUsize::new(0) }
    }

    /// The origin for a request: one that is fit and is not the one that has just failed it. Where there is none such, an
    /// unfit one is better than none: the last origin is never given up.
    pub(super) fn choose(&self, pools: &[Arc<Pool>], outgoing: &Outgoing, failed: Option<usize>) -> usize {
        if pools.len() == 1 {
            return 0;
        }
        let is_other = |index: usize| Some(index) != failed;
        self.among(pools, outgoing, |index| is_other(index) && pools[index].health().is_fit())
            .or_else(|| self.among(pools, outgoing, |index| pools[index].health().is_fit()))
            .or_else(|| self.among(pools, outgoing, is_other))
            .unwrap_or(0)
    }

    fn among(&self, pools: &[Arc<Pool>], outgoing: &Outgoing, may: impl Fn(usize) -> bool) -> Option<usize> {
        let count = pools.len();
        let from =
            |start: usize| (0..count).map(|step| start.wrapping_add(step) % count).find(|index| may(*index));
        match self.balance {
            Balance::RoundRobin => from(self.turn.fetch_add(1, Ordering::Relaxed)),
            Balance::LeastRequests => {
                let one = from(fastrand::usize(..count))?;
                let other = from(fastrand::usize(..count))?;
                Some(if pools[one].busy() <= pools[other].busy() { one } else { other })
            }
            Balance::ConsistentHash => {
                (0..count).filter(|index| may(*index)).max_by_key(|index| score(outgoing.affinity, *index))
            }
        }
    }
}

/// Highest random weight: each origin scores the key, the highest wins; a lost origin moves only its own keys.
fn score(affinity: u64, index: usize) -> u64 {
    let mixed =
        (affinity ^ (index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed ^ (mixed >> 29)
}
