//! Stored responses, on moka, bounded by bytes, with invalidation stamps.
//!
//! Under one key lie the *variants* of a resource (RFC 9111 §4.1), newest first. A response is stored when its head
//! arrives, with a body that may still be filling, and weighed again when the body is whole. moka decides only what
//! leaves when memory is short; whether a response may be *used* is for [`crate::policy`] and the
//! [`stamps`] to say.

mod common;
mod fields;
mod settings;
pub mod stamps;
mod stored;
mod weight;

pub use fields::Line;
pub use settings::Settings;
pub use stored::{Draft, Stored};

use crate::body::Body;
use crate::policy::{Key, KeyHashing};
use common::Common;
use moka::Expiry;
use moka::notification::RemovalCause;
use moka::ops::compute::Op;
use moka::sync::Cache;
use stamps::{Stamps, Standing};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use weight::KEY_BYTES;

/// After so many rounds of moka's housekeeping, nothing is left of what was taken out.
const HOUSEKEEPING_ROUNDS: usize = 8;

/// As soon as this part of what it may hold has come, what has to leave for it leaves, and its memory is given back. moka counts
/// entries before it does that, whatever they weigh.
const UNSETTLED_PARTS: u64 = 16;

/// In a store of more keys, not each is looked at to count the responses.
const LOOKED_AT_MAX: u64 = 10_000;

/// Why a response left the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// Memory was short.
    Size,
    /// It could be of no more use.
    Expired,
}

/// When the store does its housekeeping: what leaves because memory is short, or because it can be of no more use, leaves then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Housekeeping {
    /// A little later, for many steps together, by the clock of the machine.
    Later,
    /// With each step, and because of memory alone: where time is simulated, the clock of the machine must not matter.
    AtOnce,
}

/// The stored responses.
#[derive(Debug)]
pub struct Store {
    cache: Cache<Key, Variants, KeyHashing>,
    housekeeping: Housekeeping,
    stamps: Arc<Stamps>,
    common: Common,
    variants_max: usize,
    /// Bytes that came since memory was last given back.
    unsettled: AtomicU64,
    unsettled_max: u64,
}

/// The stored responses under one key, newest first: a cheap handle.
#[derive(Debug, Clone)]
pub struct Variants {
    responses: Responses,
    useful_seconds: u32,
}

#[derive(Debug, Clone)]
enum Responses {
    /// Most keys have one response, which then needs no list.
    One(Stored),
    Several(Arc<Vec<Stored>>),
}

impl Variants {
    /// The stored responses, newest first.
    pub fn responses(&self) -> &[Stored] {
        match &self.responses {
            Responses::One(stored) => std::slice::from_ref(stored),
            Responses::Several(responses) => responses,
        }
    }

    /// The response in this place.
    pub fn take(self, place: usize) -> Option<Stored> {
        match self.responses {
            Responses::One(stored) => Some(stored).filter(|_| place == 0),
            Responses::Several(responses) => responses.get(place).cloned(),
        }
    }

    fn of(mut responses: Vec<Stored>, now: SystemTime) -> Self {
        let useful_for =
            responses.iter().map(|stored| stored.metadata().useful_until(now)).max().unwrap_or_default();
        let responses = match responses.pop() {
            Some(only) if responses.is_empty() => Responses::One(only),
            last => {
                responses.extend(last);
                Responses::Several(Arc::new(responses))
            }
        };
        let seconds = useful_for.as_secs() + u64::from(useful_for.subsec_nanos() > 0);
        let useful_seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
        Self { responses, useful_seconds }
    }

    fn weight(&self) -> u64 {
        KEY_BYTES + self.responses().iter().map(Stored::weight).sum::<u64>()
    }
}

impl Store {
    /// An empty store. `departed` is told of every response that the store gives up by itself; it must be quick.
    pub fn new(
        settings: &Settings,
        housekeeping: Housekeeping,
        departed: impl Fn(Departure) + Send + Sync + 'static,
    ) -> Self {
        let cache = Cache::builder()
            .max_capacity(settings.bytes_max)
            .weigher(|_, variants: &Variants| u32::try_from(variants.weight()).unwrap_or(u32::MAX))
            .expire_after(UsefulFor { housekeeping })
            .eviction_listener(move |_, _, cause| match cause {
                RemovalCause::Size => departed(Departure::Size),
                RemovalCause::Expired => departed(Departure::Expired),
                RemovalCause::Explicit | RemovalCause::Replaced => {}
            })
            .build_with_hasher(KeyHashing::default());
        Self {
            cache,
            housekeeping,
            stamps: Arc::new(Stamps::new(settings.stamps_max)),
            common: Common::default(),
            variants_max: settings.variants_max,
            unsettled: AtomicU64::new(0),
            unsettled_max: settings.bytes_max / UNSETTLED_PARTS,
        }
    }

    /// The invalidation stamps.
    pub fn stamps(&self) -> &Arc<Stamps> {
        &self.stamps
    }

    /// The stored responses under the key that no stamp has made void.
    pub fn lookup(&self, key: Key, now: SystemTime) -> Option<Variants> {
        let variants = self.cache.get(&key)?;
        let latest = self.stamps.latest();
        if self.confirm(&variants, latest) { Some(variants) } else { self.check(key, latest, now) }
    }

