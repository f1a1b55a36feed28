//! Whose fetches fail because of who they are.
//!
//! An error that answers a request with cookies may be due to just these. Then it is no matter of others; but where the upstream
//! fails everybody, and everybody has cookies, it is. One such error is therefore a *suspicion*: it is held to be of
//! that client's alone until somebody else's fetch for the key fails as well, unless others have been answered well in
//! between. While it stands, requests that tell who they are and those that do not meet in fetches of their own,
//! so that nobody whose cookies make fetches fail stands before those who have none.

use super::table::{Change, Table};
use crate::policy::Key;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// The suspicions there are, by key, bounded in number.
#[derive(Debug)]
pub(super) struct Suspicions {
    by_key: Table<Suspicion>,
    /// Until when any may stand, in microseconds of Unix time: as long as there are none, nothing is looked up.
    stand_until: AtomicU64,
}

/// That fetches for a key fail because of whose they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Suspicion {
    /// Whose failed last.
    whose: Key,
    until: SystemTime,
    /// When somebody else was answered well.
    answered: Option<SystemTime>,
}

/// Of whom a failure tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    /// Of the one alone whose request it was, as long as nothing speaks against it.
    One,
    /// Of all: two in a row have failed for different clients.
    All,
}

/// A suspicion stands for at least twice this time, also where back-offs are shorter, or switched off.
const SHORTEST: Duration = Duration::from_secs(1);

impl Suspicions {
    pub(super) fn new(notes_max: u64) -> Self {
        Self { by_key: Table::new(notes_max), stand_until: AtomicU64::new(0) }
    }

    /// A fetch for the key failed that was sent for this client. Others who were answered well no longer ago than the longest
    /// back-off speak for its being the only one.
    pub(super) fn failed(&self, key: Key, whose: Key, now: SystemTime, longest: Duration) -> Blame {
        let memory = longest.max(SHORTEST);
        let until = now + memory * 2;
        let mut blame = Blame::One;
        self.by_key.change(key, |before| {
            let before = before.filter(|before| now < before.until);
            let answered = before.and_then(|before| before.answered);
            let speaks_for_it = answered.is_some_and(|answered| now < answered + memory);
            if before.is_some_and(|before| before.whose != whose) && !speaks_for_it {
                blame = Blame::All;
            }
            Change::Put(Suspicion { whose, until, answered })
        });
        self.stand_until.fetch_max(micros(until), Ordering::Relaxed);
        blame
    }

    /// A fetch for the key was answered well that was sent for this client, or for one who does not tell who it is.
    pub(super) fn answered(&self, key: Key, whose: Option<Key>, now: SystemTime) {
        if self.may_stand(now) {
            self.by_key.change(key, |before| match before.filter(|before| now < before.until) {
                None => Change::None,
                Some(before) if whose == Some(before.whose) => Change::Remove,
                Some(before) => Change::Put(Suspicion { answered: Some(now), ..*before }),
            });
        }
    }

    /// Whether there is a suspicion about the key.
    pub(super) fn stands(&self, key: &Key, now: SystemTime) -> bool {
        self.may_stand(now) && self.by_key.get(key).is_some_and(|suspicion| now < suspicion.until)
    }

    /// Whether there may be a suspicion about any key: else there is nothing to look up.
    pub(super) fn may_stand(&self, now: SystemTime) -> bool {
        micros(now) < self.stand_until.load(Ordering::Relaxed)
    }
}

fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Keyer;

    const LONGEST: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000 + seconds)
    }

    fn key(name: &str) -> Key {
        Keyer::with_seed(1, 2).word("key", name)
    }

    #[test]
    fn the_failures_of_one_are_its_own_and_those_of_another_are_everyone_s() {
        let suspicions = Suspicions::new(10);
        let failed = |whose, seconds| suspicions.failed(key("k"), key(whose), at(seconds), LONGEST);
        assert!(!suspicions.stands(&key("k"), at(0)) && !suspicions.may_stand(at(0)));
        assert_eq!(failed("a", 0), Blame::One);
        assert!(suspicions.stands(&key("k"), at(19)) && !suspicions.stands(&key("other"), at(19)));
        assert_eq!(failed("a", 19), Blame::One);
        assert_eq!(failed("b", 38), Blame::All);
        assert_eq!(failed("a", 57), Blame::All);
        assert_eq!(failed("b", 77), Blame::One, "it was too long ago");
        assert!(!suspicions.stands(&key("k"), at(97)) && !suspicions.may_stand(at(97)));
    }

    #[test]
    fn who_was_answered_well_speaks_for_a_while_against_everyone_s_failing() {
        let suspicions = Suspicions::new(10);
        let failed = |whose, seconds| suspicions.failed(key("k"), key(whose), at(seconds), LONGEST);
        suspicions.answered(key("k"), None, at(0));
        assert_eq!(failed("a", 1), Blame::One);
        suspicions.answered(key("k"), None, at(2));
        assert_eq!((failed("b", 11), failed("c", 11)), (Blame::One, Blame::One));
        assert_eq!(failed("d", 12), Blame::All);
        suspicions.answered(key("k"), Some(key("x")), at(13));
        assert_eq!(failed("e", 14), Blame::One);
        suspicions.answered(key("k"), Some(key("e")), at(15));
        assert!(!suspicions.stands(&key("k"), at(15)), "it was answered itself");
    }
}
