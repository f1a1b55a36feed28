//! Which of an upstream's origins gets a request.

use super::Outgoing;
use super::members::Member;
use super::settings::Balance;
use std::hash::Hasher;
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
    pub(super) fn choose<'a>(
        &self,
        members: &'a [Arc<Member>],
        outgoing: &Outgoing,
        failed: Option<&Arc<Member>>,
    ) -> &'a Arc<Member> {
        if let [only] = members {
            return only;
        }
        let is_other = |index: usize| failed.is_none_or(|failed| !Arc::ptr_eq(failed, &members[index]));
        let is_fit = |index: usize| members[index].pool().health().is_fit();
        let chosen = self
            .among(members, outgoing, |index| is_other(index) && is_fit(index))
            .or_else(|| self.among(members, outgoing, is_fit))
            .or_else(|| self.among(members, outgoing, is_other));
        &members[chosen.unwrap_or(0)]
    }

    fn among(
        &self,
        members: &[Arc<Member>],
        outgoing: &Outgoing,
        may: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let count = members.len();
        let from =
            |start: usize| (0..count).map(|step| start.wrapping_add(step) % count).find(|index| may(*index));
        match self.balance {
            Balance::RoundRobin => from(self.turn.fetch_add(1, Ordering::Relaxed)),
            Balance::LeastRequests => {
                let one = from(fastrand::usize(..count))?;
                let other = from(fastrand::usize(..count))?;
                let is_less = members[one].pool().busy() <= members[other].pool().busy();
                Some(if is_less { one } else { other })
            }
            Balance::ConsistentHash => {
                let score = |index: &usize| score(outgoing.affinity, members[*index].identity());
                (0..count).filter(|index| may(*index)).max_by_key(score)
            }
        }
    }
}

/// Highest random weight: each origin scores the key, the highest wins; a lost origin moves only its own keys.
fn score(affinity: u64, identity: u64) -> u64 {
    let mut hasher = siphasher::sip::SipHasher13::new_with_keys(affinity, identity);
    hasher.write_u64(0);
    hasher.finish()
}
