//! The connections to one origin: busy ones, and idle ones waiting to be used again.

use super::Error;
use super::attempt::Failed;
use super::connect::Connector;
use super::heads::Heads;
use super::health::{Health, Verdict};
use super::request::{Progress, RequestBody};
use super::settings::{Origin, Settings};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::DropGuard;

/// An HTTP/1.1 connection whose response has just been read needs a moment until its task says so.
const READY_WITHIN: Duration = Duration::from_millis(100);

/// The connections to one address of an origin.
#[derive(Debug)]
pub(super) struct Pool {
    /// The upstream's name, for the log.
    upstream: String,
    connector: Connector,
    idle_max: usize,
    idle_timeout: Duration,
    /// Guards the idle connections, the one used last at the end. Held for a push or a pop, never across an await.
    idle: Mutex<Vec<Idle>>,
    /// Guards the one HTTP/2 connection, which all exchanges share. Never held across an await.
    multiplexed: Mutex<Option<http2::SendRequest<RequestBody>>>,
    /// Held while an HTTP/2 connection is made, so that a burst makes one.
    dialing: tokio::sync::Mutex<()>,
    busy: AtomicUsize,
    health: Health,
    /// Nothing is kept any more: another pool has taken its place.
    is_retired: AtomicBool,
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<RequestBody>,
    heads: Arc<Heads>,
    since: Instant,
}

/// A connection to send one request on.
#[derive(Debug)]
pub(super) enum Connection {
    /// HTTP/1.1: exclusively ours, and what is seen of its responses.
    Http1(http1::SendRequest<RequestBody>, Arc<Heads>),
    /// HTTP/2: one stream of it is ours.
    Http2(http2::SendRequest<RequestBody>),
}

/// An exchange whose head has come: what must be done with the connection at the end of the body.
#[derive(Debug)]
pub(super) struct Sent {
    pool: Arc<Pool>,
    connection: Option<(http1::SendRequest<RequestBody>, Arc<Heads>)>,
    /// How much of the request has been handed over; `None`: all of it.
    request_progress: Option<Arc<Progress>>,
    /// Gives up what is left of the request's body when the exchange is over.
    _request_body: Option<DropGuard>,
}

impl Sent {
    /// Whether the request was written in full.
    pub(super) fn is_written(&self) -> bool {
        self.request_progress.as_ref().is_none_or(|progress| progress.is_at_end())
    }

    /// Whether the upstream has sent more than a body of this length.
    pub(super) fn has_surplus(&self, body_bytes: u64) -> bool {
        self.connection.as_ref().is_some_and(|(_, heads)| heads.has_surplus(body_bytes))
    }

    /// The response was read in full: the connection may serve again, if the request was written in full.
    pub(super) fn complete(&mut self) {
        let is_written = self.is_written();
        if let Some((sender, heads)) = self.connection.take()
            && is_written
        {
            self.pool.put_back(sender, heads);
        }
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.pool.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    pub(super) fn new(connector: Connector, settings: &Settings, health: Health) -> Self {
        Self {
            upstream: settings.name.clone(),
            connector,
            idle_max: settings.idle_connections_max,
            idle_timeout: settings.idle_timeout,
            idle: Mutex::default(),
            multiplexed: Mutex::default(),
            dialing: tokio::sync::Mutex::default(),
            busy: AtomicUsize::new(0),
            health,
            is_retired: AtomicBool::new(false),
        }
    }

    /// Whether the origin is fit to be chosen.
    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// Takes the result of a request into account.
    pub(super) fn judge(&self, verdict: Verdict) {
        if self.health.judge(verdict) {
            let (upstream, origin) = (self.upstream.as_str(), self.origin().authority());
            let address = self.connector.address().map(tracing::field::display);
            tracing::warn!(
                upstream,
                origin,
                address,
                "ejected: it gets requests only where there is no other"
            );
        }
    }

    /// A connection of one's own, whatever the pool has.
    pub(super) async fn dial(&self) -> Result<Connection, Error> {
        self.connector.connect().await
    }

    pub(super) fn origin(&self) -> &Origin {
        self.connector.origin()
    }

    /// The address, where it is one of several or may change.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.connector.address()
    }

