//! What a run came to.

use super::answer::Answer;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Instant;

/// Counts and times of all requests.
#[derive(Default)]
pub(super) struct Report {
    pub(super) answered: u64,
    pub(super) seconds: f64,
    pub(super) reconnects: u64,
    /// Requests without an answer when the limit was reached.
    pub(super) unanswered: usize,
    /// Requests that reached the upstream, where the load is that, too.
    pub(super) arrived: Option<u64>,
    statuses: BTreeMap<u16, u64>,
    failures: BTreeMap<&'static str, u64>,
    /// In microseconds, from the moment at which the request was due.
    latencies: Vec<u32>,
    first_bytes: Vec<(Instant, u32)>,
    first_due: Option<Instant>,
    last_end: Option<Instant>,
}

impl Report {
    pub(super) fn answer(&mut self, answer: &Answer, due: Instant, now: Instant) {
        self.answered += 1;
        *self.statuses.entry(answer.status()).or_default() += 1;
        self.latencies.push(micros(due, now));
        self.first_bytes.push((due, micros(due, answer.first_byte().unwrap_or(now))));
        self.first_due = Some(self.first_due.map_or(due, |first| first.min(due)));
        self.last_end = Some(now);
    }

    pub(super) fn fail(&mut self, why: &'static str) {
        *self.failures.entry(why).or_default() += 1;
    }

    pub(super) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    pub(super) fn json(mut self) -> serde_json::Value {
        // Whoever asks first waits for the upstream; how long the others wait for him is what it tells.
        let is_later = |due: &Instant| self.first_due.is_some_and(|first| first < *due);
        let mut later: Vec<u32> =
            self.first_bytes.iter().filter(|(due, _)| is_later(due)).map(|(_, time)| *time).collect();
        let whole = self.first_due.zip(self.last_end).map_or(0, |(first, last)| micros(first, last));
        json!({
            "answered": self.answered,
            "statuses": self.statuses,
            "failures": self.failures,
            "unanswered": self.unanswered,
            "arrived": self.arrived,
            "reconnects": self.reconnects,
            "seconds": self.seconds,
            "latency_us": percentiles(&mut self.latencies),
            "later_first_byte_us": percentiles(&mut later),
            "first_to_last_us": whole,
        })
    }
}

fn micros(from: Instant, to: Instant) -> u32 {
    u32::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(u32::MAX)
}

fn percentiles(times: &mut [u32]) -> serde_json::Value {
    times.sort_unstable();
    let at =
        |per_mille: usize| times.get((times.len() * per_mille / 1_000).min(times.len().saturating_sub(1)));
    json!({ "p50": at(500), "p90": at(900), "p99": at(990), "p99.9": at(999), "max": times.last() })
}
