//! Sends one request to one of an upstream's origins, within its limits.
//!
//! [`Upstream::send`] takes a place (at most `concurrency_max` exchanges at once, a bounded queue before them), picks an
//! origin, takes an idle connection or makes one, and waits for the head of the response. The returned [`Body`] holds
//! the place and the connection until its end: a connection goes back to the pool only when the request was
//! written and the response was read in full.

mod balance;
mod body;
mod check;
mod connect;
mod error;
mod health;
mod pool;
mod request;
mod settings;
mod tls;

pub use body::{Body, BodyError};
pub use connect::{Dial, Transport};
pub use error::Error;
pub use request::{BodyFault, BodyLimits, Outgoing, RequestBody, Urgency};
pub use settings::{Balance, Check, Ejection, Origin, Protocol, Settings, Tls};
pub use tls::{TlsError, certificates, private_key};

use balance::Chooser;
use connect::Connector;
use health::{RetryBudget, Verdict};
use http::{Response, StatusCode, header};
use parking_lot::Mutex;
use pool::{Connection, Pool, Sent};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tls::{Material, Prepared};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

/// One named upstream.
#[derive(Debug)]
pub struct Upstream {
    settings: Settings,
    pools: Vec<Arc<Pool>>,
    places: Arc<Semaphore>,
    queued: AtomicUsize,
    chooser: Chooser,
    retry_budget: RetryBudget,
    /// What the certificates and keys are for which it was prepared.
    material: Material,
    /// What upstreams of this name counted before it.
    counted_before: Numbers,
    /// The tasks that check origins; they end with the upstream, or when it retires. Taken to end them, never held across
    /// an await.
    checks: Mutex<JoinSet<()>>,
}

/// What is counted by an upstream itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Numbers {
    /// Requests sent again.
    pub retries: u64,
    /// Requests that would have been sent again, had the budget permitted it.
    pub retries_refused: u64,
    /// Each origin's authority, whether it is fit to be chosen, and how often it was ejected.
    pub origins: Vec<(String, bool, u64)>,
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
        let Prepared { connector: tls, material } = tls;
        let pools: Vec<_> = settings
            .origins
            .iter()
            .map(|origin| {
                let connector = Connector::new(origin.clone(), transport.clone(), &settings, tls.clone());
                Arc::new(Pool::new(connector, &settings))
            })
            .collect();
        Self {
            places: Arc::new(Semaphore::new(settings.concurrency_max.min(Semaphore::MAX_PERMITS))),
            queued: AtomicUsize::new(0),
            chooser: Chooser::new(settings.balance),
            retry_budget: RetryBudget::new(settings.retry_budget),
            material,
            counted_before,
            checks: Mutex::new(checks(&settings, &pools)),
            pools,
            settings,
        }
    }

    /// Stops checking origins and closes idle connections, because another upstream takes its place. What is in flight ends
    /// as it would have.
    pub fn retire(&self) {
        self.checks.lock().abort_all();
        self.pools.iter().for_each(|pool| pool.retire());
    }

    /// What it has counted.
    pub fn numbers(&self) -> Numbers {
        let (retries, retries_refused) = self.retry_budget.counts();
        let before = &self.counted_before;
        let origins = self.pools.iter().map(|pool| {
            let (health, authority) = (pool.health(), pool.origin().authority());
            let namesake = before.origins.iter().find(|(known, ..)| *known == authority);
            let ejections_before = namesake.map_or(0, |(_, _, ejections)| *ejections);
            (authority, health.is_fit(), ejections_before + health.ejections())
        });
        Numbers {
            retries: before.retries + retries,
            retries_refused: before.retries_refused + retries_refused,
            origins: origins.collect(),
        }
    }

    /// What it was told.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Sends the request and waits for the head of the final response.
    ///
    /// A request that provably never reached the upstream (its connection was already closed) is sent again on a new
    /// connection, whatever its method. One that may have reached it is sent again only if the method is idempotent, the
    /// body is at hand, and the connection broke before any byte of the answer.
    ///
    /// Cancel-safe: dropped, the exchange is given up and its connection closed.
    pub async fn send(&self, outgoing: &Outgoing, body: RequestBody) -> Result<Response<Body>, Error> {
        let place = self.place(outgoing.urgency).await?;
        let deadline = self.settings.total_timeout.map(|total| Instant::now() + total);
        let (response, sent) = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, self.attempts(outgoing, body))
                .await
                .map_err(|_| Error::HeadTimeout)??,
            None => self.attempts(outgoing, body).await?,
        };
        check(&response, outgoing)?;
        let between_bytes = self.settings.between_bytes_timeout;
        Ok(response.map(|incoming| Body::new(incoming, sent, place, between_bytes, deadline)))
    }

    async fn attempts(
        &self,
        outgoing: &Outgoing,
        body: RequestBody,
    ) -> Result<(Response<hyper::body::Incoming>, Sent), Error> {
        self.retry_budget.deposit();
        let mut body = body;
        let (mut retries, mut failed_at, mut is_renewed) = (0, None, false);
        loop {
            let index = self.chooser.choose(&self.pools, outgoing, failed_at);
            let spare = body.replay();
            let failed =
                match self.attempt(&self.pools[index], outgoing, body, is_renewed || retries > 0).await {
                    Ok(answered) => {
                        self.judge(
                            index,
                            if answered.0.status().is_server_error() { Verdict::Bad } else { Verdict::Good },
                        );
                        return Ok(answered);
                    }
                    Err(failed) => failed,
                };
            let replay = match failed.unsent {
                Some(unsent) => Some(unsent),
                None if failed.error.may_be_retried() && outgoing.is_idempotent() => spare,
                None => None,
            };
            // That an idle connection has died is nobody's fault, and a new one costs the upstream nothing extra.
            if failed.was_idle
                && !is_renewed
                && let Some(replay) = replay
            {
                (body, is_renewed) = (replay, true);
                continue;
            }
            if failed.error.is_upstreams_fault() {
                self.judge(index, Verdict::Bad);
            }
            let may = |_: &RequestBody| retries < self.settings.retries && self.retry_budget.withdraw();
            let Some(replay) = replay.filter(may) else { return Err(failed.error) };
            tracing::debug!(upstream = %self.settings.name, error = %failed.error, "trying again");
            tokio::time::sleep(RETRY_PAUSE_MAX.mul_f64(fastrand::f64()) * retries).await;
            (body, failed_at) = (replay, Some(index));
            retries += 1;
        }
    }

    fn judge(&self, index: usize, verdict: Verdict) {
        let pool = &self.pools[index];
        if pool.health().judge(verdict) && self.pools.len() > 1 {
            tracing::warn!(upstream = %self.settings.name, origin = pool.origin().authority(), "ejected an origin");
        }
    }

    async fn attempt(
        &self,
        pool: &Arc<Pool>,
        outgoing: &Outgoing,
        body: RequestBody,
        again: bool,
    ) -> Result<(Response<hyper::body::Incoming>, Sent), Failed> {
        // A connection that is to be upgraded never returns, and a second attempt must not meet another dead idle one.
        let idle = if outgoing.upgrade || again { None } else { pool.idle().await };
        let was_idle = idle.is_some();
        let connection = match idle {
            Some(connection) => connection,
            None => match pool.connect().await {
                Ok(connection) => connection,
                Err(error) => return Err(Failed { error, unsent: Some(body), was_idle }),
            },
        };
        let progress = body.progress();
        let request = outgoing.request(pool.origin(), connection.is_http2(), body);
        let mut sending = pin!(Connection::send(connection, pool, request));
        // The head is waited for from the moment at which the upstream has all of the request that has come so far: an
        // upload takes its time, and its client's pace has a limit of its own.
        let mut since = Instant::now();
        loop {
            if let Ok(answered) = timeout_at(since + self.settings.head_timeout, sending.as_mut()).await {
                return answered.map_err(|failed| Failed { was_idle, ..failed });
            }
            match progress.as_ref().and_then(|body| body.latest()) {
                Some(latest) if latest > since => since = latest,
                Some(_) | None => {
                    return Err(Failed { error: Error::HeadTimeout, unsent: None, was_idle: false });
                }
            }
        }
    }

    async fn place(&self, urgency: Urgency) -> Result<OwnedSemaphorePermit, Error> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(place);
        }
        if urgency == Urgency::Background {
            return Err(Error::Busy);
        }
        let _queued = Queued::enter(&self.queued, self.settings.queue_max).ok_or(Error::Busy)?;
        match timeout(self.settings.queue_timeout, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            // The semaphore is never closed, so only the time limit leads here.
            Ok(Err(_)) | Err(_) => Err(Error::Busy),
        }
    }
}

