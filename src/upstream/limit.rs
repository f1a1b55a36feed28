//! Places at an upstream: how many exchanges there may be at once, and the queue before them.
//!
//! The limit is fixed, or follows the upstream's latency. It then works in turns: for a moment the limit is lowered to see how
//! fast the upstream is when it is not pressed, and lowered again if it seems slower than the last time; until the next such
//! moment the limit grows while the latency stays within a multiple of that, and shrinks by their ratio where it does not. Errors that tell of overload shrink it, too.

use super::Error;
use super::request::Urgency;
use super::settings::{Adaptive as Tuning, Settings};
use crate::boxed::{Apart, boxed};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

/// The places at one upstream.
#[derive(Debug)]
pub(super) struct Places {
    /// A place that is taken has taken its permit out, and puts it back.
    semaphore: Semaphore,
    limit: AtomicUsize,
    /// Places that are taken beyond the limit, since it was lowered: they are not given to others when they become free.
    surplus: AtomicUsize,
    taken: AtomicUsize,
    queued: AtomicUsize,
    queue_max: usize,
    queue_timeout: Duration,
    refused: AtomicU64,
    gave_way: AtomicU64,
    /// Guards what the limit is made of; `None`: it is fixed. Held to count one result, never across an await.
    adaptive: Option<Mutex<Adaptive>>,
}

/// A place at the upstream, until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it gives the place to another"]
pub(super) struct Place {
    places: Arc<Places>,
}

/// What a limit is made of that follows the latency.
#[derive(Debug)]
struct Adaptive {
    latency_tolerance: f64,
    least: f64,
    most: f64,
    limit: f64,
    phase: Phase,
    /// When the phase began. What was sent before it tells of another limit.
    since: Instant,
    /// The latency of the upstream when it is not pressed; `None` before the first look.
    unpressed: Option<Duration>,
    window: Window,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// This part of the limit is in force, to see how fast the upstream is then.
    Looking { part: f64 },
    /// The limit follows the latency, until it is time to look again.
    Following { until: Instant },
}

/// The results since the last change of the limit.
#[derive(Debug)]
struct Window {
    since: Instant,
    count: u32,
    sum: Duration,
    taken_max: usize,
    is_overloaded: bool,
}

/// The limit is set anew after so many results, and not sooner than after this time.
const WINDOW: (u32, Duration) = (10, Duration::from_millis(100));

/// How long the limit follows before the next look; a random part of half of it is added, so that instances do not look at once.
const FOLLOWING: Duration = Duration::from_secs(30);

/// The part of the limit that stays while the upstream is looked at.
const LOOKING: f64 = 0.25;

/// More than so many times the latency of the last look is slower.
const SLOWER: f64 = 1.25;

/// More latency than unpressed that is never a reason to lower the limit: so much comes from the machine alone.
const NOISE: Duration = Duration::from_millis(5);

/// How far the limit falls with errors that tell of overload, and at most for latency.
const BACK_OFF: f64 = 0.9;
const GRADIENT_MIN: f64 = 0.5;

/// The part of the way to a lower limit that is gone at once: latency varies.
const SMOOTHING: f64 = 0.2;

impl Places {
    pub(super) fn new(settings: &Settings) -> Arc<Self> {
        let most = settings.concurrency_max.min(Semaphore::MAX_PERMITS);
        let adaptive = settings.adaptive.map(|tuning| Adaptive::new(tuning, most));
        let limit = adaptive.as_ref().map_or(most, Adaptive::whole);
        Arc::new(Self {
            semaphore: Semaphore::new(limit),
            limit: AtomicUsize::new(limit),
            surplus: AtomicUsize::new(0),
            taken: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
            queue_max: settings.queue_max,
            queue_timeout: settings.queue_timeout,
            refused: AtomicU64::new(0),
            gave_way: AtomicU64::new(0),
            adaptive: adaptive.map(Mutex::new),
        })
    }

    /// Takes a place, or waits for one if a client waits.
    ///
    /// Cancel-safe: dropped, it leaves the queue.
    pub(super) async fn take(self: &Arc<Self>, urgency: Urgency) -> Result<Place, Error> {
        if let Ok(permit) = self.semaphore.try_acquire() {
            return Ok(self.taken(permit));
        }
        if urgency == Urgency::Background {
            self.gave_way.fetch_add(1, Ordering::Relaxed);
            return Err(Error::Busy);
        }
        let queueing: Apart<'_, _> = boxed(|| self.queue());
        let permit = queueing.await;
        if permit.is_none() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        permit.map(|permit| self.taken(permit)).ok_or(Error::Busy)
    }

