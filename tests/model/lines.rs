//! The lines that purges draw, what is stored, and what is in flight.

use crate::checker::{JoinHandle, explore};
use crate::flight::{Flights, Joined};
use crate::policy;
use crate::stage::{Cast, join_all};
use crate::stamps::{Scope, Scopes, Stamps, Standing, Strength};
use crate::sync::{AtomicU64, Mutex, Ordering};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

const HERE: policy::Key = policy::Key(1);
const ELSEWHERE: policy::Key = policy::Key(2);

fn scopes() -> Scopes<'static> {
    Scopes { route: 0, uri: HERE, host: "a.example".into(), target: "/".into(), tags: Cow::default() }
}

fn draw(stamps: &Stamps, uri: policy::Key) -> u64 {
    stamps.draw(Scope::Uri(uri), Strength::Hard, SystemTime::UNIX_EPOCH)
}

/// The store with a map in the place of moka, one variant for each key, and all of it under one URI. It weighs ticks as
/// the store does, step by step.
struct Shelf {
    cache: Mutex<HashMap<u8, Arc<Entry>>>,
    stamps: Arc<Stamps>,
}

struct Entry {
    tick: u64,
    checked: AtomicU64,
}

impl Entry {
    fn of(tick: u64, checked: u64) -> Arc<Self> {
        Arc::new(Self { tick, checked: AtomicU64::new(checked) })
    }
}

impl Shelf {
    fn new() -> Arc<Self> {
        Arc::new(Self { cache: Mutex::default(), stamps: Arc::new(Stamps::new(9)) })
    }

    /// Fetches and stores.
    fn fetch(&self, key: u8) -> u64 {
        let underway = self.stamps.begin();
        let tick = underway.tick();
        let mut cache = self.cache.lock();
        if cache.get(&key).is_none_or(|old| old.tick < tick) {
            let checked =
                cache.get(&key).map_or(u64::MAX, |old| old.checked.load(Ordering::Acquire)).min(tick);
            cache.insert(key, Entry::of(tick, checked));
        }
        tick
    }

    /// The tick of what is found valid.
    fn lookup(&self, key: u8) -> Option<u64> {
        let found = Arc::clone(self.cache.lock().get(&key)?);
        let latest = self.stamps.latest();
        if self.confirm(&found, latest) { Some(found.tick) } else { self.check(key, latest) }
    }

    fn confirm(&self, entry: &Entry, latest: u64) -> bool {
        let checked = entry.checked.load(Ordering::Acquire);
        if checked >= latest {
            return true;
        }
        let is_valid = self.stamps.judge_stored(&scopes(), entry.tick, checked) == Standing::Valid;
        if is_valid {
            entry.checked.fetch_max(latest, Ordering::AcqRel);
        }
        is_valid
    }

    fn check(&self, key: u8, latest: u64) -> Option<u64> {
        let mut cache = self.cache.lock();
        let entry = Arc::clone(cache.get(&key)?);
        if self.confirm(&entry, latest) {
            return Some(entry.tick);
        }
        cache.remove(&key);
        None
    }

    /// Stores the same anew, as happens when a body is whole.
    fn weigh_again(&self, key: u8) {
        let mut cache = self.cache.lock();
        if let Some(entry) = cache.get(&key).cloned() {
            cache.insert(key, Entry::of(entry.tick, entry.checked.load(Ordering::Acquire)));
        }
    }

    fn sweep(&self) {
        let latest = self.stamps.latest();
        if self.stamps.is_forgotten(latest) {
            return;
        }
        let horizon = self.stamps.horizon().min(latest + 1);
        let keys: Vec<u8> = self.cache.lock().keys().copied().collect();
        for key in keys {
            self.check(key, latest);
        }
        self.stamps.forget_before(horizon);
    }
}

/// A role: someone who does something with the shelf.
fn with(
    (cast, role): (Cast, usize),
    shelf: &Arc<Shelf>,
    act: impl FnOnce(&Shelf) + Send + 'static,
) -> Option<JoinHandle<()>> {
    let shelf = Arc::clone(shelf);
    cast.plays(role, move || act(&shelf))
}

