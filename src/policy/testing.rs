//! What the tables of the policy tests are written with.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use httparse::Header;

use super::{Asked, Disposition, Exchange, Lines, Metadata, Rules, Unstorable, dispose, dispose_unasked};

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the time at which responses arrive in these tests, moved by so many seconds.
pub(super) fn at(seconds: i64) -> SystemTime {
    let since = 784_111_777_u64.checked_add_signed(seconds).unwrap();
    UNIX_EPOCH + Duration::from_secs(since)
}

/// Fields as they are written: one `Name: value` a line.
pub(super) fn fields(text: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').expect("a field has a colon");
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        headers.append(name, HeaderValue::from_str(value.trim()).unwrap());
    }
    headers
}

fn lines(headers: &HeaderMap) -> Vec<Header<'_>> {
    headers.iter().map(|(name, value)| Header { name: name.as_str(), value: value.as_bytes() }).collect()
}

/// One fetch: a GET without fields that is answered with 200 at once, unless said otherwise.
pub(super) struct Fetch {
    pub(super) method: Method,
    pub(super) request: HeaderMap,
    pub(super) status: StatusCode,
    pub(super) response: HeaderMap,
    pub(super) delay: Duration,
    pub(super) arrived: SystemTime,
    pub(super) rules: Rules,
}

impl Fetch {
    pub(super) fn of(response: &str) -> Self {
        Self {
            method: Method::GET,
            request: HeaderMap::new(),
            status: StatusCode::OK,
            response: fields(response),
            delay: Duration::ZERO,
            arrived: at(0),
            rules: Rules::default(),
        }
    }

    pub(super) fn method(mut self, method: &str) -> Self {
        self.method = Method::from_bytes(method.as_bytes()).unwrap();
        self
    }

    pub(super) fn request(mut self, request: &str) -> Self {
        self.request = fields(request);
        self
    }

    pub(super) fn status(mut self, status: u16) -> Self {
        self.status = StatusCode::from_u16(status).unwrap();
        self
    }

    pub(super) fn delayed(mut self, seconds: u64) -> Self {
        self.delay = Duration::from_secs(seconds);
        self
    }

    pub(super) fn arrived(mut self, seconds: i64) -> Self {
        self.arrived = at(seconds);
        self
    }

    pub(super) fn rules(mut self, change: impl FnOnce(&mut Rules)) -> Self {
        change(&mut self.rules);
        self
    }

    pub(super) fn exchange(&self) -> Exchange<'_> {
        Exchange {
            method: &self.method,
            request: &self.request,
            status: self.status,
            response: &self.response,
            request_time: self.arrived - self.delay,
            response_time: self.arrived,
        }
    }

    /// What is to be done with the response, which does not depend on the form in which the fields are at hand.
    pub(super) fn dispose(&self) -> Disposition {
        let exchange = self.exchange();
        let disposition = dispose(&exchange, None, &self.rules);
        if !matches!(disposition, Disposition::Invalid(_)) {
            let (request, response) = (lines(&self.request), lines(&self.response));
            let Exchange { method, status, request_time, response_time, .. } = exchange;
            let (request, response) = (&Lines(&request), &Lines(&response));
            let as_lines = Exchange { method, request, status, response, request_time, response_time };
            assert_eq!(dispose_unasked(&as_lines, &self.rules), disposition, "{:?}", self.response);
        }
        disposition
    }

    /// What is known of the response, which must be one that is stored or shared.
    #[track_caller]
    pub(super) fn metadata(&self) -> Metadata {
        match self.dispose() {
            Disposition::Store(metadata) | Disposition::Share(metadata) => metadata,
            other => panic!("{:?} is not stored: {other:?}", self.response),
        }
    }
}

/// What becomes of a response, without its particulars.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Stored,
    Shared,
    Failed,
    Relayed(Unstorable),
    Other,
}

impl From<Disposition> for Fate {
    fn from(disposition: Disposition) -> Self {
        match disposition {
            Disposition::Store(_) => Self::Stored,
            Disposition::Share(_) => Self::Shared,
            Disposition::Fail => Self::Failed,
            Disposition::Relay(why) => Self::Relayed(why),
            Disposition::Freshen { .. } | Disposition::Invalid(_) => Self::Other,
        }
    }
}

/// A request as policy sees it.
pub(super) fn get(headers: &HeaderMap) -> Asked<'_> {
    Asked { method: &Method::GET, headers }
}
