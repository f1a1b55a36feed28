//! What is counted of a request on its way upstream: each attempt that is sent, and whether the first was one too many.

use super::site::Site;
use crate::telemetry::{DuplicateCause, FetchReason, Telemetry, UpstreamRequest};
use crate::upstream::{self, Ledger};
use http::{Response, StatusCode};

/// The account of one request to the upstream of a route.
#[derive(Debug)]
pub(super) struct Attempts<'a> {
    telemetry: &'a Telemetry,
    site: &'a Site,
    route: usize,
    reason: FetchReason,
    /// Why the fetch is a duplicate; `None`: it is not, or that has been counted.
    duplicate: Option<DuplicateCause>,
    /// The present attempt.
    current: Option<UpstreamRequest>,
    sent: u32,
}

impl<'a> Attempts<'a> {
    /// No attempt yet.
    pub(super) fn new(
        telemetry: &'a Telemetry,
        site: &'a Site,
        route: usize,
        reason: FetchReason,
        duplicate: Option<DuplicateCause>,
    ) -> Self {
        Self { telemetry, site, route, reason, duplicate, current: None, sent: 0 }
    }

    /// Closes the account. Where there was no connection to send anything on, that counts like a request without an answer; where
    /// the upstream was not even tried, nothing is counted. Returns why the fetch is a duplicate if that has not been counted.
    pub(super) fn close(
        mut self,
        came_to: &Result<Response<upstream::Body>, upstream::Error>,
    ) -> Option<DuplicateCause> {
        if came_to.is_err()
            && self.sent == 0
            && let Some(mut attempt) = self.current.take()
        {
            attempt.sent();
            self.count_duplicate();
        }
        self.duplicate
    }

    fn count_duplicate(&mut self) {
        if let Some(cause) = self.duplicate.take() {
            self.telemetry.duplicate_fetch(self.site.route_counted(Some(self.route)), cause);
        }
    }
}

impl Ledger for Attempts<'_> {
    fn begun(&mut self) {
        let reason = if self.sent == 0 { self.reason } else { FetchReason::Retry };
        let upstream = self.site.settings.routes[self.route].upstream;
        self.current = Some(self.telemetry.upstream_request(self.site.upstream_counted(upstream), reason));
    }

    fn sent(&mut self) {
        self.sent += 1;
        if let Some(attempt) = &mut self.current {
            attempt.sent();
        }
        self.count_duplicate();
    }

    fn unsent(&mut self) {
        if let Some(attempt) = self.current.take() {
            self.sent = self.sent.saturating_sub(1);
            attempt.unsent();
        }
    }

    fn answered(&mut self, status: StatusCode) {
        if let Some(attempt) = self.current.take() {
            attempt.answered(status);
        }
    }

    fn failed(&mut self) {
        // One that was not sent is kept: it counts if it was the last.
        if self.sent > 0 {
            self.current = None;
        }
    }
}
