//! Sends one request to one of an upstream's origins, within its limits.
//!
//! [`Upstream::send`] asks the circuit breaker, takes a place (so many exchanges at once, a bounded queue before them), picks
//! an address, takes an idle connection or makes one, and waits for the head of the response. The returned [`Body`] holds
//! the place and the connection until its end: a connection goes back to the pool only when the request was
//! written and the response was read in full.
//!
//! | file | what happens there |
//! |---|---|
//! | `breaker` | whether an upstream gets requests at all |
//! | `limit` | how many at once |
//! | `members`, `balance`, `health`, `check` | to which address a request goes |
//! | `pool`, `idle`, `connect`, `tls`, `farewell` | over which connection |
//! | `attempt`, `alarm` | one exchange, how long it may take, and whether it is tried again |
//! | `request`, `body`, `inbound` | what is sent, and what comes back |
//! | `http1` | HTTP/1.1; HTTP/2 is hyper's |

mod alarm;
mod attempt;
mod balance;
mod body;
mod breaker;
mod check;
mod connect;
mod error;
mod farewell;
mod health;
mod http1;
mod idle;
mod inbound;
mod limit;
mod members;
mod pool;
mod request;
mod settings;
mod tls;
mod validity;

pub use attempt::Ledger;
pub use body::{Body, BodyError};
pub use breaker::{BreakerNumbers, BreakerState};
pub use connect::{Dial, Lookup, Transport};
pub use error::{Cause, Error};
pub use http1::HeadAsItLies;
pub use inbound::{Inbound, InboundError};
pub use request::{BodyFault, BodyLimits, Outgoing, RequestBody, Urgency, Written};
pub use settings::{Adaptive, Balance, Breaker, Check, Ejection, Origin, Protocol, Settings, Tls};
pub use tls::{TlsError, certificates, check_identity, check_roots, private_key};
pub use validity::Validity;

use attempt::{Answered, Trip};
use balance::Chooser;
use body::{Exchange, Probation};
use breaker::Trial;
use health::RetryBudget;
use http::{Response, StatusCode};
use limit::Places;
use members::Members;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tls::{Material, Prepared};
use tokio::time::Instant;

/// One named upstream.
#[derive(Debug)]
pub struct Upstream {
    settings: Settings,
    members: Members,
    places: Arc<Places>,
    chooser: Chooser,
    retry_budget: RetryBudget,
    breaker: Option<Arc<breaker::Breaker>>,
    refused_open: AtomicU64,
    unable: AtomicU64,
    /// What the certificates and keys are for which it was prepared.
    material: Material,
    /// What upstreams of this name counted before it.
    counted_before: Numbers,
}

/// What is counted by an upstream itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Numbers {
    /// Requests sent again.
    pub retries: u64,
    /// Requests that would have been sent again, had the budget permitted it.
    pub retries_refused: u64,
    /// How many requests there may be in flight.
    pub concurrency_limit: usize,
    /// Requests that wait for a place.
    pub queued: usize,
    /// Requests that got no place in time.
    pub refused_busy: u64,
    /// Requests in the background that found no place and gave way.
    pub gave_way: u64,
    /// Requests that the circuit breaker refused.
    pub refused_open: u64,
    /// Requests that were not sent because this process lacked a file descriptor.
    pub unable: u64,
    /// What the circuit breaker has counted, where there is one.
    pub breaker: Option<BreakerNumbers>,
    /// What is known of each origin.
    pub origins: Vec<OriginNumbers>,
}

impl Numbers {
    /// The same, with what was counted before added to what only grows.
    fn after(mut self, before: &Self) -> Self {
        self.retries += before.retries;
        self.retries_refused += before.retries_refused;
        self.refused_busy += before.refused_busy;
        self.gave_way += before.gave_way;
        self.refused_open += before.refused_open;
        self.unable += before.unable;
        if let (Some(breaker), Some(before)) = (&mut self.breaker, &before.breaker) {
            breaker.probes += before.probes;
            for (count, before) in breaker.transitions.iter_mut().zip(before.transitions) {
                *count += before;
            }
        }
        for origin in &mut self.origins {
            let namesake = before.origins.iter().find(|before| before.authority == origin.authority);
            origin.ejections += namesake.map_or(0, |before| before.ejections);
        }
        self
    }
}

/// What is known of one origin.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OriginNumbers {
    /// Host and port, behind the scheme where another origin has the same with another scheme.
    pub authority: String,
    /// Whether one of its addresses is fit to be chosen.
    pub is_up: bool,
    /// How often one of them was ejected.
    pub ejections: u64,
    /// How many addresses its name has, as far as is known.
    pub addresses: usize,
}

impl Upstream {
    /// Prepares an upstream; nothing is connected yet.
    ///
    /// # Errors
    /// [`TlsError`] where certificates cannot be read or used.
    pub fn new(settings: Settings) -> Result<Self, TlsError> {
        Self::over(settings, &Transport::Tcp)
    }

    /// Prepares an upstream that is reached over this transport.
    ///
    /// # Errors
    /// [`TlsError`] where certificates cannot be read or used.
    pub fn over(settings: Settings, transport: &Transport) -> Result<Self, TlsError> {
        let tls = tls::prepare(&settings)?;
        Ok(Self::with(settings, transport, tls, Numbers::default()))
    }