    /// Exchanges in flight.
    pub(super) fn busy(&self) -> usize {
        self.busy.load(Ordering::Relaxed)
    }

    /// A connection that is open and free, if there is one.
    pub(super) async fn idle(&self) -> Option<Connection> {
        if let Some(sender) = self.multiplexed() {
            return Some(Connection::Http2(sender));
        }
        loop {
            let Idle { mut sender, heads, since } = self.idle.lock().pop()?;
            if since.elapsed() >= self.idle_timeout {
                // The rest of the stack has been idle for longer still.
                self.idle.lock().clear();
                return None;
            }
            if sender.is_ready() {
                return Some(Connection::Http1(sender, heads));
            }
            let ready = tokio::time::timeout(READY_WITHIN, sender.ready()).await;
            if matches!(ready, Ok(Ok(()))) {
                return Some(Connection::Http1(sender, heads));
            }
        }
    }

    /// A new connection, or for HTTP/2 the one that another request has just made.
    pub(super) async fn connect(&self) -> Result<Connection, Error> {
        if !self.connector.is_http2_only() {
            return self.keep(self.connector.connect().await?);
        }
        let _dialing = self.dialing.lock().await;
        if let Some(sender) = self.multiplexed() {
            return Ok(Connection::Http2(sender));
        }
        self.keep(self.connector.connect().await?)
    }

    #[expect(clippy::unnecessary_wraps, reason = "it ends both branches of connect")]
    fn keep(&self, connection: Connection) -> Result<Connection, Error> {
        if let Connection::Http2(sender) = &connection {
            let mut multiplexed = self.multiplexed.lock();
            if !self.is_retired.load(Ordering::Acquire) {
                *multiplexed = Some(sender.clone());
            }
        }
        Ok(connection)
    }

    fn multiplexed(&self) -> Option<http2::SendRequest<RequestBody>> {
        let mut multiplexed = self.multiplexed.lock();
        if multiplexed.as_ref().is_some_and(http2::SendRequest::is_closed) {
            *multiplexed = None;
        }
        multiplexed.clone()
    }

    /// Closes what is idle, and keeps nothing from here on.
    pub(super) fn retire(&self) {
        self.is_retired.store(true, Ordering::Release);
        self.idle.lock().clear();
        *self.multiplexed.lock() = None;
    }

    fn put_back(&self, sender: http1::SendRequest<RequestBody>, heads: Arc<Heads>) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock();
        // Asked under the lock, so that none comes after `retire` has cleared them.
        if idle.len() < self.idle_max && !self.is_retired.load(Ordering::Acquire) {
            idle.push(Idle { sender, heads, since: Instant::now() });
        }
    }
}

impl Connection {
    pub(super) fn is_http2(&self) -> bool {
        match self {
            Self::Http1(..) => false,
            Self::Http2(_) => true,
        }
    }

    /// Sends the request and waits for the head of the final response.
    pub(super) async fn send(
        self,
        pool: &Arc<Pool>,
        request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Sent), Failed> {
        pool.busy.fetch_add(1, Ordering::Relaxed);
        let mut sent = Sent {
            pool: Arc::clone(pool),
            connection: None,
            request_progress: request.body().progress(),
            _request_body: request.body().end_with(),
        };
        let (answered, is_silent) = match self {
            Self::Http1(mut sender, heads) => {
                heads.expect();
                let answered = sender.try_send_request(request).await;
                let is_silent = heads.is_silent();
                sent.connection = Some((sender, heads));
                (answered, is_silent)
            }
            Self::Http2(mut sender) => {
                let answered = sender.try_send_request(request).await;
                // A stream that is reset was answered, in a way.
                (answered, sender.is_closed())
            }
        };
        match answered {
            Ok(response) => Ok((response, sent)),
            Err(mut failed) => {
                let unsent = failed.take_message().map(Request::into_body);
                let flaw = sent.connection.as_ref().and_then(|(_, heads)| heads.flaw());
                let error = flaw.map_or_else(|| Error::of_exchange(failed.into_error()), Error::Malformed);
                Err(Failed { unsent, is_silent, ..Failed::with(error) })
            }
        }
    }
}
