//! The circuit breaker of an upstream: while too many of its requests fail, none is sent.
//!
//! *Closed*, it counts. Too many failures *open* it: requests are refused at once, for a time that grows and is shortened at
//! random. Then it is *half open*: a few requests go through as probes. If all succeed it closes, if one fails it opens again.
//!
//! A request succeeds when its response is whole, or is wanted no more; it fails for the upstream's fault alone. What a client
//! can bring about by its own slowness, or by leaving, is no verdict.

use super::settings::Breaker as Settings;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The circuit breaker of one upstream.
#[derive(Debug)]
pub(super) struct Breaker {
    /// Whose it is.
    upstream: String,
    settings: Settings,
    /// Guards what requests are admitted and judged by. Held to count one of them, never across an await.
    circuit: Mutex<Circuit>,
}

/// What the breaker does with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Lets them through, and counts.
    Closed,
    /// Refuses them.
    Open,
    /// Lets a few of them through, to see what becomes of them.
    HalfOpen,
}

impl BreakerState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::HalfOpen];

    /// The word for the state.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// What is counted by a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerNumbers {
    /// What it does at this moment.
    pub state: BreakerState,
    /// How often it came into each state, in the order of [`BreakerState::ALL`].
    pub transitions: [u64; 3],
    /// Requests let through while it was half open.
    pub probes: u64,
}

#[derive(Debug)]
struct Circuit {
    state: State,
    /// Counts the transitions, so that a late result is not taken for one of another time.
    era: u64,
    transitions: [u64; 3],
    probes: u64,
}

#[derive(Debug)]
enum State {
    Closed { window: Window, failures_in_a_row: u32 },
    Open { until: Instant, openings: u32 },
    HalfOpen { probes: Probes, openings: u32 },
}

/// The requests that were let through since the breaker is half open.
#[derive(Debug)]
struct Probes {
    /// Under way or successful.
    admitted: u32,
    /// With a good head.
    answered: u32,
    succeeded: u32,
    /// When the last good head came.
    latest: Instant,
}

/// A probe whose head was good has succeeded when its body has not broken within this time: it may be endless.
const PROBATION: Duration = Duration::from_secs(1);

/// The slices that the window moves by.
const SLICES: u8 = 10;

/// How many requests were sent of late, and how many of them failed.
#[derive(Debug)]
struct Window {
    since: Instant,
    /// How long a slice is.
    span: Duration,
    slices: [Slice; SLICES as usize],
    /// The number of the newest slice, from `since`.
    newest: u128,
}

#[derive(Debug, Default, Clone, Copy)]
struct Slice {
    requests: u32,
    failures: u32,
}

/// A request that was let through, until it is known what became of it. Dropped without a verdict it counts as a success if
/// its head was good, and not at all if there was none.
#[derive(Debug)]
#[must_use = "dropping it is a verdict"]
pub(super) struct Trial {
    breaker: Arc<Breaker>,
    era: u64,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Sent,
    Answered,
    Judged,
}

impl Breaker {
    pub(super) fn new(upstream: String, settings: Settings) -> Arc<Self> {
        let circuit = Circuit { state: State::closed(&settings), era: 0, transitions: [0; 3], probes: 0 };
        Arc::new(Self { upstream, settings, circuit: Mutex::new(circuit) })
    }

    /// How long requests will be refused still; `None`: they may be admitted.
    pub(super) fn refuses_for(&self) -> Option<Duration> {
        match &self.circuit.lock().state {
            State::Closed { .. } => None,
            State::Open { until, .. } => Some(until.saturating_duration_since(Instant::now())),
            State::HalfOpen { probes, .. } => {
                (probes.admitted >= self.settings.probes && !probes.are_settled()).then_some(PROBATION)
            }
        }
        .filter(|left| !left.is_zero())
    }