    /// Prepares the upstream that is to take the place of an old one, if there is one. Where the settings are the same, and
    /// certificates and keys too, it is the old one that goes on, with its connections and what it knows of its origins.
    ///
    /// # Errors
    /// [`TlsError`] where certificates cannot be read or used.
    pub fn after(
        old: Option<&Arc<Self>>,
        settings: Settings,
        transport: &Transport,
    ) -> Result<Arc<Self>, TlsError> {
        let tls = tls::prepare(&settings)?;
        let counted_before = match old {
            Some(old) if old.settings == settings && old.material == tls.material => {
                return Ok(Arc::clone(old));
            }
            Some(old) => old.numbers(),
            None => Numbers::default(),
        };
        Ok(Arc::new(Self::with(settings, transport, tls, counted_before)))
    }

    fn with(settings: Settings, transport: &Transport, tls: Prepared, counted_before: Numbers) -> Self {
        let Prepared { connector, material } = tls;
        let breaker = settings.breaker.map(|breaker| breaker::Breaker::new(settings.name.clone(), breaker));
        Self {
            members: Members::new(&settings, transport, connector.as_ref()),
            places: Places::new(&settings),
            chooser: Chooser::new(settings.balance),
            retry_budget: RetryBudget::new(settings.retry_budget),
            breaker,
            refused_open: AtomicU64::new(0),
            unable: AtomicU64::new(0),
            material,
            counted_before,
            settings,
        }
    }

    /// Stops checking origins and resolving names, and closes idle connections, because another upstream takes its place. What
    /// is in flight ends as it would have.
    pub fn retire(&self) {
        self.members.retire();
    }

    /// What it has counted.
    pub fn numbers(&self) -> Numbers {
        let (retries, retries_refused) = self.retry_budget.counts();
        let numbers = Numbers {
            retries,
            retries_refused,
            concurrency_limit: self.places.limit(),
            queued: self.places.queued(),
            refused_busy: self.places.refused(),
            gave_way: self.places.gave_way(),
            refused_open: self.refused_open.load(Ordering::Relaxed),
            unable: self.unable.load(Ordering::Relaxed),
            breaker: self.breaker.as_ref().map(|breaker| breaker.numbers()),
            origins: self.members.numbers(),
        };
        numbers.after(&self.counted_before)
    }

    /// What it was told.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether HTTP/1.1 is spoken to all its origins, so that heads may be [`Written`] in advance.
    pub fn takes_written(&self) -> bool {
        match self.settings.protocol {
            Protocol::Http1 => true,
            Protocol::Auto => self.settings.origins.iter().all(|origin| !origin.https),
            Protocol::Http2 => false,
        }
    }

    /// Sends the request, once there is a place for it, and waits for the head of the final response.
    ///
    /// A request that provably never reached the upstream (its connection was already closed) is sent again on a new
    /// connection, whatever its method. One that may have reached it is sent again only if the method is idempotent, the
    /// body is at hand, and the connection broke before the whole head of an answer had come, or the answer has one of the statuses
    /// that are configured for it.
    ///
    /// The ledger is told of each attempt, and of nothing where there was no place, or the circuit breaker refused.
    ///
    /// Cancel-safe: dropped, the exchange is given up and its connection closed.
    pub async fn send(
        &self,
        outgoing: &Outgoing,
        body: RequestBody,
        ledger: &mut dyn Ledger,
    ) -> Result<Response<Body>, Error> {
        if let Some(left) = self.refuses_for() {
            return Err(self.open(left));
        }
        let place = self.places.take(outgoing.urgency).await?;
        // It may have opened while the request was in the queue.
        let admitted = self.breaker.as_ref().map(breaker::Breaker::admit).transpose();
        let trial = admitted.map_err(|left| self.open(left))?;
        let deadline = self.settings.total_timeout.map(|total| Instant::now() + total);
        let trip = Trip { outgoing, place: &place, deadline, ledger };
        match self.attempts(trip, body).await {
            Ok(Answered { head, incoming, sent, member }) => {
                let probation = probation(head.status(), member, trial);
                let is_tunnel = head.status() == StatusCode::SWITCHING_PROTOCOLS;
                let exchange = Exchange { sent, probation, _place: place, is_tunnel, companion: None };
                let between_bytes = self.settings.between_bytes_timeout;
                Ok(head.with(Body::new(incoming, exchange, between_bytes, deadline)))
            }
            Err(failed) => {
                if let Some(trial) = trial.filter(|_| failed.is_upstreams_fault()) {
                    trial.failed();
                }
                if failed.error.is_own_want() {
                    self.unable.fetch_add(1, Ordering::Relaxed);
                }
                Err(failed.error)
            }
        }
    }

    /// How long the circuit breaker will refuse requests still.
    fn refuses_for(&self) -> Option<std::time::Duration> {
        self.breaker.as_ref()?.refuses_for()
    }

    fn open(&self, left: std::time::Duration) -> Error {
        self.refused_open.fetch_add(1, Ordering::Relaxed);
        Error::Open { left }
    }
}

/// A server error is a verdict; any other head is one only when the body has not broken.
fn probation(status: StatusCode, member: Arc<members::Member>, trial: Option<Trial>) -> Option<Probation> {
    if status.is_server_error() {
        if let Some(trial) = trial {
            trial.failed();
        }
        return None;
    }
    Some(Probation::begin(member, trial))
}
