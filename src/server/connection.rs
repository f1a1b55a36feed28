//! One client connection from accept to close.

use super::activity::{Activity, Busy, Idle};
use super::clients::Clients;
use super::delivery::{Delivery, Paced, Streams};
use super::express::{self, Express, Limits};
use super::lingering::{self, Parting};
use super::on_call::OnCall;
use super::patience::Patience;
use super::proxy_protocol::{self, Source};
use super::refusal::Refusal;
use super::seen::Seen;
use super::stream::Breakable;
use super::wire::{self, ExpressEnd};
use super::{Ends, Place, Settings, tls};
use crate::boxed::{Apart, boxed};
use crate::proxy::{Body, Client, Flaw, Held, Proxy, Serving, Shortcut};
use crate::telemetry::{RefusalCause, Telemetry, TlsFailure};
use http::{HeaderValue, Response, StatusCode, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulConnection;
use std::convert::Infallible;
use std::error::Error as _;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// What all connections of the data port have in common that were accepted under one configuration.
pub(super) struct Connections {
    http: Builder<Streams>,
    patience: Patience,
    tls: Option<TlsAcceptor>,
    header_read_timeout: Duration,
    idle_timeout: Duration,
    pub(super) requests_max: Option<u64>,
    limits: Limits,
    expects_proxy_header: bool,
    clients: Arc<Clients>,
    proxy: Arc<Proxy>,
    telemetry: Arc<Telemetry>,
    pub(super) ends: Ends,
}

/// What ended a connection before its time.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What a connection is told beside its bytes.
enum Call {
    /// It is to end: with a drain when it can, and at last at once.
    End,
    /// It has had all the requests that it may have.
    Exhausted,
    Idle(Idle),
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Connections").finish_non_exhaustive()
    }
}

impl Connections {
    pub(super) fn new(
        settings: &Settings,
        tls: Option<TlsAcceptor>,
        clients: Arc<Clients>,
        proxy: Arc<Proxy>,
        telemetry: Arc<Telemetry>,
        ends: Ends,
    ) -> Self {
        let patience = Patience::new(settings, &telemetry);
        Self {
            http: http(settings, Streams { patience: patience.clone(), tasks: ends.streams.clone() }),
            patience,
            tls,
            header_read_timeout: settings.header_read_timeout,
            idle_timeout: settings.idle_timeout,
            requests_max: settings.requests_per_connection_max,
            limits: Limits { bytes_max: settings.header_bytes_max, fields_max: settings.header_count_max },
            expects_proxy_header: settings.proxy_protocol,
            clients,
            proxy,
            telemetry,
            ends,
        }
    }

