//! What is remembered of a key beside its stored responses: that its answers cannot be shared, or that its fetches fail.

use super::failure::{Failed, Failure};
use super::table::{Change, Table};
use crate::policy::Key;
use crate::store::stamps::Stamps;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What is remembered of keys, bounded in number.
#[derive(Debug)]
pub(super) struct Notes {
    by_key: Table<Note>,
    /// By URI, under which keys responses were stored to requests with a body.
    questions: Table<Questions>,
    /// By which it is known whether a failure is older than a purge.
    stamps: Arc<Stamps>,
}

/// How often a note is renewed within its time, at most.
const RENEWALS: u32 = 10;

#[derive(Debug, Clone)]
enum Note {
    /// Its answers could not be shared: until then nobody waits for anybody (hit-for-miss).
    Uncacheable { until: SystemTime },
    /// Its fetches fail: for a while new arrivals get the last failure (back-off).
    Failing(Arc<Failing>),
}

#[derive(Debug)]
struct Failing {
    until: SystemTime,
    pause: Duration,
    /// Until then another failure is one more of the same: the pause grows, and whoever fetches for itself goes as a probe.
    recent_until: SystemTime,
    /// Until when a probe is waited for. A plain lock, because it is held for a comparison; never across an await.
    probed_until: Mutex<Option<SystemTime>>,
    last: Failed,
    /// Until when its answers are known to be for one client each, should there be any again.
    uncacheable_until: Option<SystemTime>,
}

/// The keys of one URI's requests with a body.
#[derive(Debug, Clone)]
enum Questions {
    Known(Arc<[Key]>),
    TooMany,
}

/// More keys of one URI are not remembered one by one.
const QUESTIONS_MAX: usize = 256;

/// What a key's note says to a request that would fetch.
#[derive(Debug)]
pub(super) enum Advice {
    /// Nothing: join or begin a flight. A back-off may be over, so that the fetch is a probe.
    Coalesce(Option<Due>),
    /// Fetch alone; the same.
    GoAlone(Option<Due>),
    /// Do not fetch: this is what the last fetch came to.
    GiveUp(Failure),
}

impl Advice {
    /// The same for one that heeds it: where it goes by itself, it is the one to go, or else gives up.
    pub(super) fn heeded(self, now: SystemTime) -> Self {
        match self {
            Self::GoAlone(Some(due)) => match due.claim(now) {
                Ok(()) => Self::GoAlone(None),
                Err(failure) => Self::GiveUp(failure),
            },
            Self::GoAlone(None) | Self::Coalesce(_) | Self::GiveUp(_) => self,
        }
    }
}

/// A back-off that is over, and no fetch has been answered since, as far as is known.
#[derive(Debug)]
pub(super) struct Due(Arc<Failing>);

impl Due {
    /// Takes the place of the probe, for as long as the last pause was: by then it is answered, or another may try. `Err`: there is
    /// one, and until it is answered this is what the last fetch came to.
    pub(super) fn claim(&self, now: SystemTime) -> Result<(), Failure> {
        let Self(failing) = self;
        let mut probed_until = failing.probed_until.lock();
        if probed_until.is_some_and(|until| now < until) {
            return Err(failing.last.failure.clone());
        }
        *probed_until = Some(now + failing.pause);
        Ok(())
    }

    /// Whether there is a probe already.
    pub(super) fn is_claimed(&self, now: SystemTime) -> bool {
        self.0.probed_until.lock().is_some_and(|until| now < until)
    }
}

impl Notes {
    pub(super) fn new(notes_max: u64, stamps: &Arc<Stamps>) -> Self {
        Self { by_key: Table::new(notes_max), questions: Table::new(notes_max), stamps: Arc::clone(stamps) }
    }

    /// Notes that a response to a request with a body was stored.
    pub(super) fn asked(&self, uri: Key, key: Key) {
        self.questions.change(uri, |before| match before {
            None => Change::Put(Questions::Known([key].into())),
            Some(Questions::Known(keys)) if keys.contains(&key) => Change::None,
            Some(Questions::Known(keys)) if keys.len() < QUESTIONS_MAX => {
                Change::Put(Questions::Known(keys.iter().copied().chain([key]).collect()))
            }
            Some(Questions::Known(_)) => Change::Put(Questions::TooMany),
            Some(Questions::TooMany) => Change::None,
        });
    }

    /// The keys of a URI's requests with a body whose responses were stored; `None`: there are too many to tell.
    pub(super) fn questions(&self, uri: &Key) -> Option<Arc<[Key]>> {
        match self.questions.get(uri) {
            None => Some(Arc::default()),
            Some(Questions::Known(keys)) => Some(keys),
            Some(Questions::TooMany) => None,
        }
    }

    /// Forgets them: nothing is stored for the URI any more.
    pub(super) fn forget_questions(&self, uri: &Key) {
        self.questions.remove(uri);
    }

