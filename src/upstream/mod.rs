//! Sends one request to one of an upstream's origins, within its limits.
//!
//! [`Upstream::send`] takes a place (at most `concurrency_max` exchanges at once, a bounded queue before them), picks an
//! origin, takes an idle connection or makes one, and waits for the head of the response. The returned [`Body`] holds
//! the place and the connection until its end: a connection goes back to the pool only when the request was
//! written and the response was read in full.

mod body;
mod connect;
mod error;
mod pool;
mod request;
mod settings;
mod tls;

pub use body::{Body, BodyError};
pub use connect::{Dial, Transport};
pub use error::Error;
pub use request::{BodyFault, BodyLimits, Outgoing, RequestBody, Urgency};
pub use settings::{Balance, Origin, Protocol, Settings, Tls};
pub use tls::{TlsError, certificates, private_key};

use connect::Connector;
use http::{Response, StatusCode, header};
use pool::{Connection, Pool, Sent};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

/// One named upstream.
#[derive(Debug)]
pub struct Upstream {
    settings: Settings,
    pools: Vec<Arc<Pool>>,
    places: Arc<Semaphore>,
    queued: AtomicUsize,
    turn: AtomicUsize,
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
        let tls = tls::connector(&settings)?;
        let pools = settings
            .origins
            .iter()
            .map(|origin| {
                let connector = Connector::new(origin.clone(), transport.clone(), &settings, tls.clone());
                Arc::new(Pool::new(connector, &settings))
            })
            .collect();
        Ok(Self {
            pools,
            places: Arc::new(Semaphore::new(settings.concurrency_max.min(Semaphore::MAX_PERMITS))),
            queued: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
            settings,
        })
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

    /// The origin chosen for a request, with the less preferred ones behind it for further attempts.
    fn origin(&self, outgoing: &Outgoing, attempt: u32) -> &Arc<Pool> {
        let count = self.pools.len();
        let first = match self.settings.balance {
            Balance::RoundRobin => self.turn.fetch_add(1, Ordering::Relaxed),
            Balance::LeastRequests => {
                let (one, other) = (fastrand::usize(..count), fastrand::usize(..count));
                if self.pools[one].busy() <= self.pools[other].busy() { one } else { other }
            }
            Balance::ConsistentHash => self.rendezvous(outgoing.affinity) + attempt as usize,
        };
        &self.pools[first % count]
    }

    /// Highest random weight: each origin scores the key, the highest wins; a lost origin moves only its own keys.
    fn rendezvous(&self, affinity: u64) -> usize {
        let score = |index: usize| {
            let mixed = (affinity ^ (index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15))
                .wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed ^ (mixed >> 29)
        };
        (0..self.pools.len()).max_by_key(|index| score(*index)).unwrap_or(0)
    }

    async fn attempts(
        &self,
        outgoing: &Outgoing,
        body: RequestBody,
    ) -> Result<(Response<hyper::body::Incoming>, Sent), Error> {
        let mut body = body;
        let mut attempt = 0;
        loop {
            let pool = self.origin(outgoing, attempt);
            let spare = body.replay();
            match self.attempt(pool, outgoing, body, attempt > 0).await {
                Ok(answered) => return Ok(answered),
                Err(failed) => {
                    let replay = match failed.unsent {
                        Some(unsent) => Some(unsent),
                        None if failed.error.may_be_retried() && outgoing.is_idempotent() => spare,
                        None => None,
                    };
                    let Some(replay) = replay.filter(|_| attempt < self.settings.retries) else {
                        return Err(failed.error);
                    };
                    tracing::debug!(upstream = %self.settings.name, error = %failed.error, "trying again");
                    body = replay;
                    attempt += 1;
                }
            }
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
        let connection = match idle {
            Some(connection) => connection,
            None => match pool.connect().await {
                Ok(connection) => connection,
                Err(error) => return Err(Failed { error, unsent: Some(body) }),
            },
        };
        let progress = body.progress();
        let request = outgoing.request(pool.origin(), connection.is_http2(), body);
        let mut sending = pin!(Connection::send(connection, pool, request));
        let mut so_far = None;
        loop {
            if let Ok(answered) = timeout(self.settings.head_timeout, sending.as_mut()).await {
                return answered;
            }
            // An upload that makes progress is not yet waited for; its client's pace has a limit of its own.
            let before = std::mem::replace(&mut so_far, progress.as_ref().and_then(|body| body.so_far()));
            if so_far.is_none() || so_far == before {
                return Err(Failed { error: Error::HeadTimeout, unsent: None });
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