    /// What the stamps say of a response, whether it is stored or not.
    pub fn standing(&self, stored: &Stored) -> Standing {
        self.stamps.judge(&stored.scopes(), stored.tick())
    }

    /// What lies under the key, newest first, with what the stamps say of it: what a soft line has outdated is stale, what
    /// is void is there too. Takes nothing out and remembers nothing: for explanations.
    pub fn look(&self, key: Key) -> Vec<(Standing, Stored)> {
        let variants = self.cache.get(&key);
        let responses = variants.as_ref().map(Variants::responses).unwrap_or_default();
        let judged = |stored: &Stored| match self.standing(stored) {
            Standing::StaleSince(at) => (Standing::StaleSince(at), stored.outdated(at)),
            standing @ (Standing::Valid | Standing::Void) => (standing, stored.clone()),
        };
        responses.iter().map(judged).collect()
    }

    /// Stores a response under the key, in place of the variants that it supersedes. A response whose fetch began
    /// before that of the variant it would replace is not stored: it is the older truth. Nor is one whose body was
    /// withdrawn. Returns whether it was stored.
    pub fn put(&self, key: Key, new: &Stored, now: SystemTime) -> bool {
        self.put_and_show(key, new, now, |_| ())
    }

    /// The same as [`put`](Self::put); `show` gets the response for the same requests that it finds in its place.
    pub fn put_and_show(&self, key: Key, new: &Stored, now: SystemTime, show: impl FnOnce(&Stored)) -> bool {
        let mut stored = false;
        self.cache.entry(key).and_compute_with(|entry| {
            let old = entry.map(moka::Entry::into_value);
            let old = old.as_ref().map(Variants::responses).unwrap_or_default();
            old.iter().find(|old| new.is_same_variant(old)).map(show);
            if old.iter().any(|old| old.tick() > new.tick() && new.supersedes(old)) {
                return Op::Nop;
            }
            let shelved = new.shelved(&self.common);
            if shelved.body().is_withdrawn() {
                return Op::Nop;
            }
            stored = true;
            let kept =
                old.iter().filter(|old| !new.supersedes(old)).take(self.variants_max.max(1) - 1).cloned();
            Op::Put(Variants::of(std::iter::once(shelved).chain(kept).collect(), now))
        });
        self.keep_house();
        stored
    }

    /// Weighs what is stored under the key again, because a body has been finished, and lets go of what writing it took.
    pub fn weigh_again(&self, key: Key, now: SystemTime) {
        let mut weight = 0;
        self.cache.entry(key).and_compute_with(|entry| match entry {
            Some(entry) => {
                let variants = entry.value();
                let responses = variants.responses().iter().map(Stored::shelved_again).collect();
                let variants = Variants::of(responses, now);
                weight = variants.weight();
                Op::Put(variants)
            }
            None => Op::Nop,
        });
        self.keep_house();
        if self.unsettled.fetch_add(weight, Ordering::Relaxed) + weight > self.unsettled_max {
            self.unsettled.store(0, Ordering::Relaxed);
            self.let_go();
        }
    }

    /// Takes out the stored responses that have this body, because it is broken or not to be kept.
    pub fn remove(&self, key: Key, body: &Body, now: SystemTime) {
        self.cache.entry(key).and_compute_with(|entry| {
            let Some(variants) = entry.map(moka::Entry::into_value) else { return Op::Nop };
            let (gone, left): (Vec<Stored>, Vec<Stored>) =
                variants.responses().iter().cloned().partition(|stored| stored.body().is_same(body));
            match (gone.is_empty(), left.is_empty()) {
                (true, _) => Op::Nop,
                (false, true) => Op::Remove,
                (false, false) => Op::Put(Variants::of(left, now)),
            }
        });
        self.keep_house();
    }

    /// Whether a response with this body is stored under the key, and no stamp has made it void.
    pub fn holds(&self, key: Key, body: &Body, now: SystemTime) -> bool {
        self.lookup(key, now)
            .is_some_and(|variants| variants.responses().iter().any(|stored| stored.body().is_same(body)))
    }

    /// Stored keys; the variants of one URI count once.
    pub fn entry_count(&self) -> u64 {
        self.cache.entry_count()
    }

    /// How many responses are stored that may still be of use. In a store of many keys nobody looks at each: there each key counts
    /// once, and it is not known where void ones may not have been taken out yet.
    pub fn count(&self, now: SystemTime) -> Option<u64> {
        self.settle();
        let latest = self.stamps.latest();
        if self.entry_count() > LOOKED_AT_MAX {
            let is_swept = latest == 0 || self.stamps.is_forgotten(latest);
            return is_swept.then(|| self.entry_count());
        }
        Some(self.cache.iter().map(|(_, variants)| self.count_useful(&variants, latest, now)).sum())
    }

    /// The same of what is stored under one key.
    pub fn count_of(&self, key: Key, now: SystemTime) -> u64 {
        let variants = self.cache.get(&key);
        variants.map_or(0, |variants| self.count_useful(&variants, self.stamps.latest(), now))
    }

