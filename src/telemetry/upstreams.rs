//! What upstreams count themselves.

use super::UpstreamNumbers;
use super::metrics::Registrar;
use prometheus::{IntCounterVec, IntGaugeVec, Registry};

/// What upstreams count themselves: read from them when the metrics are rendered.
pub(super) struct OriginFamilies {
    up: IntGaugeVec,
    addresses: IntGaugeVec,
    ejections: IntCounterVec,
    retries: IntCounterVec,
    retries_refused: IntCounterVec,
    concurrency_limit: IntGaugeVec,
    queued: IntGaugeVec,
    refused: IntCounterVec,
    breaker_state: IntGaugeVec,
    breaker_transitions: IntCounterVec,
    breaker_probes: IntCounterVec,
}

impl OriginFamilies {
    pub(super) fn register(registry: &Registry) -> Self {
        let register = Registrar(registry);
        Self {
            up: register.gauges(
                "forebay_upstream_origin_up",
                "Whether an origin is fit: 0 while all its addresses are ejected, their checks fail, or its name has never been resolved. Where none is fit, all get requests.",
                &["upstream", "origin"],
            ),
            addresses: register.gauges(
                "forebay_upstream_origin_addresses",
                "Addresses that an origin's requests are spread over: more than 1 where its name has several, 0 until it is resolved.",
                &["upstream", "origin"],
            ),
            ejections: register.counters(
                "forebay_upstream_ejections_total",
                "Times that an origin failed so often in a row that it got no requests for a while.",
                &["upstream", "origin"],
            ),
            retries: register.counters(
                "forebay_upstream_retries_total",
                "Requests sent to an upstream again after a failure.",
                &["upstream"],
            ),
            retries_refused: register.counters(
                "forebay_upstream_retries_refused_total",
                "Requests not sent again because the retry budget was spent.",
                &["upstream"],
            ),
            concurrency_limit: register.gauges(
                "forebay_upstream_concurrency_limit",
                "Requests that may be in flight to an upstream at once, bodies included.",
                &["upstream"],
            ),
            queued: register.gauges(
                "forebay_upstream_queued",
                "Requests that wait for a place at an upstream.",
                &["upstream"],
            ),
            refused: register.counters(
                "forebay_upstream_refused_total",
                "Requests not sent to an upstream: there was no place in time (busy), there was none at once for a \
                 refresh in the background (gave_way), the circuit breaker was open (open), or this process had no file \
                 descriptor for a connection, which says nothing of the upstream (no_descriptor).",
                &["upstream", "cause"],
            ),
            breaker_state: register.gauges(
                "forebay_upstream_breaker_state",
                "1 for the state that an upstream's circuit breaker is in, else 0.",
                &["upstream", "state"],
            ),
            breaker_transitions: register.counters(
                "forebay_upstream_breaker_transitions_total",
                "Times that an upstream's circuit breaker came into a state.",
                &["upstream", "state"],
            ),
            breaker_probes: register.counters(
                "forebay_upstream_breaker_probes_total",
                "Requests that an upstream's circuit breaker let through while it was half open.",
                &["upstream"],
            ),
        }
    }

    /// Takes over what the upstreams have counted. An origin that is none any more has no state, but keeps its counts.
    pub(super) fn read(&self, upstreams: &[UpstreamNumbers]) {
        for gauges in [&self.up, &self.addresses, &self.concurrency_limit, &self.queued, &self.breaker_state]
        {
            gauges.reset();
        }
        for upstream in upstreams {
            self.read_one(upstream);
        }
    }

    fn read_one(&self, upstream: &UpstreamNumbers) {
        let name = upstream.name.as_str();
        total(&self.retries, &[name], upstream.retries);
        total(&self.retries_refused, &[name], upstream.retries_refused);
        level(&self.concurrency_limit, &[name], upstream.concurrency_limit);
        level(&self.queued, &[name], upstream.queued);
        for (cause, count) in &upstream.refused {
            total(&self.refused, &[name, cause], *count);
        }
        for origin in &upstream.origins {
            let labels = [name, origin.authority.as_str()];
            level(&self.up, &labels, u64::from(origin.is_up));
            level(&self.addresses, &labels, origin.addresses);
            total(&self.ejections, &labels, origin.ejections);
        }
        let Some(breaker) = &upstream.breaker else { return };
        total(&self.breaker_probes, &[name], breaker.probes);
        for (state, is_present, transitions) in &breaker.states {
            level(&self.breaker_state, &[name, state], u64::from(*is_present));
            total(&self.breaker_transitions, &[name, state], *transitions);
        }
    }
}

fn total(family: &IntCounterVec, labels: &[&str], total: u64) {
    let counter = family.with_label_values(labels);
    counter.reset();
    counter.inc_by(total);
}

fn level(family: &IntGaugeVec, labels: &[&str], level: u64) {
    family.with_label_values(labels).set(i64::try_from(level).unwrap_or(i64::MAX));
}
