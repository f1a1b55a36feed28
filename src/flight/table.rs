//! The table, and the tokens that are the only way to change it.

use super::Lost;
use crate::sync::Mutex;
use slab::Slab;
use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::future::poll_fn;
use std::hash::{BuildHasher, Hash};
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Shards of the table. A power of two: enough that two cores rarely meet.
const SHARDS: usize = 16;

/// The fetches in flight, by key. `L` is what a flight comes to; it is cloned for each follower. `B` is what is known of it before.
#[derive(Debug)]
pub struct Flights<K, L, B = u64> {
    table: Arc<Table<K, L, B>>,
}

/// What is known of a flight from its registration on.
pub trait Begun {
    /// The tick at which it was registered.
    fn tick(&self) -> u64;
}

impl Begun for u64 {
    fn tick(&self) -> u64 {
        *self
    }
}

/// What [`Flights::join`] found.
#[derive(Debug)]
pub enum Joined<K: Hash + Eq + Clone, L: Clone, B: Begun = u64> {
    /// Nothing that this request may use: a flight is registered, and this is the right to end it, with its first seat.
    /// The flag says whether it replaces an older flight that is still in the air.
    Leader(Leader<K, L, B>, Follower<L, B>, bool),
    /// A flight in the air: a seat on it.
    Follower(Follower<L, B>),
    /// A flight that has landed and whose leader still keeps the landing up.
    Landed(L),
    /// A flight in the air with no free seat.
    Full,
}

/// What can be seen of a flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The tick at which it was registered.
    pub tick: u64,
    /// Seats that are taken.
    pub seats: usize,
    /// The same without the first, that of whoever began it.
    pub waiters: usize,
}

type Shard<K, L, B> = Mutex<HashMap<K, Arc<Flight<L, B>>>>;

#[derive(Debug)]
struct Table<K, L, B> {
    hasher: RandomState,
    /// Each guards which flight is registered under a key. A plain lock, because it is held for one map operation;
    /// never across an await, and only ever taken *before* a flight's own lock.
    shards: [Shard<K, L, B>; SHARDS],
}

#[derive(Debug)]
struct Flight<L, B> {
    begun: B,
    /// Guards the phase and the seats. Held for a few assignments, never across an await, no waker is called under it.
    state: Mutex<State<L>>,
}

#[derive(Debug)]
struct State<L> {
    phase: Phase<L>,
    seats: Slab<Option<Waker>>,
    /// Whether the first seat is still that of whoever began the flight.
    has_first: bool,
    leader: Option<Waker>,
}

#[derive(Debug)]
enum Phase<L> {
    Airborne,
    Landed(L),
    Lost,
}

impl<K, L, B> Clone for Flights<K, L, B> {
    fn clone(&self) -> Self {
        Self { table: Arc::clone(&self.table) }
    }
}

impl<K: Hash + Eq + Clone, L: Clone, B: Begun> Default for Flights<K, L, B> {
    fn default() -> Self {
        let shards = std::array::from_fn(|_| Mutex::new(HashMap::new()));
        Self { table: Arc::new(Table { hasher: RandomState::new(), shards }) }
    }
}

impl<K: Hash + Eq + Clone, L: Clone, B: Begun> Flights<K, L, B> {
    /// Joins the flight under `key`, or registers one.
    ///
    /// A flight registered at an earlier tick than `since` is too old for this request and is replaced. `begin` draws
    /// the tick (under the lock, so that ticks grow with registration) only if a flight is registered. A flight has
    /// at most `seats_max` seats.
    pub fn join(&self, key: &K, since: u64, seats_max: usize, begin: impl FnOnce() -> B) -> Joined<K, L, B> {
        let mut shard = self.table.shard(key).lock();
        let entry = shard.entry(key.clone());
        let mut replaces = false;
        if let Entry::Occupied(found) = &entry {
            replaces = found.get().begun.tick() < since;
            if !replaces && let Some(boarded) = found.get().board(seats_max) {
                return boarded.into();
            }
        }
        let flight = Arc::new(Flight {
            begun: begin(),
            state: Mutex::new(State {
                phase: Phase::Airborne,
                seats: Slab::new(),
                has_first: true,
                leader: None,
            }),
        });
        let seat = flight.state.lock().seats.insert(None);
        entry.insert_entry(Arc::clone(&flight));
        let follower = Follower { flight: Arc::clone(&flight), seat, is_first: true };
        let leader = Leader { table: Arc::clone(&self.table), key: key.clone(), flight, ended: false };
        Joined::Leader(leader, follower, replaces)
    }

