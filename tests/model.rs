//! The concurrent core under a model checker.
//!
//! The very files of `body`, `flight` and `store::stamps` are compiled here over the locks of shuttle, which runs a
//! scenario again and again and decides at each lock who goes on: systematically first, then at random. A scenario in
//! which somebody waits for ever fails as a deadlock. The names of the tests are the properties.
#![expect(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests may fail as tests do")]

#[path = "../src/body/mod.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "the library is what uses all of it")]
mod body;
#[path = "../src/flight/mod.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "the library is what uses all of it")]
mod flight;
#[path = "../src/store/stamps.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "the library is what uses all of it")]
mod stamps;

use body::{Body, Broken, Budget, Reader, Stage};
use bytes::Bytes;
use flight::{Flights, Follower, Joined, Leader, Lost};
use http_body_util::BodyExt;
use shuttle::future::block_on;
use shuttle::thread::{self, JoinHandle};
use stamps::{Scope, Scopes, Stamps, Standing, Strength};
use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::SystemTime;
use sync::{AtomicU64, AtomicUsize, Mutex, Ordering};

/// What the modules share state with, over the model checker.
mod sync {
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
}

/// All that the stamps know of policy.
mod policy {
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub(crate) struct Key(pub(crate) u64);
}

/// Systematically as far as the bound goes, then at random, and last with few but well placed changes of who goes on.
fn explore(scenario: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_dfs(scenario.clone(), Some(SYSTEMATIC));
    shuttle::check_random(scenario.clone(), AT_RANDOM);
    shuttle::check_pct(scenario, AT_RANDOM, 3);
}

const SYSTEMATIC: usize = 4_000;
const AT_RANDOM: usize = 1_500;

fn join_all(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    // All of them begin before the first is waited for.
    for thread in threads.into_iter().collect::<Vec<_>>() {
        thread.join().unwrap();
    }
}

/// Asks a future once, as a task does that is then dropped.
fn ask_once(future: impl Future) {
    let _ = pin!(future).poll(&mut Context::from_waker(Waker::noop()));
}

// ---- Flights ----

type Table = Flights<u8, u32>;

fn join(table: &Table) -> Joined<u8, u32> {
    table.join(&1, 0, 9, || 1)
}

fn lead(table: &Table) -> (Leader<u8, u32>, Follower<u32>) {
    match join(table) {
        Joined::Leader(leader, seat, false) => (leader, seat),
        other => panic!("{other:?}"),
    }
}

#[test]
fn at_most_one_flight_is_in_the_air_and_everyone_aboard_gets_its_landing() {
    explore(|| {
        let table = Table::default();
        let in_the_air = Arc::new(AtomicUsize::new(0));
        join_all((0..3).map(|_| {
            let (table, in_the_air) = (table.clone(), Arc::clone(&in_the_air));
            thread::spawn(move || match join(&table) {
                Joined::Leader(leader, mut seat, replaces) => {
                    assert!(!replaces);
                    assert_eq!(in_the_air.fetch_add(1, Ordering::SeqCst), 0);
                    in_the_air.fetch_sub(1, Ordering::SeqCst);
                    leader.land_and_leave(7);
                    assert_eq!(block_on(seat.landing()), Ok(7));
                }
                Joined::Follower(mut seat) => assert_eq!(block_on(seat.landing()), Ok(7)),
                other @ (Joined::Landed(_) | Joined::Full) => panic!("{other:?}"),
            })
        }));
        assert_eq!(table.count(), 0);
    });
}

#[test]
fn while_a_landing_is_kept_nobody_else_leads() {
    explore(|| {
        let table = Table::default();
        let (leader, mut seat) = lead(&table);
        let others = [0, 1].map(|_| {
            let table = table.clone();
            thread::spawn(move || match join(&table) {
                Joined::Follower(mut seat) => assert_eq!(block_on(seat.landing()), Ok(7)),
                Joined::Landed(landing) => assert_eq!(landing, 7),
                other @ (Joined::Leader(..) | Joined::Full) => panic!("{other:?}"),
            })
        });
        let landed = leader.land(7);
        assert_eq!(block_on(seat.landing()), Ok(7));
        join_all(others);
        drop(seat);
        assert_eq!(landed.aboard(), 0);
        drop(landed);
        assert_eq!(table.count(), 0);
    });
}