    /// Lets a request through.
    ///
    /// # Errors
    /// How long requests will be refused still.
    pub(super) fn admit(self: &Arc<Self>) -> Result<Trial, Duration> {
        let mut circuit = self.circuit.lock();
        let now = Instant::now();
        match &mut circuit.state {
            State::Closed { .. } => {}
            State::Open { until, .. } if *until > now => return Err(*until - now),
            State::Open { openings, .. } => {
                let (openings, probes) = (*openings, Probes::first(now));
                circuit.turn(self, State::HalfOpen { probes, openings });
                circuit.probes += 1;
            }
            State::HalfOpen { probes, .. } if probes.admitted < self.settings.probes => {
                probes.admitted += 1;
                circuit.probes += 1;
            }
            State::HalfOpen { probes, .. } if probes.are_settled() => {
                circuit.turn(self, State::closed(&self.settings));
            }
            State::HalfOpen { .. } => return Err(PROBATION),
        }
        Ok(Trial { breaker: Arc::clone(self), era: circuit.era, stage: Stage::Sent })
    }

    /// What it has counted.
    pub(super) fn numbers(&self) -> BreakerNumbers {
        let circuit = self.circuit.lock();
        BreakerNumbers {
            state: circuit.state.name(),
            transitions: circuit.transitions,
            probes: circuit.probes,
        }
    }

    /// How long it stays open the next time, having been opened so often in a row.
    fn open_time(&self, openings: u32) -> Duration {
        let doubled = self.settings.open_time.saturating_mul(1 << openings.min(16));
        // Instances that saw the same failures need not come back together.
        doubled.min(self.settings.open_time_max).mul_f64(1.0 - fastrand::f64() / 3.0)
    }
}

impl Circuit {
    fn turn(&mut self, breaker: &Breaker, state: State) {
        let upstream = breaker.upstream.as_str();
        match &state {
            State::Closed { .. } => {
                tracing::info!(upstream, state = "closed", "the circuit breaker has closed");
            }
            State::HalfOpen { .. } => {
                tracing::info!(upstream, state = "half_open", "the circuit breaker lets probes through");
            }
            State::Open { until, openings } => {
                let seconds = (*until - Instant::now()).as_secs_f64();
                tracing::warn!(upstream, state = "open", openings, seconds, "the circuit breaker has opened");
            }
        }
        self.transitions[state.name() as usize] += 1;
        self.era += 1;
        self.state = state;
    }

    fn succeeded(&mut self, breaker: &Breaker) {
        match &mut self.state {
            State::Closed { window, failures_in_a_row } => {
                window.count(false);
                *failures_in_a_row = 0;
            }
            State::HalfOpen { probes, .. } => {
                probes.succeeded += 1;
                if probes.succeeded >= breaker.settings.probes {
                    self.turn(breaker, State::closed(&breaker.settings));
                }
            }
            State::Open { .. } => {}
        }
    }

    fn failed(&mut self, breaker: &Breaker) {
        let openings = match &mut self.state {
            State::Closed { window, failures_in_a_row } => {
                *failures_in_a_row = failures_in_a_row.saturating_add(1);
                let Slice { requests, failures } = window.count(true);
                let settings = &breaker.settings;
                let is_over = requests >= settings.requests_min
                    && settings
                        .failure_ratio
                        .is_some_and(|ratio| f64::from(failures) >= ratio * f64::from(requests));
                if !is_over && settings.failures_in_a_row.is_none_or(|most| *failures_in_a_row < most) {
                    return;
                }
                0
            }
            State::HalfOpen { openings, .. } => *openings,
            State::Open { .. } => return,
        };
        let until = Instant::now() + breaker.open_time(openings);
        self.turn(breaker, State::Open { until, openings: openings + 1 });
    }
}

impl State {
    fn closed(settings: &Settings) -> Self {
        Self::Closed { window: Window::new(settings.window), failures_in_a_row: 0 }
    }

    fn name(&self) -> BreakerState {
        match self {
            Self::Closed { .. } => BreakerState::Closed,
            Self::Open { .. } => BreakerState::Open,
            Self::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }
}

impl Probes {
    fn first(now: Instant) -> Self {
        Self { admitted: 1, answered: 0, succeeded: 0, latest: now }
    }

    /// Whether every probe has a good head, and has had it for long enough.
    fn are_settled(&self) -> bool {
        self.answered >= self.admitted && self.latest.elapsed() >= PROBATION
    }
}

impl Trial {
    /// The head of the response has come, and is good.
    pub(super) fn answered(&mut self) {
        self.stage = Stage::Answered;
        let mut circuit = self.breaker.circuit.lock();
        if circuit.era == self.era
            && let State::HalfOpen { probes, .. } = &mut circuit.state
        {
            (probes.answered, probes.latest) = (probes.answered + 1, Instant::now());
        }
    }

