//! Whether an origin is fit to be chosen: by what became of the requests sent to it, and by checks of our own.

use super::settings::Ejection;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// The health of one origin.
#[derive(Debug)]
pub(super) struct Health {
    ejection: Option<Ejection>,
    /// Since when times are counted in milliseconds, so that the choice of an origin takes no lock.
    epoch: Instant,
    /// Until when it is ejected, in milliseconds of `epoch`.
    ejected_until: AtomicU64,
    /// Raised by active checks.
    is_down: AtomicBool,
    /// Raised where the name of the origin means no address.
    is_unresolved: AtomicBool,
    /// Counts ejections; shared by all addresses of an origin.
    ejections: Arc<AtomicU64>,
    /// How many addresses the upstream has. One that is alone is never ejected: there is nowhere else to go.
    addresses: Arc<AtomicUsize>,
    /// Guards the history that verdicts are made of. Held to count one result, never across an await.
    history: Mutex<History>,
}

#[derive(Debug, Default)]
struct History {
    failures: u32,
    /// Ejections since the last request that went well.
    ejections_in_a_row: u32,
    checks_failed: u32,
    checks_passed: u32,
}

/// What became of a request, as far as the origin's health goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It answered, and not with a server error.
    Good,
    /// It failed, or answered with a server error.
    Bad,
}

impl Health {
    pub(super) fn new(
        ejection: Option<Ejection>,
        ejections: Arc<AtomicU64>,
        addresses: Arc<AtomicUsize>,
    ) -> Self {
        Self {
            ejection,
            epoch: Instant::now(),
            ejected_until: AtomicU64::new(0),
            is_down: AtomicBool::new(false),
            is_unresolved: AtomicBool::new(false),
            ejections,
            addresses,
            history: Mutex::default(),
        }
    }

    /// Whether it may be chosen at this moment.
    pub(super) fn is_fit(&self) -> bool {
        if self.is_down.load(Ordering::Relaxed) || self.is_unresolved.load(Ordering::Relaxed) {
            return false;
        }
        match self.ejected_until.load(Ordering::Relaxed) {
            0 => true,
            until => self.milliseconds() >= until || self.is_alone(),
        }
    }

    fn is_alone(&self) -> bool {
        self.addresses.load(Ordering::Relaxed) < 2
    }

    /// Takes the result of a request into account. After its time an ejected origin gets requests again, and one more failure
    /// ejects it for longer. Returns whether it has just been ejected.
    pub(super) fn judge(&self, verdict: Verdict) -> bool {
        if verdict == Verdict::Good {
            self.is_unresolved.store(false, Ordering::Relaxed);
        }
        let Some(ejection) = &self.ejection else { return false };
        let mut history = self.history.lock();
        match verdict {
            Verdict::Good => {
                (history.failures, history.ejections_in_a_row) = (0, 0);
                false
            }
            Verdict::Bad => {
                history.failures = history.failures.saturating_add(1);
                // Requests that were under way when it was ejected say nothing new.
                if history.failures < ejection.failures || self.is_alone() || !self.is_fit() {
                    return false;
                }
                let doubled = ejection.first.saturating_mul(1 << history.ejections_in_a_row.min(16));
                history.ejections_in_a_row += 1;
                let time = u64::try_from(doubled.min(ejection.longest).as_millis()).unwrap_or(u64::MAX);
                self.ejected_until.store(self.milliseconds().saturating_add(time), Ordering::Relaxed);
                self.ejections.fetch_add(1, Ordering::Relaxed);
                true
            }
        }
    }

    /// There is no address to send requests to. It holds until one goes well all the same.
    pub(super) fn unresolved(&self) {
        self.is_unresolved.store(true, Ordering::Relaxed);
    }

    /// Takes the result of a check into account. Returns whether that has changed the verdict.
    pub(super) fn checked(&self, is_good: bool, healthy_after: u32, unhealthy_after: u32) -> bool {
        let mut history = self.history.lock();
        if is_good {
            (history.checks_failed, history.checks_passed) = (0, history.checks_passed.saturating_add(1));
            history.checks_passed >= healthy_after && self.is_down.swap(false, Ordering::Relaxed)
        } else {
            (history.checks_failed, history.checks_passed) = (history.checks_failed.saturating_add(1), 0);
            history.checks_failed >= unhealthy_after && !self.is_down.swap(true, Ordering::Relaxed)
        }
    }