#[test]
fn nobody_waits_for_a_leader_that_is_gone() {
    for step in 0..4 {
        explore(move || {
            let table = Table::default();
            let (leader, mut seat) = lead(&table);
            let others = [0, 1].map(|_| {
                let table = table.clone();
                thread::spawn(move || match join(&table) {
                    Joined::Follower(mut seat) => {
                        let landing = block_on(seat.landing());
                        assert!(landing == Err(Lost) || landing == Ok(7));
                    }
                    Joined::Leader(leader, mut seat, _) => {
                        drop(leader);
                        assert_eq!(block_on(seat.landing()), Err(Lost));
                    }
                    Joined::Landed(landing) => assert_eq!(landing, 7),
                    Joined::Full => panic!("full"),
                })
            });
            // The leader is dropped at each of its steps.
            match step {
                0 => drop(leader),
                1 => {
                    ask_once(leader.abandoned());
                    drop(leader);
                }
                2 => drop(leader.retire().expect_err("the first seat is taken")),
                _ => drop(leader.land(7)),
            }
            let landing = block_on(seat.landing());
            assert_eq!(landing, if step == 3 { Ok(7) } else { Err(Lost) });
            join_all(others);
            assert_eq!(table.count(), 0);
        });
    }
}

#[test]
fn who_joins_after_a_landing_was_left_leads() {
    explore(|| {
        let table = Table::default();
        let (leader, _seat) = lead(&table);
        let has_left = Arc::new(AtomicUsize::new(0));
        let other = {
            let (table, has_left) = (table.clone(), Arc::clone(&has_left));
            thread::spawn(move || {
                let comes_after = has_left.load(Ordering::SeqCst) == 1;
                match join(&table) {
                    Joined::Leader(leader, ..) => leader.land_and_leave(8),
                    Joined::Follower(mut seat) if !comes_after => {
                        assert_eq!(block_on(seat.landing()), Ok(7));
                    }
                    other => panic!("{other:?}"),
                }
            })
        };
        leader.land_and_leave(7);
        has_left.store(1, Ordering::SeqCst);
        join_all([other]);
    });
}

#[test]
fn a_flight_that_retires_strands_nobody_who_boards_at_the_same_time() {
    explore(|| {
        let table = Table::default();
        let (leader, seat) = lead(&table);
        let others = [0, 1].map(|_| {
            let table = table.clone();
            thread::spawn(move || match join(&table) {
                Joined::Follower(mut seat) => assert_eq!(block_on(seat.landing()), Ok(7)),
                Joined::Leader(leader, ..) => leader.land_and_leave(7),
                other @ (Joined::Landed(_) | Joined::Full) => panic!("{other:?}"),
            })
        });
        drop(seat);
        if let Err(leader) = leader.retire() {
            leader.land_and_leave(7);
        }
        join_all(others);
        assert_eq!(table.count(), 0);
    });
}

#[test]
fn a_flight_that_everyone_has_left_notices() {
    explore(|| {
        let table = Table::default();
        let (mut leader, mut seat) = lead(&table);
        let first = thread::spawn(move || {
            ask_once(seat.landing());
            drop(seat);
        });
        let others = [0, 1].map(|_| {
            let table = table.clone();
            thread::spawn(move || match join(&table) {
                Joined::Follower(mut seat) => ask_once(seat.landing()),
                Joined::Leader(leader, ..) => drop(leader),
                other @ (Joined::Landed(_) | Joined::Full) => panic!("{other:?}"),
            })
        });
        block_on(async {
            loop {
                leader.abandoned().await;
                match leader.retire() {
                    Ok(()) => break,
                    Err(back) => leader = back,
                }
            }
        });
        join_all(others);
        join_all([first]);
        assert_eq!(table.count(), 0);
    });
}

#[test]
fn a_flight_that_is_too_old_is_replaced_once_and_flies_on_for_those_aboard() {
    explore(|| {
        let table = Table::default();
        let (old, mut early) = lead(&table);
        let count = Arc::new(AtomicUsize::new(0));
        let newcomers = [0, 1].map(|_| {
            let (table, count) = (table.clone(), Arc::clone(&count));
            thread::spawn(move || match table.join(&1, 2, 9, || 3) {
                Joined::Leader(leader, mut seat, replaces) => {
                    count.fetch_add(usize::from(replaces), Ordering::SeqCst);
                    leader.land_and_leave(30);
                    assert_eq!(block_on(seat.landing()), Ok(30));
                }
                Joined::Follower(mut seat) => assert_eq!(block_on(seat.landing()), Ok(30)),
                other @ (Joined::Landed(_) | Joined::Full) => panic!("{other:?}"),
            })
        });
        drop(old.land(10));
        assert_eq!(block_on(early.landing()), Ok(10));
        join_all(newcomers);
        assert!(count.load(Ordering::SeqCst) <= 1);
        assert_eq!(table.count(), 0);
    });
}

// ---- Bodies ----