    /// The upstream failed it.
    pub(super) fn failed(mut self) {
        self.stage = Stage::Judged;
        let mut circuit = self.breaker.circuit.lock();
        if circuit.era == self.era {
            circuit.failed(&self.breaker);
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let mut circuit = self.breaker.circuit.lock();
        if circuit.era != self.era {
            return;
        }
        match (self.stage, &mut circuit.state) {
            (Stage::Answered, _) => circuit.succeeded(&self.breaker),
            (Stage::Sent, State::HalfOpen { probes, .. }) => probes.admitted -= 1,
            (Stage::Sent, State::Closed { .. } | State::Open { .. }) | (Stage::Judged, _) => {}
        }
    }
}

impl Window {
    fn new(window: Duration) -> Self {
        let span = (window / u32::from(SLICES)).max(Duration::from_millis(1));
        Self { since: Instant::now(), span, slices: [Slice::default(); SLICES as usize], newest: 0 }
    }

    /// Counts a request, and returns the sums.
    fn count(&mut self, is_failure: bool) -> Slice {
        let number = self.since.elapsed().as_nanos() / self.span.as_nanos();
        // What has passed since the last request is empty.
        for passed in (self.newest + 1..=number).rev().take(usize::from(SLICES)) {
            self.slices[slot(passed)] = Slice::default();
        }
        self.newest = number;
        let slice = &mut self.slices[slot(number)];
        slice.requests = slice.requests.saturating_add(1);
        slice.failures = slice.failures.saturating_add(u32::from(is_failure));
        self.slices.iter().fold(Slice::default(), |sum, slice| Slice {
            requests: sum.requests.saturating_add(slice.requests),
            failures: sum.failures.saturating_add(slice.failures),
        })
    }
}

fn slot(number: u128) -> usize {
    (number % u128::from(SLICES)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker(settings: Settings) -> Arc<Breaker> {
        Breaker::new("app".to_owned(), settings)
    }

    /// One that opens at half of ten, for eight seconds, and lets two probes through.
    fn usual() -> Arc<Breaker> {
        breaker(Settings {
            requests_min: 10,
            open_time: Duration::from_secs(8),
            open_time_max: Duration::from_secs(20),
            probes: 2,
            ..Settings::default()
        })
    }

    fn succeed(breaker: &Arc<Breaker>) {
        breaker.admit().unwrap().answered();
    }

    fn fail(breaker: &Arc<Breaker>) {
        breaker.admit().unwrap().failed();
    }

    #[track_caller]
    fn check(breaker: &Breaker, state: BreakerState) {
        assert_eq!(breaker.numbers().state, state);
    }

    async fn after(milliseconds: u64) {
        tokio::time::advance(Duration::from_millis(milliseconds)).await;
    }

    async fn until_half_open(breaker: &Breaker) {
        let left = breaker.refuses_for().unwrap();
        tokio::time::advance(left).await;
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_at_the_ratio_and_not_below_the_volume() {
        let breaker = usual();
        for _ in 0..9 {
            fail(&breaker);
        }
        check(&breaker, BreakerState::Closed);
        fail(&breaker);
        check(&breaker, BreakerState::Open);
        let breaker = usual();
        for _ in 0..40 {
            succeed(&breaker);
            succeed(&breaker);
            fail(&breaker);
        }
        check(&breaker, BreakerState::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_older_than_the_window_does_not_count() {
        let breaker = usual();
        for _ in 0..9 {
            fail(&breaker);
        }
        after(9_999).await;
        // Within the window still, but for the slice that has just left it.
        after(1_001).await;
        fail(&breaker);
        check(&breaker, BreakerState::Closed);
        for _ in 0..9 {
            after(900).await;
            fail(&breaker);
        }
        check(&breaker, BreakerState::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_of_any_length_empties_the_window() {
        for seconds in [10, 11, 19, 20, 100_000_000] {
            let breaker = usual();
            for _ in 0..9 {
                fail(&breaker);
            }
            after(seconds * 1000 + 1000).await;
            fail(&breaker);
            check(&breaker, BreakerState::Closed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_failures_in_a_row() {
        let settings = Settings { failure_ratio: None, failures_in_a_row: Some(3), ..Settings::default() };
        let breaker = breaker(settings);
        for _ in 0..10 {
            fail(&breaker);
            fail(&breaker);
            succeed(&breaker);
        }
        check(&breaker, BreakerState::Closed);
        for _ in 0..3 {
            fail(&breaker);
        }
        check(&breaker, BreakerState::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn open_it_refuses_for_a_time_that_grows_and_is_never_quite_the_same() {
        let breaker = usual();
        for _ in 0..10 {
            fail(&breaker);
        }
        let mut seen = Vec::new();
        for longest in [8, 16, 20, 20] {
            let left = breaker.refuses_for().unwrap();
            assert_eq!(breaker.admit().unwrap_err(), left);
            let longest = Duration::from_secs(longest);
            assert!(left <= longest && left >= longest.mul_f64(0.66), "{left:?} of {longest:?}");
            tokio::time::advance(left.saturating_sub(Duration::from_millis(1))).await;
            assert!(breaker.admit().is_err());
            after(1).await;
            fail(&breaker);
            check(&breaker, BreakerState::Open);
            seen.push(left.as_nanos() % 1_000_000);
        }
        assert!(seen.iter().any(|odd| *odd != 0), "it is jittered: {seen:?}");
        assert_eq!(
            breaker.numbers(),
            BreakerNumbers { state: BreakerState::Open, transitions: [0, 5, 4], probes: 4 }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn half_open_it_lets_so_many_probes_through_and_closes_when_all_succeed() {
        let breaker = usual();
        for _ in 0..10 {
            fail(&breaker);
        }
        until_half_open(&breaker).await;
        check(&breaker, BreakerState::Open);
        assert_eq!(breaker.refuses_for(), None);
        let (mut one, mut other) = (breaker.admit().unwrap(), breaker.admit().unwrap());
        check(&breaker, BreakerState::HalfOpen);
        assert!(breaker.refuses_for().is_some() && breaker.admit().is_err(), "no third");
        one.answered();
        drop(one);
        check(&breaker, BreakerState::HalfOpen);
        assert!(breaker.admit().is_err(), "success makes no room for a third");
        other.answered();
        drop(other);
        check(&breaker, BreakerState::Closed);
        assert_eq!(breaker.numbers().probes, 2);
        for _ in 0..9 {
            fail(&breaker);
        }
        check(&breaker, BreakerState::Closed);
        fail(&breaker);
        assert!(breaker.refuses_for().unwrap() <= Duration::from_secs(8), "the times start over");
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_makes_room_for_another() {
        let breaker = usual();
        for _ in 0..10 {
            fail(&breaker);
        }
        until_half_open(&breaker).await;
        for _ in 0..10 {
            drop(breaker.admit().unwrap());
        }
        check(&breaker, BreakerState::HalfOpen);
    }

    #[tokio::test(start_paused = true)]
    async fn results_from_another_time_say_nothing() {
        let breaker = usual();
        let (mut late, lost) = (breaker.admit().unwrap(), breaker.admit().unwrap());
        for _ in 0..10 {
            fail(&breaker);
        }
        until_half_open(&breaker).await;
        let probe = breaker.admit().unwrap();
        late.answered();
        drop(late);
        lost.failed();
        check(&breaker, BreakerState::HalfOpen);
        probe.failed();
        check(&breaker, BreakerState::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn probes_whose_bodies_do_not_end_are_believed_after_a_while() {
        let breaker = usual();
        for _ in 0..10 {
            fail(&breaker);
        }
        until_half_open(&breaker).await;
        let (mut one, mut other) = (breaker.admit().unwrap(), breaker.admit().unwrap());
        one.answered();
        after(5000).await;
        assert!(breaker.admit().is_err(), "the other has no head");
        other.answered();
        after(999).await;
        assert!(breaker.admit().is_err());
        after(1).await;
        assert!(breaker.refuses_for().is_none());
        succeed(&breaker);
        check(&breaker, BreakerState::Closed);
        drop((one, other));
    }
}