    /// What to do about a fetch for the key.
    pub(super) fn advice(&self, key: &Key, now: SystemTime) -> Advice {
        match self.by_key.get(key) {
            Some(Note::Failing(failing)) if self.is_in_force(&failing, now) => {
                Advice::GiveUp(failing.last.failure.clone())
            }
            // After a failure one asks, even where each will have an answer of its own: were it to fail again, so would all.
            Some(Note::Failing(failing)) if self.is_recent(&failing, now) => {
                Advice::Coalesce(Some(Due(failing)))
            }
            Some(Note::Uncacheable { until }) if now < until => Advice::GoAlone(None),
            Some(Note::Failing(_) | Note::Uncacheable { .. }) | None => Advice::Coalesce(None),
        }
    }

    /// An answer could not be shared. What was noted a short while ago, for as long, is not noted again: it would be the same
    /// for each of many answers, and to write costs more than to look.
    pub(super) fn uncacheable(&self, key: Key, now: SystemTime, ttl: Duration) {
        let is_noted =
            |note| matches!(note, Note::Uncacheable { until } if until > now + ttl - ttl / RENEWALS);
        if !ttl.is_zero() && !self.by_key.get(&key).is_some_and(is_noted) {
            self.by_key.put(key, Note::Uncacheable { until: now + ttl });
        }
    }

    /// A fetch failed. The pause before the next doubles with each failure, from the shorter to the longer limit, and is
    /// shortened at random by up to a third, so that keys that failed together do not come back together.
    ///
    /// What failed before a purge says nothing of what comes after it, and what fails beside another that is noted already
    /// says the same once more.
    pub(super) fn failed(&self, key: Key, now: SystemTime, limits: (Duration, Duration), failed: Failed) {
        let (shortest, longest) = limits;
        if shortest.is_zero() || self.is_from_before_purge(&failed) {
            return;
        }
        self.by_key.change(key, |before| {
            let uncacheable_until = before.and_then(Note::uncacheable_until);
            let pause = match before {
                Some(Note::Failing(before)) if self.is_in_force(before, now) => return Change::None,
                Some(Note::Failing(before)) if self.is_recent(before, now) => {
                    (before.pause * 2).min(longest.max(shortest))
                }
                Some(_) | None => shortest,
            };
            let until = now + pause.mul_f64(1.0 - fastrand::f64() / 3.0);
            let last = Failed { failure: failed.failure.remembered(), ..failed };
            Change::Put(Note::Failing(Arc::new(Failing {
                until,
                pause,
                recent_until: until + longest,
                probed_until: Mutex::new(None),
                last,
                uncacheable_until,
            })))
        });
    }

    /// Whether the last fetch for the key failed, a short while ago, and that still says something.
    pub(super) fn has_failed(&self, key: &Key, now: SystemTime) -> bool {
        matches!(self.by_key.get(key), Some(Note::Failing(failing)) if self.is_recent(&failing, now))
    }

    /// Whether a fetch that failed was begun before a purge of what it asked for: then it says nothing of what comes after.
    pub(super) fn is_from_before_purge(&self, failed: &Failed) -> bool {
        self.stamps.may_be_outdated(&failed.scopes, failed.tick)
    }

    /// A fetch for the key brought an answer that says nothing of others: at least it is answered again.
    pub(super) fn recovered(&self, key: &Key) {
        if let Some(Note::Failing(failing)) = self.by_key.get(key) {
            match failing.uncacheable_until {
                Some(until) => self.by_key.put(*key, Note::Uncacheable { until }),
                None => self.by_key.remove(key),
            }
        }
    }

    /// A fetch for the key came to something that can be shared: whatever was remembered is over.
    pub(super) fn forget(&self, key: &Key) {
        if self.by_key.has(key) {
            self.by_key.remove(key);
        }
    }

    /// Whether the last answers under the key were for one client each, whatever has come of it since.
    pub(super) fn is_uncacheable(&self, key: &Key, now: SystemTime) -> bool {
        let note = self.by_key.get(key);
        note.and_then(|note| note.uncacheable_until()).is_some_and(|until| now < until)
    }

    /// The note in words, for explanations.
    pub(super) fn describe(&self, key: &Key, now: SystemTime) -> Option<(&'static str, Duration)> {
        let (word, until) = match self.by_key.get(key)? {
            Note::Failing(failing) if self.is_in_force(&failing, now) => ("back-off", failing.until),
            note => ("hit-for-miss", note.uncacheable_until()?),
        };
        Some((word, until.duration_since(now).ok().filter(|left| !left.is_zero())?))
    }

    /// Whether it is too early to try again. A purge ends that: whoever purges wants to see what there is now.
    fn is_in_force(&self, failing: &Failing, now: SystemTime) -> bool {
        now < failing.until && !self.is_outdated(failing)
    }

    fn is_recent(&self, failing: &Failing, now: SystemTime) -> bool {
        now < failing.recent_until && !self.is_outdated(failing)
    }

    fn is_outdated(&self, failing: &Failing) -> bool {
        self.stamps.may_be_outdated(&failing.last.scopes, failing.last.tick)
    }
}

impl Note {
    fn uncacheable_until(&self) -> Option<SystemTime> {
        match self {
            Self::Uncacheable { until } => Some(*until),
            Self::Failing(failing) => failing.uncacheable_until,
        }
    }
}
