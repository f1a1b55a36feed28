//! The connections to one origin: busy ones, and idle ones waiting to be used again.

use super::Error;
use super::alarm::Alarm;
use super::attempt::Failed;
use super::body::{Head, Incoming};
use super::connect::Connector;
use super::health::{Health, Verdict};
use super::http1::{self, Line, Taker};
use super::idle::Idle;
use super::inbound::Inbound;
use super::request::{Outgoing, Progress, RequestBody};
use super::settings::{Origin, Settings};
use http::{Method, Request, Response};
use hyper::client::conn::http2;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use tokio::time::{Instant, timeout};
use tokio_util::sync::DropGuard;

/// The connections to one address of an origin.
#[derive(Debug)]
pub(super) struct Pool {
    /// The upstream's name, for the log.
    upstream: String,
    connector: Connector,
    idle: Arc<Idle>,
    /// Guards the one HTTP/2 connection, which all exchanges share. Never held across an await.
    multiplexed: Mutex<Option<http2::SendRequest<RequestBody>>>,
    /// Held while a connection is made to an origin that only HTTP/2 is spoken to, so that a burst makes one.
    dialing: tokio::sync::Mutex<()>,
    busy: AtomicUsize,
    health: Health,
    /// Nothing is kept any more: another pool has taken its place.
    is_retired: AtomicBool,
}

/// A connection to send one request on.
#[derive(Debug)]
pub(super) enum Connection {
    /// HTTP/1.1: exclusively ours.
    Http1(Line),
    /// HTTP/2: one stream of it is ours.
    Http2(http2::SendRequest<RequestBody>),
}

/// A request on its way, whose answer has not begun.
pub(super) struct Asking {
    way: Way,
    /// `None` once the head of the answer has come.
    sent: Option<Sent>,
}

enum Way {
    Http1(http1::Asking),
    Http2(Pin<Box<dyn Future<Output = Asked> + Send>>, Alarm),
}

/// What a request comes to.
type Asked = Result<(Head, Incoming), Failed>;

/// An exchange whose head has come: what must be done with the connection at the end of the body.
#[derive(Debug)]
pub(super) struct Sent {
    pool: Arc<Pool>,
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

    /// The response was read in full: the connection may serve again.
    pub(super) fn complete(&self, line: Option<Line>) {
        if let Some(line) = line {
            self.pool.put_back(line);
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
            idle: Arc::new(Idle::new(settings.idle_connections_max, settings.idle_timeout)),
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

    /// A connection of one's own that can be upgraded.
    pub(super) async fn dial_to_upgrade(&self) -> Result<Connection, Error> {
        self.connector.connect_to_upgrade().await
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

    /// A connection that is open and free at this moment, if there is one.
    pub(super) fn idle(&self, now: Instant) -> Option<Connection> {
        match self.multiplexed() {
            Some(sender) => Some(Connection::Http2(sender)),
            None => self.idle.take(now).map(Connection::Http1),
        }
    }

    /// A new connection, or for HTTP/2 the one that another request has just made, within the connect time limit.
    pub(super) async fn connect(&self) -> Result<Connection, Error> {
        if !self.connector.is_http2_only() {
            return self.keep(self.connector.connect().await?);
        }
        let connecting = async {
            let _dialing = self.dialing.lock().await;
            match self.multiplexed() {
                Some(sender) => Ok(Connection::Http2(sender)),
                None => self.keep(self.connector.connect().await?),
            }
        };
        // To wait for another's is to wait for a connection, too.
        timeout(self.connector.connect_timeout(), connecting).await.unwrap_or(Err(Error::ConnectTimeout))
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
        self.idle.close();
        *self.multiplexed.lock() = None;
    }

    fn put_back(&self, line: Line) {
        self.idle.put(line);
    }
}

impl Connection {
    /// Begins to send the request.
    pub(super) fn ask(self, pool: &Arc<Pool>, outgoing: &Outgoing, body: RequestBody) -> Asking {
        pool.busy.fetch_add(1, Ordering::Relaxed);
        let sent = Sent {
            pool: Arc::clone(pool),
            request_progress: body.progress(),
            _request_body: body.end_with(),
        };
        let way = match self {
            Self::Http1(line) => Way::Http1(line.ask(outgoing, pool.origin(), body)),
            Self::Http2(sender) => {
                let request = outgoing.request_http2(pool.origin(), body);
                Way::Http2(Box::pin(ask_over_http2(sender, request)), Alarm::default())
            }
        };
        Asking { way, sent: Some(sent) }
    }
}

async fn ask_over_http2(mut sender: http2::SendRequest<RequestBody>, request: Request<RequestBody>) -> Asked {
    match sender.try_send_request(request).await {
        Ok(response) => {
            let (version, (head, incoming)) = (response.version(), response.into_parts());
            let head = Head::Table(Box::new(Response::from_parts(head, ())));
            Ok((head, Incoming::Http2(Inbound::new(incoming, version))))
        }
        Err(mut failed) => {
            let unsent = failed.take_message().map(Request::into_body);
            let error = Error::of_exchange(failed.into_error());
            // A stream that is reset was answered, in a way.
            let is_silent = sender.is_closed();
            Err(Failed { unsent, is_silent, ..Failed::with(error) })
        }
    }
}

impl Asking {
    /// Sends the request and waits for the head of the final response, whose fields may be taken as they lie.
    ///
    /// Cancel-safe: dropped, the exchange is given up, and its connection closed if it has one of its own.
    pub(super) fn poll_head(
        &mut self,
        context: &mut Context<'_>,
        method: &Method,
        taker: &mut Taker<'_>,
    ) -> Poll<Result<(Head, Incoming, Sent), Failed>> {
        let (head, incoming) = match &mut self.way {
            Way::Http1(asking) => match ready!(asking.poll_head(context, method, taker)) {
                Ok((head, incoming)) => (head, Incoming::Http1(incoming)),
                Err(http1::Failed { error, unsent, is_silent }) => {
                    return Poll::Ready(Err(Failed { unsent, is_silent, ..Failed::with(error) }));
                }
            },
            Way::Http2(asking, _) => ready!(asking.as_mut().poll(context))?,
        };
        Poll::Ready(Ok((head, incoming, self.sent.take().expect("a head is waited for once"))))
    }

    /// Waits until this moment.
    pub(super) fn poll_alarm(&mut self, until: Instant, context: &mut Context<'_>) -> Poll<()> {
        match &mut self.way {
            Way::Http1(asking) => asking.poll_alarm(until, context),
            Way::Http2(_, alarm) => alarm.poll(until, context),
        }
    }
}
