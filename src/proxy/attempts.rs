//! What is counted of a request on its way upstream: each attempt that is sent, and whether the first was one too many.

use super::meeting::Among;
use super::site::Site;
use super::traffic::{Passage, Ticket, Traffic};
use crate::telemetry::{DuplicateCause, FetchReason, Telemetry, UpstreamRequest};
use crate::upstream::{self, Ledger};
use http::{Response, StatusCode};
use std::sync::Arc;
use tokio::time::Instant;

/// Whether, and why, a fetch is one more than was needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excess {
    /// Its request waited for another fetch for the key, or found no place to wait, or replaces it.
    Waited(DuplicateCause),
    /// Its request did not wait: it is one too many if another for the key is under way when it is sent.
    Beside(DuplicateCause),
    /// It is, and has been counted.
    Counted,
}

impl Excess {
    /// Why others do not wait for a fetch that is none of those they join.
    pub(super) fn cause(self) -> DuplicateCause {
        match self {
            Self::Waited(cause) | Self::Beside(cause) => cause,
            Self::Counted => DuplicateCause::Uncacheable,
        }
    }

    /// Of a request that fetches for itself whatever is in the air, because it is known that what comes would not be for it. It may
    /// have waited before, for this cause in vain.
    pub(super) fn in_vain(waited: Option<DuplicateCause>) -> Self {
        let cause = DuplicateCause::Uncacheable;
        if waited.is_some() { Self::Waited(cause) } else { Self::Beside(cause) }
    }
}

/// The account of one request to the upstream of a route.
#[derive(Debug)]
pub(super) struct Attempts<'a> {
    telemetry: &'a Telemetry,
    site: &'a Site,
    route: usize,
    reason: FetchReason,
    /// Among which fetches it is, and what the others have to know of it; `None`: nobody could have waited for it.
    among: Option<(&'a Arc<Traffic>, &'a Among, Ticket)>,
    passage: Option<Passage>,
    /// `None` where nothing speaks for its being one too many.
    excess: Option<Excess>,
    /// The present attempt.
    current: Option<UpstreamRequest>,
    sent: u32,
}

impl<'a> Attempts<'a> {
    /// No attempt yet.
    pub(super) fn new(telemetry: &'a Telemetry, site: &'a Site, route: usize, reason: FetchReason) -> Self {
        Self {
            telemetry,
            site,
            route,
            reason,
            among: None,
            passage: None,
            excess: None,
            current: None,
            sent: 0,
        }
    }

    /// The same account of a fetch that is among these, and may be one too many.
    pub(super) fn among(
        mut self,
        traffic: &'a Arc<Traffic>,
        among: Option<(&'a Among, Ticket)>,
        passage: Option<Passage>,
        excess: Option<Excess>,
    ) -> Self {
        self.among = among.map(|(among, ticket)| (traffic, among, ticket));
        self.passage = passage;
        self.excess = excess;
        self
    }

    /// Closes the account. Where there was no connection to send anything on, that counts like a request without an answer; where
    /// the upstream was not even tried, or could not be for want of something of ours, nothing is counted. Returns whether the fetch
    /// is one too many, or may be if that is still open, and the fetch's passage.
    pub(super) fn close(
        mut self,
        came_to: &Result<Response<upstream::Body>, upstream::Error>,
    ) -> (Option<Excess>, Option<Passage>) {
        if came_to.as_ref().is_err_and(|error| !error.is_own_want())
            && self.sent == 0
            && let Some(mut attempt) = self.current.take()
        {
            attempt.sent();
            self.set_out();
        }
        (self.excess, self.passage)
    }

    /// The fetch takes its place among the others: is it one too many?
    fn set_out(&mut self) {
        let mut is_beside = false;
        if let Some((traffic, among, ticket)) = self.among {
            if self.passage.is_some() {
                is_beside = traffic.has_others(among);
            } else {
                let (passage, others) = traffic.enter(among, ticket, 0);
                (self.passage, is_beside) = (Some(passage), others.is_some());
            }
        }
        self.excess = match self.excess.take() {
            Some(Excess::Waited(cause)) => Some(self.is_one_too_many(cause)),
            Some(Excess::Beside(cause)) if is_beside => Some(self.is_one_too_many(cause)),
            Some(Excess::Beside(_)) | None => None,
            Some(Excess::Counted) => Some(Excess::Counted),
        }
    }

    fn is_one_too_many(&self, cause: DuplicateCause) -> Excess {
        self.telemetry.duplicate_fetch(self.site.route_counted(Some(self.route)), cause);
        Excess::Counted
    }
}

impl Ledger for Attempts<'_> {
    fn begun(&mut self, now: Instant) {
        let reason = if self.sent == 0 { self.reason } else { FetchReason::Retry };
        let upstream = self.site.settings.routes[self.route].upstream;
        self.current =
            Some(self.telemetry.upstream_request(self.site.upstream_counted(upstream), reason, now));
    }

    fn sent(&mut self) {
        self.sent += 1;
        if let Some(attempt) = &mut self.current {
            attempt.sent();
        }
        self.set_out();
    }

    fn unsent(&mut self) {
        if let Some(attempt) = self.current.take() {
            self.sent = self.sent.saturating_sub(1);
            attempt.unsent();
        }
    }

    fn answered(&mut self, status: StatusCode, came: Instant) {
        if let Some(attempt) = self.current.take() {
            attempt.answered(status, came);
        }
    }

    fn failed(&mut self) {
        // One that was not sent is kept: it counts if it was the last.
        if self.sent > 0 {
            self.current = None;
        }
    }
}