    /// Serves the connection until it ends. A tunnel that it becomes keeps its place.
    pub(super) async fn serve(self: Arc<Self>, mut stream: TcpStream, peer: SocketAddr, place: Place) {
        let Some(address) = self.client_address(&mut stream, peer).await else { return };
        let Some(admitted) = self.clients.admit(address.ip()) else {
            return self.telemetry.connection_refused(RefusalCause::ClientLimit);
        };
        let held = Held::new(Arc::new((place, admitted, self.telemetry.connected())));
        // Answers must not wait for acknowledgements; where it fails they merely do.
        let _ = stream.set_nodelay(true);
        let stream = Paced::new(stream, self.patience.clone());
        // Neither makes room for the other.
        let speaking: Apart<'_, _> = match self.tls.clone() {
            None => boxed(|| self.speak(stream, Client { address, is_tls: false }, held)),
            Some(tls) => boxed(|| self.speak_tls(tls, stream, address, held)),
        };
        speaking.await;
    }

    async fn speak_tls(
        self: Arc<Self>,
        tls: TlsAcceptor,
        stream: Paced<TcpStream>,
        address: SocketAddr,
        held: Held,
    ) {
        let accepting = timeout(self.header_read_timeout, tls.accept(stream));
        let Some(accepted) = self.ends.cut_off.run_until_cancelled(accepting).await else { return };
        match accepted {
            Ok(Ok(stream)) => self.speak(stream, Client { address, is_tls: true }, held).await,
            Ok(Err(error)) => self.telemetry.tls_failed(address, tls::reason(&error), &error),
            Err(elapsed) => self.telemetry.tls_failed(address, TlsFailure::TimedOut, &elapsed),
        }
    }

    /// The client's address: the peer's, or what a load balancer in between says. `None` where it says nothing valid.
    async fn client_address(&self, stream: &mut TcpStream, peer: SocketAddr) -> Option<SocketAddr> {
        if !self.expects_proxy_header {
            return Some(peer);
        }
        let reading = timeout(self.header_read_timeout, proxy_protocol::read(stream));
        match self.ends.cut_off.run_until_cancelled(reading).await? {
            Ok(Ok(Source::Client(address))) => Some(address),
            Ok(Ok(Source::Unnamed)) => Some(peer),
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "refused a connection");
                self.telemetry.connection_refused(RefusalCause::Malformed);
                None
            }
            Err(_) => {
                self.telemetry.connection_refused(RefusalCause::SlowHead);
                None
            }
        }
    }

    /// Serves a connection of any kind, without TLS, until it ends.
    pub(super) async fn serve_plain<S>(self: Arc<Self>, stream: S, address: SocketAddr)
    where
        S: Breakable + Send + 'static,
    {
        let held = Held::new(Arc::new(self.telemetry.connected()));
        let stream = Paced::new(stream, self.patience.clone());
        self.speak(stream, Client { address, is_tls: false }, held).await;
    }

    async fn speak<S>(self: Arc<Self>, stream: S, client: Client, held: Held)
    where
        S: Breakable + Send + 'static,
    {
        let seen = Arc::new(Seen::default());
        let activity = Arc::new(Activity::new(self.header_read_timeout, self.idle_timeout));
        let express = Express::new(Arc::clone(&self), client, Arc::clone(&activity), Arc::clone(&seen));
        let (noted, read, shared) = (Arc::clone(&activity), Arc::clone(&seen), Arc::clone(&self));
        let service = service_fn(move |request| shared.take(request, client, &noted, &read, &held));
        let (io, express) = wire::ends(stream, Arc::clone(&seen), express);
        let mut connection = pin!(self.http.serve_connection_with_upgrades(TokioIo::new(io), service));
        let parting = self.attend(connection.as_mut(), &express, (&activity, &seen), client).await;
        let parted = boxed(|| lingering::part(&express, parting));
        self.ends.cut_off.run_until_cancelled(parted).await;
    }

    /// Sees to a connection until hyper is done with it. Returns how it is to be parted from.
    async fn attend<S, C>(
        &self,
        mut connection: Pin<&mut C>,
        express: &ExpressEnd<S>,
        (activity, seen): (&Activity, &Seen),
        client: Client,
    ) -> Parting
    where
        S: Breakable,
        C: GracefulConnection<Error = Failure>,
    {
        let (mut is_ending, mut is_draining) = (false, false);
        loop {
            let next_end = if is_draining { &self.ends.cut_off } else { &self.ends.draining };
            let told = OnCall::new(async {
                tokio::select! {
                    () = activity.exhausted.notified(), if !is_ending => Call::Exhausted,
                    idle = activity.idle(seen, self.header_read_timeout) => Call::Idle(idle),
                }
            });
            let call = tokio::select! {
                // In this order, an answer that comes after the drain has begun says `Connection: close`, and a connection for
                // which something has come does not idle.
                biased;
                () = OnCall::new(next_end.cancelled()) => Call::End,
                ended = poll_fn(|context| express.poll_beside(connection.as_mut(), context)) => {
                    return self.ended(client, seen, ended.err());
                }
                call = told => call,
            };
            match call {
                Call::End if is_draining => {
                    // An orderly end could be taken for that of a body.
                    seen.broke_off();
                    return Parting::Abrupt;
                }
                Call::End => {
                    is_draining = true;
                    express.retire();
                    if is_ending {
                        continue;
                    }
                    // Its request may be on the way: to close it at once would be to lose that.
                    is_ending = !activity.awaits_one_more(self.header_read_timeout);
                }
                // It has never sent a request: there is nothing to end gracefully.
                Call::Idle(Idle::FromTheStart) => return Parting::Abrupt,
                // It was told to end, and does not.
                Call::Idle(Idle::AfterRequests) if is_ending => return Parting::Abrupt,
                Call::Exhausted | Call::Idle(Idle::AfterRequests) => is_ending = true,
                Call::Idle(Idle::InHead) => {
                    self.telemetry.connection_refused(RefusalCause::SlowHead);
                    self.refused(Refusal::HeadTooSlow, client, seen);
                    seen.give_up();
                    // The read that fails now writes the answer.
                    let _ = connection.as_mut().await;
                    // Who is too slow is not to have more time than others.
                    return Parting::Brief;
                }
            }
            if is_ending {
                if activity.is_busy() {
                    seen.end_unexpectedly();
                }
                activity.end(self.header_read_timeout);
                express.retire();
                connection.as_mut().graceful_shutdown();
            }
        }
    }

    /// A request has come, and hyper has read its head.
    fn take(
        &self,
        mut request: hyper::Request<Incoming>,
        client: Client,
        activity: &Arc<Activity>,
        seen: &Arc<Seen>,
        held: &Held,
    ) -> Answering {
        let is_stream = request.version() >= Version::HTTP_2;
        let (busy, number, begun) = activity.busy(!is_stream);
        if seen.begin(number) {
            request.extensions_mut().insert(Flaw::Ambiguous);
        } else if self.limits.refuse(&request) {
            request.extensions_mut().insert(Flaw::TooLarge);
        }
        let asks_for_upgrade = request.headers().contains_key(header::UPGRADE);
        if asks_for_upgrade {
            request.extensions_mut().insert(held.clone());
        }
        let has_more = asks_for_upgrade || !request.body().is_end_stream();
        // A connection that a drain finds waiting for a request has that one.
        let is_last =
            self.requests_max.is_some_and(|most| number >= most) || self.ends.draining.is_cancelled();
        if is_last {
            activity.exhausted.notify_one();
            seen.end_unexpectedly();
        }
        let answered = self.proxy.serve(request, client, begun);
        if matches!(answered, Serving::Now(_)) {
            seen.at_hand();
            if !is_last {
                activity.may_go_on_express();
            }
        }
        let seen = (has_more && !is_stream).then(|| Arc::clone(seen));
        Answering { serving: answered, is_last, is_stream, seen, busy: Some(busy) }
    }

    /// How many of these bytes are the request that they begin with, and what it comes to, if it needs no tables.
    pub(super) fn shortcut(&self, bytes: &[u8], client: Client) -> Option<(usize, Shortcut)> {
        express::read(bytes, self.limits, |request| self.proxy.shortcut(&request, client))
    }

    /// What has come of a request, or in its place, is refused.
    pub(super) fn refused(&self, refusal: Refusal, client: Client, seen: &Seen) {
        let since = seen.in_head_since().map_or(Duration::ZERO, |since| since.elapsed());
        refusal.count(&self.telemetry, client, since);
    }

    /// hyper is done with a connection. Returns how it is to be parted from.
    fn ended(&self, client: Client, seen: &Seen, error: Option<Failure>) -> Parting {
        let Some(error) = error else { return seen.parting() };
        tracing::debug!(address = %client.address, %error, "a connection ended");
        let Some(error) = error.downcast_ref::<hyper::Error>() else { return Parting::Abrupt };
        if error.is_parse() {
            self.telemetry.connection_refused(RefusalCause::Malformed);
        } else if error.is_user() {
            seen.broke_off();
        } else if let Some(error) = error.source().and_then(|cause| cause.downcast_ref::<h2::Error>())
            // Others are what the client says, or the end of the connection.
            && error.is_library()
        {
            let is_flood = error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM);
            let cause = if is_flood { RefusalCause::Flood } else { RefusalCause::Malformed };
            self.telemetry.http2_refused(client.address, cause, error);
        }
        if error.is_parse() { Parting::Patient } else { Parting::Abrupt }
    }
}