    async fn queue(&self) -> Option<SemaphorePermit<'_>> {
        let _queued = Queued::enter(&self.queued, self.queue_max)?;
        // The semaphore is never closed, so only the time limit leads to none.
        timeout(self.queue_timeout, self.semaphore.acquire()).await.ok()?.ok()
    }

    fn taken(self: &Arc<Self>, permit: SemaphorePermit<'_>) -> Place {
        permit.forget();
        self.taken.fetch_add(1, Ordering::Relaxed);
        Place { places: Arc::clone(self) }
    }

    /// How many there may be at once.
    pub(super) fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Requests that wait for a place at this moment.
    pub(super) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Requests that found no place in time, or none to wait for it.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Requests in the background that found no place.
    pub(super) fn gave_way(&self) -> u64 {
        self.gave_way.load(Ordering::Relaxed)
    }

    /// Called by whoever holds the lock of `adaptive`, so that changes follow each other.
    fn set_limit(&self, limit: usize) {
        let before = self.limit.swap(limit, Ordering::Relaxed);
        if limit > before {
            self.semaphore.add_permits(self.pay(limit - before));
        } else {
            let free = self.semaphore.forget_permits(before - limit);
            self.surplus.fetch_add(before - limit - free, Ordering::Relaxed);
        }
    }

    /// Takes up to so many places off the surplus. Returns how many were not needed for it.
    fn pay(&self, most: usize) -> usize {
        // Mostly there is none.
        if self.surplus.load(Ordering::Relaxed) == 0 {
            return most;
        }
        let pay = |surplus: usize| Some(surplus.saturating_sub(most));
        let surplus =
            self.surplus.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay).unwrap_or_default();
        most - surplus.min(most)
    }
}

impl Place {
    /// The upstream answered a request that was sent at `sent`.
    pub(super) fn answered(&self, sent: Instant) {
        self.result(sent, false);
    }

    /// The upstream had no time for a request that was sent at `sent`.
    pub(super) fn overloaded(&self, sent: Instant) {
        self.result(sent, true);
    }

    fn result(&self, sent: Instant, is_overloaded: bool) {
        let Some(adaptive) = &self.places.adaptive else { return };
        let mut adaptive = adaptive.lock();
        let taken = self.places.taken.load(Ordering::Relaxed);
        if let Some(limit) = adaptive.result(sent, is_overloaded, taken) {
            self.places.set_limit(limit);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken.fetch_sub(1, Ordering::Relaxed);
        self.places.semaphore.add_permits(self.places.pay(1));
    }
}

impl Adaptive {
    fn new(tuning: Tuning, most: usize) -> Self {
        let now = Instant::now();
        let float = |places: usize| f64::from(u32::try_from(places).unwrap_or(u32::MAX));
        let least = float(tuning.concurrency_min.clamp(1, most));
        Self {
            latency_tolerance: tuning.latency_tolerance,
            least,
            most: float(most),
            limit: least,
            phase: Phase::Looking { part: LOOKING },
            since: now,
            unpressed: None,
            window: Window::new(now),
        }
    }

    /// Takes a result into account. Returns the new limit where there is one.
    fn result(&mut self, sent: Instant, is_overloaded: bool, taken: usize) -> Option<usize> {
        if sent < self.since {
            return None;
        }
        let now = Instant::now();
        if matches!(self.phase, Phase::Looking { .. }) && taken > self.whole() {
            // What was sent under the higher limit still presses.
            self.start(now);
            return None;
        }
        self.window.count(now - sent, is_overloaded, taken);
        let latency = self.window.mean(now)?;
        let window = std::mem::replace(&mut self.window, Window::new(now));
        match self.phase {
            // It may be pressed even so.
            Phase::Looking { part } if self.is_slower(latency) && self.limit * part > self.least => {
                (self.phase, self.since) = (Phase::Looking { part: part * LOOKING }, now);
            }
            Phase::Looking { .. } => {
                if !window.is_overloaded {
                    self.unpressed = Some(latency);
                }
                let until = now + FOLLOWING.mul_f64(1.0 + fastrand::f64() / 2.0);
                (self.phase, self.since) = (Phase::Following { until }, now);
            }
            Phase::Following { until } => {
                self.limit = self.next(&window, latency);
                if now >= until {
                    (self.phase, self.since) = (Phase::Looking { part: LOOKING }, now);
                }
            }
        }
        Some(self.whole())
    }