    fn milliseconds(&self) -> u64 {
        let elapsed: Duration = self.epoch.elapsed();
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Keeps retries to a fraction of the requests, so that they cannot multiply the load of an upstream that fails.
#[derive(Debug)]
pub(super) struct RetryBudget {
    /// What each request pays in, in thousandths of a retry; `None`: no budget.
    deposit: Option<i64>,
    balance: AtomicI64,
    made: AtomicU64,
    refused: AtomicU64,
}

/// In thousandths of a retry: what there is at the beginning, so that little traffic has retries too, and what is saved at most.
const BALANCE: (i64, i64) = (10_000, 100_000);

impl RetryBudget {
    /// A budget of this fraction of the requests; `None`: unlimited.
    #[expect(clippy::cast_possible_truncation, reason = "the fraction is clamped to what fits")]
    pub(super) fn new(fraction: Option<f64>) -> Self {
        Self {
            deposit: fraction.map(|fraction| (fraction.clamp(0.0, 100.0) * 1000.0) as i64),
            balance: AtomicI64::new(BALANCE.0),
            made: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// A request is sent.
    pub(super) fn deposit(&self) {
        if let Some(deposit) = self.deposit
            && self.balance.load(Ordering::Relaxed) < BALANCE.1
        {
            self.balance.fetch_add(deposit, Ordering::Relaxed);
        }
    }

    /// Whether a request may be sent again.
    pub(super) fn withdraw(&self) -> bool {
        let take = |balance| (balance >= 1000).then(|| balance - 1000);
        let is_granted = self.deposit.is_none()
            || self.balance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
        if is_granted { &self.made } else { &self.refused }.fetch_add(1, Ordering::Relaxed);
        is_granted
    }

    /// Retries made and refused so far.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.made.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> Health {
        let (first, longest) = (Duration::from_secs(10), Duration::from_secs(30));
        Health::new(Some(Ejection { failures: 3, first, longest }), Arc::default(), Arc::new(2.into()))
    }

    #[tokio::test(start_paused = true)]
    async fn the_only_address_of_an_upstream_is_never_ejected() {
        let health = health();
        for _ in 0..3 {
            health.judge(Verdict::Bad);
        }
        assert!(!health.is_fit());
        health.addresses.store(1, Ordering::Relaxed);
        assert!(health.is_fit(), "the others are gone");
        assert!(!health.judge(Verdict::Bad) && health.is_fit());
        health.addresses.store(2, Ordering::Relaxed);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(health.is_fit() && health.judge(Verdict::Bad) && !health.is_fit());
    }

    #[tokio::test(start_paused = true)]
    async fn an_origin_that_fails_again_and_again_is_ejected_for_longer_and_longer() {
        let health = health();
        for _ in 0..2 {
            assert!(!health.judge(Verdict::Bad) && health.is_fit());
        }
        assert!(health.judge(Verdict::Bad) && !health.is_fit());
        assert!(!health.judge(Verdict::Bad), "what was under way does not count");
        for seconds in [10, 20, 30, 30] {
            tokio::time::advance(Duration::from_millis(seconds * 1000 - 1)).await;
            assert!(!health.is_fit(), "before {seconds} s");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(health.is_fit(), "after {seconds} s");
            assert!(health.judge(Verdict::Bad), "one failure is enough");
        }
        assert_eq!(health.ejections.load(Ordering::Relaxed), 5);
        tokio::time::advance(Duration::from_secs(30)).await;
        health.judge(Verdict::Good);
        assert!(!health.judge(Verdict::Bad), "it starts over");
    }

    #[tokio::test]
    async fn checks_change_the_verdict_after_as_many_as_are_asked_for() {
        let health = Health::new(None, Arc::default(), Arc::default());
        assert!(!health.checked(false, 2, 2) && health.is_fit());
        assert!(health.checked(false, 2, 2) && !health.is_fit());
        assert!(!health.checked(false, 2, 2) && !health.checked(true, 2, 2) && !health.is_fit());
        assert!(health.checked(true, 2, 2) && health.is_fit());
    }

    #[test]
    fn retries_are_a_fraction_of_the_requests() {
        let budget = RetryBudget::new(Some(0.1));
        assert_eq!((0..100).filter(|_| budget.withdraw()).count(), 10, "the reserve");
        for _ in 0..100 {
            budget.deposit();
        }
        assert_eq!((0..100).filter(|_| budget.withdraw()).count(), 10, "a tenth");
        assert_eq!(budget.counts(), (20, 180));
        assert!((0..1000).all(|_| RetryBudget::new(None).withdraw()));
    }
}