    /// How many of these no stamp has made void, and can be used fresh, stale, or to be validated.
    fn count_useful(&self, variants: &Variants, latest: u64, now: SystemTime) -> u64 {
        let useful_for = |stored: &Stored| match self.judge(stored, latest) {
            Standing::Valid => stored.metadata().useful_until(now),
            Standing::StaleSince(at) => stored.metadata().clone().expired(at).useful_until(now),
            Standing::Void => Duration::ZERO,
        };
        variants.responses().iter().filter(|stored| !useful_for(stored).is_zero()).count() as u64
    }

    /// Bytes held by stored responses, as the store weighs them.
    pub fn bytes(&self) -> u64 {
        self.cache.weighted_size()
    }

    /// Something has changed.
    fn keep_house(&self) {
        match self.housekeeping {
            Housekeeping::Later => {}
            Housekeeping::AtOnce => self.settle(),
        }
    }

    /// Does the store's housekeeping now. It happens by itself, a little later, without this.
    pub fn settle(&self) {
        self.cache.run_pending_tasks();
    }

    /// Gives back the memory of what has left since the last time; takes out what stamps have made void, a step for each key, and
    /// then forgets the stamps that this has proved to be without effect. `pause` is awaited between batches, so that a large store does not hold a thread up.
    pub async fn sweep(&self, now: SystemTime, pause: impl AsyncFn()) {
        let latest = self.stamps.latest();
        if self.stamps.is_forgotten(latest) {
            return self.let_go();
        }
        // What began before the horizon has ended; what is stamped after `latest` is not looked for in this sweep.
        let horizon = self.stamps.horizon().min(latest + 1);
        for (step, (key, _)) in self.cache.iter().enumerate() {
            // Not the value that was seen here: another may have been stored in its place, checked less far.
            self.check(*key, latest, now);
            if step % 256 == 255 {
                pause().await;
            }
        }
        self.let_go();
        self.stamps.forget_before(horizon);
    }

    /// Gives back the memory of a store that a stamp has made void as a whole.
    pub fn clear(&self) {
        self.cache.invalidate_all();
        self.let_go();
    }

    /// Gives back the memory of what was taken out. Values are let go of only after the housekeeping has come round several times,
    /// which in a store that nobody uses would be late.
    fn let_go(&self) {
        for _ in 0..HOUSEKEEPING_ROUNDS {
            self.cache.run_pending_tasks();
        }
    }

    /// Whether no stamp up to `latest` is against any of them; if so, that is noted for the next time.
    fn confirm(&self, variants: &Variants, latest: u64) -> bool {
        variants.responses().iter().all(|stored| self.judge(stored, latest) == Standing::Valid)
    }

    /// What the stamps up to `latest` say of it; that there is none against it is noted for the next time.
    fn judge(&self, stored: &Stored, latest: u64) -> Standing {
        if stored.checked() >= latest {
            return Standing::Valid;
        }
        let standing = self.stamps.judge_stored(&stored.scopes(), stored.tick(), stored.checked());
        if standing == Standing::Valid {
            stored.note_checked(latest);
        }
        standing
    }

    /// Holds what is stored under the key against the stamps up to `latest`, and amends it. A step that no other on the
    /// same key falls into: what a sweep confirms here stays confirmed, whoever stores it anew.
    fn check(&self, key: Key, latest: u64, now: SystemTime) -> Option<Variants> {
        let mut left = None;
        self.cache.entry(key).and_compute_with(|entry| {
            let Some(variants) = entry.map(moka::Entry::into_value) else { return Op::Nop };
            if self.confirm(&variants, latest) {
                left = Some(variants);
                return Op::Nop;
            }
            let amend = |stored: &Stored| match self.judge(stored, latest) {
                Standing::Valid => Some(stored.clone()),
                Standing::StaleSince(at) => {
                    let outdated = stored.outdated(at);
                    outdated.note_checked(latest);
                    Some(outdated)
                }
                Standing::Void => None,
            };
            let responses: Vec<Stored> = variants.responses().iter().filter_map(amend).collect();
            if responses.is_empty() {
                return Op::Remove;
            }
            let variants = Variants::of(responses, now);
            left = Some(variants.clone());
            Op::Put(variants)
        });
        self.keep_house();
        left
    }
}

/// Tells moka when a key can be of no more use to anybody.
#[derive(Debug)]
struct UsefulFor {
    housekeeping: Housekeeping,
}

impl UsefulFor {
    fn expires_after(&self, value: &Variants) -> Option<Duration> {
        match self.housekeeping {
            Housekeeping::Later => Some(Duration::from_secs(value.useful_seconds.into())),
            Housekeeping::AtOnce => None,
        }
    }
}

impl Expiry<Key, Variants> for UsefulFor {
    fn expire_after_create(&self, _: &Key, value: &Variants, _: std::time::Instant) -> Option<Duration> {
        self.expires_after(value)
    }

    fn expire_after_update(
        &self,
        _: &Key,
        value: &Variants,
        _: std::time::Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.expires_after(value)
    }
}

#[cfg(test)]
mod tests;