#[test]
fn after_a_purge_nothing_that_was_fetched_before_is_found() {
    explore(3, 2, |cast| {
        let shelf = Shelf::new();
        shelf.fetch(1);
        join_all([
            with((cast, 0), &shelf, |shelf| {
                shelf.fetch(1);
            }),
            with((cast, 1), &shelf, |shelf| {
                let purged = draw(&shelf.stamps, HERE);
                assert!(shelf.lookup(1).is_none_or(|tick| tick > purged));
                assert!(shelf.lookup(1).is_none_or(|tick| tick > purged));
            }),
            with((cast, 2), &shelf, |shelf| {
                shelf.lookup(1);
            }),
        ]);
        let purged = draw(&shelf.stamps, HERE);
        assert_eq!(shelf.lookup(1), None);
        assert!(shelf.fetch(1) > purged && shelf.lookup(1).is_some());
    });
}

#[test]
fn a_sweep_brings_nothing_back() {
    explore(3, 2, |cast| {
        let shelf = Shelf::new();
        shelf.fetch(1);
        let purged = Arc::new(AtomicU64::new(0));
        let (told, known) = (Arc::clone(&purged), Arc::clone(&purged));
        join_all([
            with((cast, 0), &shelf, move |shelf| {
                told.store(draw(&shelf.stamps, HERE), Ordering::SeqCst);
                shelf.sweep();
                draw(&shelf.stamps, ELSEWHERE);
            }),
            with((cast, 1), &shelf, move |shelf| {
                let purged = purged.load(Ordering::SeqCst);
                assert!(shelf.lookup(1).is_none_or(|tick| tick > purged));
            }),
            with((cast, 2), &shelf, |shelf| {
                shelf.fetch(1);
            }),
        ]);
        let purged = known.load(Ordering::SeqCst);
        assert!(shelf.lookup(1).is_none_or(|tick| tick > purged));
    });
}

#[test]
fn what_is_valid_stays_found_through_purges_of_something_else_and_sweeps() {
    explore(4, 2, |cast| {
        let shelf = Shelf::new();
        let tick = shelf.fetch(1);
        join_all([
            with((cast, 0), &shelf, |shelf| {
                draw(&shelf.stamps, ELSEWHERE);
                shelf.sweep();
            }),
            with((cast, 1), &shelf, move |shelf| {
                assert_eq!(shelf.lookup(1), Some(tick));
                assert_eq!(shelf.lookup(1), Some(tick));
            }),
            with((cast, 3), &shelf, move |shelf| {
                draw(&shelf.stamps, ELSEWHERE);
                assert_eq!(shelf.lookup(1), Some(tick));
            }),
            with((cast, 2), &shelf, |shelf| {
                shelf.weigh_again(1);
                shelf.sweep();
            }),
        ]);
        assert_eq!(shelf.lookup(1), Some(tick));
    });
}

#[test]
fn a_landing_from_before_a_purge_is_not_joined_after_it() {
    explore(3, 2, |cast| {
        let shelf = Shelf::new();
        let table = Flights::<u8, u64>::default();
        let board = |shelf: &Shelf, table: &Flights<u8, u64>| {
            let since = shelf.stamps.newest_over(&scopes());
            let mut underway = None;
            let joined = table.join(&1, since, 9, || underway.insert(shelf.stamps.begin()).tick());
            (joined, underway)
        };
        let flying = {
            let table = table.clone();
            with((cast, 0), &shelf, move |shelf| {
                let (Joined::Leader(leader, seat, _), Some(underway)) = board(shelf, &table) else { return };
                drop(seat);
                let landed = leader.land(underway.tick());
                // The body is filled here. What ends the landing ends it before the stamps may be forgotten.
                drop(landed);
                drop(underway);
            })
        };
        let coming = with((cast, 1), &shelf, move |shelf| {
            let purged = draw(&shelf.stamps, HERE);
            match board(shelf, &table).0 {
                Joined::Landed(tick) => assert!(tick > purged),
                Joined::Follower(seat) => assert!(seat.tick() > purged),
                Joined::Leader(leader, ..) => assert!(leader.tick() > purged),
                Joined::Full => panic!("full"),
            }
        });
        join_all([flying, coming, with((cast, 2), &shelf, Shelf::sweep)]);
    });
}