/// An attempt that failed, with the request's body where none of it was sent.
#[derive(Debug)]
struct Failed {
    error: Error,
    unsent: Option<RequestBody>,
    /// Whether the connection came from the pool.
    was_idle: bool,
}

/// The longest pause before a second retry; a random part of it is waited, and of its multiples before further ones.
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(50);

fn checks(settings: &Settings, pools: &[Arc<Pool>]) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    // Outside of a runtime a configuration is looked at, not served.
    if let (Some(check), Ok(runtime)) = (&settings.check, Handle::try_current()) {
        for pool in pools {
            tasks.spawn_on(check::check(settings.name.clone(), Arc::clone(pool), check.clone()), &runtime);
        }
    }
    tasks
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

/// Refuses heads that the client side of hyper accepts and that must not be passed on.
fn check<B>(response: &Response<B>, outgoing: &Outgoing) -> Result<(), Error> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && !outgoing.upgrade {
        return Err(Error::Malformed("a 101 that was not asked for"));
    }
    let mut lengths = response.headers().get_all(header::CONTENT_LENGTH).iter();
    // RFC 9110 §8.6 would let equal ones be merged; whoever sends several has not made up its mind.
    if lengths.next().is_some_and(|length| !length.as_bytes().iter().all(u8::is_ascii_digit))
        || lengths.next().is_some()
    {
        return Err(Error::Malformed("more than one Content-Length"));
    }
    let mut codings = response.headers().get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => {
            if response.headers().contains_key(header::CONTENT_LENGTH) {
                return Err(Error::Malformed("both Content-Length and Transfer-Encoding"));
            }
            Ok(())
        }
        // Read to the end of the connection, such a body would look complete wherever it stops.
        _ => Err(Error::Malformed("a transfer coding other than chunked")),
    }
}