/// Reads to the end: what was read, and how it ended.
fn read(reader: Reader) -> (Vec<u8>, Result<(), Broken>) {
    block_on(async {
        let mut reader = pin!(reader);
        let mut read = Vec::new();
        loop {
            match reader.frame().await {
                None => return (read, Ok(())),
                Some(Err(broken)) => return (read, Err(broken)),
                Some(Ok(frame)) => read.extend(frame.into_data().unwrap()),
            }
        }
    })
}

fn read_whole(reader: Reader, expected: &[u8]) {
    assert_eq!(read(reader), (expected.to_vec(), Ok(())));
}

/// A body, its pieces, and the budget that must be untouched when all is over.
fn with_body(scenario: impl Fn(body::Writer, Body) + Send + Sync + Clone + 'static) {
    explore(move || {
        let budget = Budget::new(1);
        let (writer, body) = body::new(&budget);
        scenario(writer, body);
        assert_eq!(budget.used(), 0, "the budget is given back");
    });
}

fn piece(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[test]
fn every_reader_of_a_finished_body_gets_exactly_what_was_written_from_its_offset() {
    with_body(|mut writer, body| {
        let early = body.read().unwrap();
        let early = thread::spawn(move || read_whole(early, b"abcdefgh"));
        let late = thread::spawn(move || {
            read_whole(body.read_from(2, None).unwrap(), b"cdefgh");
            read_whole(body.read_from(1, Some(4)).unwrap(), b"bcde");
        });
        // The second piece makes a block of the first two, and the end one of all that is loose.
        for text in ["abc", "de", "f", "gh"] {
            writer.push(piece(text));
        }
        writer.finish(None);
        join_all([early, late]);
    });
}

#[test]
fn a_body_without_a_byte_ends_for_every_reader() {
    with_body(|writer, body| {
        let readers = [0, 1].map(|_| {
            let body = body.clone();
            thread::spawn(move || read_whole(body.read().unwrap(), b""))
        });
        writer.finish(None);
        join_all(readers);
        assert_eq!(body.stage(), Stage::Whole(0));
    });
}

#[test]
fn a_reader_of_a_dropped_writer_breaks_and_never_ends() {
    with_body(|mut writer, body| {
        let early = body.read().unwrap();
        let early = thread::spawn(move || {
            assert_eq!(read(early), (b"abcde".to_vec(), Err(Broken::Upstream)));
        });
        let late = thread::spawn(move || {
            let late = body.read_from(3, None).unwrap();
            assert_eq!(read(late), (b"de".to_vec(), Err(Broken::Upstream)));
        });
        writer.push(piece("abc"));
        writer.push(piece("de"));
        drop(writer);
        join_all([early, late]);
    });
}

#[test]
fn a_window_gives_nobody_a_gap_and_wakes_its_writer() {
    with_body(|mut writer, body| {
        let early = body.read().unwrap();
        let shelved = body.shelved();
        let readers = [
            thread::spawn(move || read_whole(early, b"abcdef")),
            // Who holds the beginning gets it.
            thread::spawn(move || {
                let reader = body.read().unwrap();
                drop(body);
                read_whole(reader, b"abcdef");
            }),
            // Who does not may come too late, but never to a gap.
            thread::spawn(move || {
                if let Ok(reader) = shelved.read() {
                    read_whole(reader, b"abcdef");
                }
            }),
        ];
        writer.push(piece("ab"));
        writer.keep_window(2);
        for text in ["cd", "ef"] {
            block_on(writer.room());
            writer.push(piece(text));
        }
        writer.finish(None);
        join_all(readers);
    });
}

#[test]
fn the_writer_of_a_window_goes_on_when_the_slowest_reader_leaves() {
    with_body(|mut writer, body| {
        let mut leaving = body.read().unwrap();
        let staying = body.read().unwrap();
        let readers = [
            thread::spawn(move || {
                let _first = block_on(leaving.frame());
                drop(leaving);
            }),
            thread::spawn(move || read_whole(staying, b"abcdef")),
            thread::spawn(move || drop(body)),
        ];
        writer.keep_window(1);
        for text in ["ab", "cd", "ef"] {
            writer.push(piece(text));
            block_on(writer.room());
        }
        writer.finish(None);
        join_all(readers);
    });
}

#[test]
fn a_writer_notices_that_nobody_reads() {
    with_body(|mut writer, body| {
        let mut first = body.read().unwrap();
        let leaving = [
            thread::spawn(move || {
                ask_once(first.frame());
                drop(first);
            }),
            thread::spawn(move || {
                // The handle goes last here, and the reader where the budget is given back.
                drop(body.clone().read());
                drop(body);
            }),
        ];
        writer.push(piece("ab"));
        block_on(writer.unread());
        block_on(writer.abandoned());
        drop(writer);
        join_all(leaving);
    });
}

#[test]
fn a_reader_that_is_cut_off_stalls_and_never_skips() {
    with_body(|mut writer, body| {
        let readers = [0, 1].map(|_| {
            let reader = body.read().unwrap();
            thread::spawn(move || match read(reader) {
                (read, Ok(())) => assert_eq!(read, b"abcdef"),
                (read, Err(Broken::Stalled)) => assert!(b"abcdef".starts_with(&read)),
                (_, Err(Broken::Upstream)) => panic!("the upstream is well"),
            })
        });
        drop(body);
        writer.push(piece("ab"));
        writer.keep_window(1);
        writer.push(piece("cd"));
        if let Some(slowest) = writer.slowest() {
            writer.cut_off(slowest);
        }
        writer.push(piece("ef"));
        writer.finish(None);
        join_all(readers);
    });
}

#[test]
fn the_budget_is_given_back_however_everyone_leaves() {
    with_body(|mut writer, body| {
        let leaving = [
            thread::spawn({
                let body = body.clone();
                move || drop(body.read())
            }),
            thread::spawn(move || {
                let shelved = body.shelved();
                let reader = body.read();
                drop(body);
                drop(shelved.read());
                drop(reader);
            }),
        ];
        writer.push(piece("ab"));
        writer.keep_window(1);
        writer.push(piece("cdefg"));
        drop(writer);
        join_all(leaving);
    });
}

// ---- Stamps ----

const HERE: policy::Key = policy::Key(1);
const ELSEWHERE: policy::Key = policy::Key(2);

fn scopes() -> Scopes {
    Scopes { route: 0, uri: HERE, host: "a.example".into(), target: "/".into(), tags: Box::default() }
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

/// A thread that does something with the shelf.
fn with(shelf: &Arc<Shelf>, act: impl FnOnce(&Shelf) + Send + 'static) -> JoinHandle<()> {
    let shelf = Arc::clone(shelf);
    thread::spawn(move || act(&shelf))
}

#[test]
fn after_a_purge_nothing_that_was_fetched_before_is_found() {
    explore(|| {
        let shelf = Shelf::new();
        shelf.fetch(1);
        join_all([
            with(&shelf, |shelf| {
                shelf.fetch(1);
            }),
            with(&shelf, |shelf| {
                let purged = draw(&shelf.stamps, HERE);
                assert!(shelf.lookup(1).is_none_or(|tick| tick > purged));
                assert!(shelf.lookup(1).is_none_or(|tick| tick > purged));
            }),
            with(&shelf, |shelf| {
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
    explore(|| {
        let shelf = Shelf::new();
        shelf.fetch(1);
        let purged = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&purged);
        join_all([
            with(&shelf, move |shelf| {
                told.store(draw(&shelf.stamps, HERE), Ordering::SeqCst);
                shelf.sweep();
                draw(&shelf.stamps, ELSEWHERE);
            }),
            with(&shelf, move |shelf| {
                let purged = purged.load(Ordering::SeqCst);
                assert!(shelf.lookup(1).is_none_or(|tick| tick > purged));
            }),
            with(&shelf, |shelf| {
                shelf.fetch(1);
            }),
        ]);
    });
}

#[test]
fn what_is_valid_stays_found_through_purges_of_something_else_and_sweeps() {
    explore(|| {
        let shelf = Shelf::new();
        let tick = shelf.fetch(1);
        join_all([
            with(&shelf, |shelf| {
                draw(&shelf.stamps, ELSEWHERE);
                shelf.sweep();
            }),
            with(&shelf, move |shelf| {
                assert_eq!(shelf.lookup(1), Some(tick));
                draw(&shelf.stamps, ELSEWHERE);
                assert_eq!(shelf.lookup(1), Some(tick));
            }),
            with(&shelf, |shelf| {
                shelf.weigh_again(1);
                shelf.sweep();
            }),
        ]);
        assert_eq!(shelf.lookup(1), Some(tick));
    });
}

#[test]
fn a_landing_from_before_a_purge_is_not_joined_after_it() {
    explore(|| {
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
            with(&shelf, move |shelf| {
                let (Joined::Leader(leader, seat, _), Some(underway)) = board(shelf, &table) else { return };
                drop(seat);
                let landed = leader.land(underway.tick());
                // The body is filled here. What ends the landing ends it before the stamps may be forgotten.
                drop(landed);
                drop(underway);
            })
        };
        let coming = with(&shelf, move |shelf| {
            let purged = draw(&shelf.stamps, HERE);
            match board(shelf, &table).0 {
                Joined::Landed(tick) => assert!(tick > purged),
                Joined::Follower(seat) => assert!(seat.tick() > purged),
                Joined::Leader(leader, ..) => assert!(leader.tick() > purged),
                Joined::Full => panic!("full"),
            }
        });
        join_all([flying, coming, with(&shelf, Shelf::sweep)]);
    });
}