    /// Begins anew to count what is sent from now on.
    fn start(&mut self, now: Instant) {
        (self.since, self.window) = (now, Window::new(now));
    }

    /// Whether the upstream seems slower than it was, the last time that it was not pressed.
    fn is_slower(&self, latency: Duration) -> bool {
        self.unpressed.is_some_and(|unpressed| latency > unpressed.mul_f64(SLOWER).max(unpressed + NOISE))
    }

    /// The limit after a window with this mean latency.
    fn next(&self, window: &Window, latency: Duration) -> f64 {
        let unpressed = self.unpressed.unwrap_or(latency);
        let tolerated = unpressed.mul_f64(self.latency_tolerance).max(unpressed + NOISE);
        let gradient = (tolerated.as_secs_f64() / latency.as_secs_f64().max(1e-9)).clamp(GRADIENT_MIN, 1.0);
        // Room for a short queue, without which it could not be seen that the upstream can do more.
        let aim = self.limit * gradient + self.limit.sqrt();
        let next = if window.is_overloaded {
            self.limit * BACK_OFF
        } else if aim < self.limit {
            self.limit + (aim - self.limit) * SMOOTHING
        } else if window.taken_max * 2 >= self.whole() {
            aim
        } else {
            // What is not needed says nothing of how much would be too much.
            self.limit
        };
        next.clamp(self.least, self.most)
    }

    /// The limit that is in force.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is between limits that fit"
    )]
    fn whole(&self) -> usize {
        match self.phase {
            Phase::Looking { part } => (self.limit * part).max(self.least) as usize,
            Phase::Following { .. } => self.limit as usize,
        }
    }
}

impl Window {
    fn new(now: Instant) -> Self {
        Self { since: now, count: 0, sum: Duration::ZERO, taken_max: 0, is_overloaded: false }
    }

    fn count(&mut self, latency: Duration, is_overloaded: bool, taken: usize) {
        self.count += 1;
        self.sum += latency;
        self.taken_max = self.taken_max.max(taken);
        self.is_overloaded |= is_overloaded;
    }

    /// The mean latency, once there is enough to tell.
    fn mean(&self, now: Instant) -> Option<Duration> {
        let (least, shortest) = WINDOW;
        (self.count >= least && now - self.since >= shortest).then(|| self.sum / self.count)
    }
}

/// A place in the queue for a place.
struct Queued<'a>(&'a AtomicUsize);

impl<'a> Queued<'a> {
    fn enter(count: &'a AtomicUsize, most: usize) -> Option<Self> {
        let entered = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < most).then_some(entered)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn places(change: impl FnOnce(&mut Settings)) -> Arc<Places> {
        let mut settings = Settings::named("app", Vec::new());
        settings.queue_max = 10_000;
        settings.queue_timeout = Duration::from_secs(3600);
        change(&mut settings);
        Places::new(&settings)
    }

    fn adaptive() -> Arc<Places> {
        places(|settings| settings.adaptive = Some(Tuning::default()))
    }

    /// An upstream that works on so many requests at once, each for so long; the others wait within it.
    struct Server {
        workers: Arc<Semaphore>,
        work: AtomicU64,
        fails: AtomicBool,
        highest: AtomicUsize,
    }

    impl Server {
        fn of(workers: usize, milliseconds: u64) -> Arc<Self> {
            let workers = Arc::new(Semaphore::new(workers));
            let (work, fails) = (AtomicU64::new(milliseconds), AtomicBool::new(false));
            Arc::new(Self { workers, work, fails, highest: AtomicUsize::new(0) })
        }

        async fn serve(&self) -> bool {
            let _worker = self.workers.acquire().await.unwrap();
            tokio::time::sleep(Duration::from_millis(self.work.load(Ordering::Relaxed))).await;
            !self.fails.load(Ordering::Relaxed)
        }
    }

    /// So many clients that ask again and again.
    fn press(server: &Arc<Server>, places: &Arc<Places>, clients: usize) -> tokio::task::JoinSet<()> {
        let mut set = tokio::task::JoinSet::new();
        for _ in 0..clients {
            let (server, places) = (Arc::clone(server), Arc::clone(places));
            set.spawn(async move {
                loop {
                    let place = places.take(Urgency::Foreground).await.unwrap();
                    server.highest.fetch_max(places.taken.load(Ordering::Relaxed), Ordering::Relaxed);
                    let sent = Instant::now();
                    if server.serve().await { place.answered(sent) } else { place.overloaded(sent) }
                }
            });
        }
        set
    }