    /// The same where a flight that is for this request may have been begun under another key, because less was known of what it is
    /// for: one of these, if it is in the air and `is_for` this request, comes before one under `key`. Says under which they met, too.
    ///
    /// Whoever leads then looks once more ([`Leader::unless_overtaken`]): whether `key` is still the one, and whether a flight that
    /// was begun before has come to be in the air elsewhere ([`is_airborne`](Self::is_airborne)).
    pub fn meet<'k>(
        &self,
        (key, elsewhere): (&'k K, &'k [K]),
        since: u64,
        seats_max: usize,
        is_for: impl Fn(&B) -> bool,
        begin: impl FnOnce() -> B,
    ) -> (Joined<K, L, B>, &'k K) {
        let mut passes_over = false;
        for other in elsewhere {
            match self.board_airborne(other, since, seats_max, &is_for) {
                Ok(Some(boarded)) => return (boarded.into(), other),
                Ok(None) => {}
                Err(TooOld) => passes_over = true,
            }
        }
        let joined = match self.join(key, since, seats_max, begin) {
            Joined::Leader(leader, seat, replaces) => Joined::Leader(leader, seat, replaces || passes_over),
            joined @ (Joined::Follower(_) | Joined::Landed(_) | Joined::Full) => joined,
        };
        (joined, key)
    }

    /// Takes a seat on the flight under `key`, if it is in the air and one to be on.
    fn board_airborne(
        &self,
        key: &K,
        since: u64,
        seats_max: usize,
        is_for: impl Fn(&B) -> bool,
    ) -> Result<Option<Boarded<L, B>>, TooOld> {
        let shard = self.table.shard(key).lock();
        let Some(flight) = shard.get(key).filter(|flight| is_for(&flight.begun)) else { return Ok(None) };
        if flight.begun.tick() < since {
            return Err(TooOld);
        }
        if !flight.is_airborne() {
            return Ok(None);
        }
        Ok(flight.board(seats_max).filter(|boarded| !matches!(boarded, Boarded::Landed(_))))
    }

    /// The flight under `key`, if there is one. For explanations.
    pub fn look(&self, key: &K) -> Option<Seen> {
        let shard = self.table.shard(key).lock();
        let flight = shard.get(key)?;
        let state = flight.state.lock();
        let seats = state.seats.len();
        Some(Seen { tick: flight.begun.tick(), seats, waiters: seats - usize::from(state.has_first) })
    }

    /// Whether under one of these keys a flight is in the air that was registered at one of these ticks and `is_for` this request. Of
    /// two that are for the same, and were begun at once under different keys, the later one sees the earlier; or, if that has landed
    /// by then, finds what it brought, if it looks for that afterwards.
    pub fn is_airborne(&self, keys: &[K], ticks: Range<u64>, is_for: impl Fn(&B) -> bool) -> bool {
        keys.iter().any(|key| {
            let shard = self.table.shard(key).lock();
            let is_one = |flight: &Arc<Flight<L, B>>| {
                ticks.contains(&flight.begun.tick()) && is_for(&flight.begun) && flight.is_airborne()
            };
            shard.get(key).is_some_and(is_one)
        })
    }

    /// Flights registered at the moment.
    pub fn count(&self) -> usize {
        self.table.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

impl<K: Hash + Eq, L, B> Table<K, L, B> {
    fn shard(&self, key: &K) -> &Shard<K, L, B> {
        let hash = self.hasher.hash_one(key);
        &self.shards[(hash >> 32) as usize % SHARDS]
    }

    /// Takes the flight out of the table, unless another has replaced it.
    fn deregister(&self, key: &K, flight: &Arc<Flight<L, B>>) {
        let mut shard = self.shard(key).lock();
        if shard.get(key).is_some_and(|found| Arc::ptr_eq(found, flight)) {
            shard.remove(key);
        }
    }
}

/// A flight is older than who came for it may use.
struct TooOld;

/// What a seat taken on a registered flight can be: never a leader.
enum Boarded<L: Clone, B: Begun> {
    Seat(Follower<L, B>),
    Landed(L),
    Full,
}

impl<K: Hash + Eq + Clone, L: Clone, B: Begun> From<Boarded<L, B>> for Joined<K, L, B> {
    fn from(boarded: Boarded<L, B>) -> Self {
        match boarded {
            Boarded::Seat(follower) => Self::Follower(follower),
            Boarded::Landed(landing) => Self::Landed(landing),
            Boarded::Full => Self::Full,
        }
    }
}

impl<L: Clone, B: Begun> Flight<L, B> {
    /// Takes a seat; `None` where the flight is lost.
    fn board(self: &Arc<Self>, seats_max: usize) -> Option<Boarded<L, B>> {
        let mut state = self.state.lock();
        match &state.phase {
            Phase::Landed(landing) => Some(Boarded::Landed(landing.clone())),
            Phase::Lost => None,
            Phase::Airborne if state.seats.len() >= seats_max => Some(Boarded::Full),
            Phase::Airborne => {
                let seat = state.seats.insert(None);
                Some(Boarded::Seat(Follower { flight: Arc::clone(self), seat, is_first: false }))
            }
        }
    }
}

impl<L, B> Flight<L, B> {
    fn is_airborne(&self) -> bool {
        matches!(self.state.lock().phase, Phase::Airborne)
    }

    fn end(&self, phase: Phase<L>) {
        let wakers: Vec<Waker> = {
            let mut state = self.state.lock();
            state.phase = phase;
            state.seats.iter_mut().filter_map(|(_, waker)| waker.take()).collect()
        };
        for waker in wakers {
            waker.wake();
        }
    }
}

/// The unique right to end a flight. Dropped, the flight is lost and everyone aboard is told so.
#[must_use = "a leader that is dropped loses its flight"]
#[derive(Debug)]
pub struct Leader<K: Hash + Eq + Clone, L: Clone, B: Begun = u64> {
    table: Arc<Table<K, L, B>>,
    key: K,
    flight: Arc<Flight<L, B>>,
    ended: bool,
}

impl<K: Hash + Eq + Clone, L: Clone, B: Begun> Leader<K, L, B> {
    /// The key under which the flight is registered.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// The tick at which the flight was registered.
    pub fn tick(&self) -> u64 {
        self.flight.begun.tick()
    }

    /// Looks once more, for what came between the look of whoever began the flight and its registration. If anything did,
    /// those aboard get this landing, and nobody leads.
    pub fn unless_overtaken(self, landing: L, is_overtaken: impl FnOnce(&Self) -> bool) -> Option<Self> {
        if is_overtaken(&self) {
            self.land_and_leave(landing);
            return None;
        }
        Some(self)
    }

    /// Ends the flight: everyone aboard gets the landing, and so do later requests until the returned token is dropped.
    pub fn land(mut self, landing: L) -> Landed<K, L, B> {
        self.ended = true;
        // Made first: should a waker panic, dropping it frees the key.
        let landed = Landed {
            table: Arc::clone(&self.table),
            key: self.key.clone(),
            flight: Arc::clone(&self.flight),
        };
        self.flight.end(Phase::Landed(landing));
        landed
    }

    /// Ends the flight for those aboard only: later requests do not find it. No request can take a seat in between.
    pub fn land_and_leave(mut self, landing: L) {
        self.ended = true;
        self.table.deregister(&self.key, &self.flight);
        self.flight.end(Phase::Landed(landing));
    }

    /// Waits until nobody is aboard. Cancel-safe.
    pub async fn abandoned(&self) {
        poll_fn(|context: &mut Context<'_>| {
            let mut state = self.flight.state.lock();
            if state.seats.is_empty() {
                return Poll::Ready(());
            }
            state.leader = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Ends the flight if still nobody is aboard; else gives the leader back.
    pub fn retire(mut self) -> Result<(), Self> {
        {
            let mut shard = self.table.shard(&self.key).lock();
            if !self.flight.state.lock().seats.is_empty() {
                drop(shard);
                return Err(self);
            }
            if shard.get(&self.key).is_some_and(|found| Arc::ptr_eq(found, &self.flight)) {
                shard.remove(&self.key);
            }
        }
        self.ended = true;
        Ok(())
    }
}

impl<K: Hash + Eq + Clone, L: Clone, B: Begun> Drop for Leader<K, L, B> {
    fn drop(&mut self) {
        if !self.ended {
            self.table.deregister(&self.key, &self.flight);
            self.flight.end(Phase::Lost);
        }
    }
}

/// Keeps a landing where later requests find it. Dropped, the key is free again.
#[must_use = "a landing that is not kept is found by nobody"]
#[derive(Debug)]
pub struct Landed<K: Hash + Eq + Clone, L: Clone, B: Begun = u64> {
    table: Arc<Table<K, L, B>>,
    key: K,
    flight: Arc<Flight<L, B>>,
}

impl<K: Hash + Eq + Clone, L: Clone, B: Begun> Landed<K, L, B> {
    /// How many still hold a seat, and so may be about to use the landing.
    pub fn aboard(&self) -> usize {
        self.flight.state.lock().seats.len()
    }
}

impl<K: Hash + Eq + Clone, L: Clone, B: Begun> Drop for Landed<K, L, B> {
    fn drop(&mut self) {
        self.table.deregister(&self.key, &self.flight);
    }
}

/// A seat on a flight. Dropped at any time, it costs nothing from that moment.
#[must_use = "a seat is only good for waiting"]
#[derive(Debug)]
pub struct Follower<L, B: Begun = u64> {
    flight: Arc<Flight<L, B>>,
    seat: usize,
    is_first: bool,
}

impl<L: Clone, B: Begun> Follower<L, B> {
    /// The tick at which the flight was registered.
    pub fn tick(&self) -> u64 {
        self.flight.begun.tick()
    }

    /// Waits for the flight to end. Cancel-safe: it may be called again.
    ///
    /// # Errors
    /// [`Lost`] if the flight ends without a landing.
    pub async fn landing(&mut self) -> Result<L, Lost> {
        poll_fn(|context: &mut Context<'_>| {
            let mut state = self.flight.state.lock();
            match &state.phase {
                Phase::Landed(landing) => Poll::Ready(Ok(landing.clone())),
                Phase::Lost => Poll::Ready(Err(Lost)),
                Phase::Airborne => {
                    state.seats[self.seat] = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl<L, B: Begun> Drop for Follower<L, B> {
    fn drop(&mut self) {
        let leader = {
            let mut state = self.flight.state.lock();
            state.seats.remove(self.seat);
            state.has_first &= !self.is_first;
            if state.seats.is_empty() { state.leader.take() } else { None }
        };
        if let Some(leader) = leader {
            leader.wake();
        }
    }
}