/// The answer to a request, as the connection sends it.
//
// Not an `async fn`: that would have room for what it waits for twice, and hyper moves it about.
struct Answering {
    serving: Serving,
    is_last: bool,
    is_stream: bool,
    /// What is seen of what comes behind the request's head, where that is more than the next request.
    seen: Option<Arc<Seen>>,
    /// `None` when the answer has come.
    busy: Option<Busy>,
}

impl Future for Answering {
    type Output = Result<Response<Delivery>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let response = ready!(Pin::new(&mut self.serving).poll(context));
        if response.body().goes_through()
            && !self.is_last
            && let Some(busy) = &self.busy
        {
            busy.may_go_on_express();
        }
        let mut is_last = self.is_last;
        if let Some(seen) = &self.seen {
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                seen.become_tunnel();
            }
            if seen.is_in_body() {
                // Where the next request begins will not be found out.
                seen.end_unexpectedly();
                is_last = true;
            }
        }
        let response = if is_last && !self.is_stream { closing(response) } else { response };
        let busy = self.busy.take().expect("a future is polled to its end once");
        Poll::Ready(Ok(response.map(|body| Delivery::new(body, self.is_stream, busy))))
    }
}

/// Tells the client that no further request is taken here.
fn closing(mut response: Response<Body>) -> Response<Body> {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// How many fields hyper takes where it is not told.
const HYPER_HEADERS_MAX: usize = 100;

/// Heads over HTTP/2 up to so many times the limit are refused by us, as over HTTP/1: logged, counted, and with a text. What is larger
/// still the library refuses by itself, with a bare 431, or ends the connection.
const HTTP2_HEAD_FACTOR: usize = 2;

fn http(settings: &Settings, streams: Streams) -> Builder<Streams> {
    let mut http = Builder::new(streams);
    http.http1()
        // Heads are timed by the connection, which can tell an idle client from a slow one, and answers the slow one.
        .header_read_timeout(None)
        .max_buf_size(settings.header_bytes_max)
        // A client that closes its half of the connection has left. To wait for it would mean not to notice those that
        // really leave, and to fetch for nobody.
        .half_close(false)
        // Bodies are not copied into a buffer that every connection would have to keep; see `HyperEnd::poll_write_vectored`.
        .writev(true);
    if settings.header_count_max != HYPER_HEADERS_MAX {
        // Where it is told a number, hyper allocates for each request.
        http.http1().max_headers(settings.header_count_max);
    }
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.http2_streams_max)
        .max_header_list_size(
            u32::try_from(settings.header_bytes_max * HTTP2_HEAD_FACTOR).unwrap_or(u32::MAX),
        )
        .adaptive_window(true)
        .keep_alive_interval(settings.idle_timeout / 2)
        .keep_alive_timeout(settings.header_read_timeout);
    http
}