    async fn seconds(count: u64) {
        tokio::time::sleep(Duration::from_secs(count)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_fixed_limit_stays() {
        let (server, places) = (Server::of(20, 50), places(|settings| settings.concurrency_max = 100));
        let _clients = press(&server, &places, 300);
        seconds(5).await;
        assert_eq!((places.limit(), server.highest.load(Ordering::Relaxed)), (100, 100));
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_settles_near_what_the_upstream_can_do_and_stays_there() {
        let (server, places) = (Server::of(50, 50), adaptive());
        assert_eq!(places.limit(), 8);
        let _clients = press(&server, &places, 500);
        seconds(20).await;
        for second in 0..150 {
            seconds(1).await;
            let limit = places.limit();
            assert!((12..=160).contains(&limit), "{limit} after {second} s");
        }
        let highest = server.highest.load(Ordering::Relaxed);
        assert!(highest <= 160, "{highest} at once");
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_follows_an_upstream_that_loses_workers_and_recovers_whenever_it_is_looked_at() {
        // When the limit is looked at is random; with 14 and 52 it is while what was sent before still presses.
        for seed in [0, 14, 23, 52] {
            fastrand::seed(seed);
            let (server, places) = (Server::of(50, 50), adaptive());
            let _clients = press(&server, &places, 500);
            seconds(30).await;
            let before = places.limit();
            assert!(before > 50, "{before} with seed {seed}");
            let lost = server.workers.forget_permits(50);
            let busy = Arc::clone(&server.workers).acquire_many_owned(45 - u32::try_from(lost).unwrap());
            let busy = busy.await.unwrap();
            seconds(50).await;
            let low = places.limit();
            assert!(low <= 40, "{low} for five workers with seed {seed}");
            drop(busy);
            server.workers.add_permits(lost);
            seconds(50).await;
            let after = places.limit();
            assert!(after > 50, "{after} with seed {seed}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn errors_of_overload_lower_the_limit_to_the_least_and_no_further() {
        let (server, places) = (Server::of(50, 50), adaptive());
        let _clients = press(&server, &places, 500);
        seconds(20).await;
        assert!(places.limit() > 50);
        server.fails.store(true, Ordering::Relaxed);
        seconds(20).await;
        assert_eq!(places.limit(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_is_not_reached_does_not_grow() {
        let (server, places) = (Server::of(1000, 50), adaptive());
        let clients = press(&server, &places, 20);
        seconds(20).await;
        let limit = places.limit();
        assert!((20..=60).contains(&limit), "{limit} for twenty clients");
        drop(clients);
        let _clients = press(&server, &places, 2000);
        seconds(40).await;
        let limit = places.limit();
        assert!(limit > 500, "{limit}");
        assert!(server.highest.load(Ordering::Relaxed) <= 1024, "never above the configured limit");
    }

    #[tokio::test(start_paused = true)]
    async fn places_are_neither_lost_nor_invented_while_the_limit_moves() {
        let places = places(|settings| settings.concurrency_max = 100);
        let mut held = Vec::new();
        for limit in [100, 3, 50, 1, 1, 100, 7, 8, 100] {
            places.set_limit(limit);
            while let Ok(place) = places.take(Urgency::Background).await {
                held.push(place);
            }
            assert!(held.len() >= limit, "{} of {limit}", held.len());
            held.truncate(limit / 2);
            while let Ok(place) = places.take(Urgency::Background).await {
                held.push(place);
            }
            assert_eq!(held.len(), limit);
        }
        held.clear();
        assert_eq!(places.semaphore.available_permits(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_freed_goes_to_the_queue_before_any_background_request() {
        let places = places(|settings| (settings.concurrency_max, settings.queue_max) = (1, 2));
        let held = places.take(Urgency::Foreground).await.unwrap();
        let queue = || {
            let places = Arc::clone(&places);
            tokio::spawn(async move { places.take(Urgency::Foreground).await })
        };
        let (first, second) = (queue(), queue());
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(places.queued(), 2);
        assert!(matches!(places.take(Urgency::Foreground).await, Err(Error::Busy)), "the queue is full");
        assert_eq!(places.refused(), 1);
        drop(held);
        assert!(matches!(places.take(Urgency::Background).await, Err(Error::Busy)), "it was not first");
        let held = first.await.unwrap().unwrap();
        assert!(matches!(places.take(Urgency::Background).await, Err(Error::Busy)));
        drop(held);
        drop(second.await.unwrap().unwrap());
        assert!(places.take(Urgency::Background).await.is_ok());
    }
}
