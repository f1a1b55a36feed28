//! One client connection from accept to close.

use super::activity::{Activity, Idle};
use super::clients::Clients;
use super::delivery::{Delivery, Paced, Streams};
use super::express::{self, Express, Limits};
use super::on_call::OnCall;
use super::patience::Patience;
use super::proxy_protocol::{self, Source};
use super::refusal::Refusal;
use super::wire::{Breakable, Seen, Wire};
use super::{Place, Settings};
use crate::proxy::{AtHand, Body, Client, Flaw, Held, Proxy, Serving};
use crate::telemetry::{RefusalCause, Telemetry};
use http::{HeaderValue, Response, Version, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

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
    draining: CancellationToken,
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
        draining: CancellationToken,
    ) -> Self {
        let patience = Patience::new(settings, &telemetry);
        Self {
            http: http(settings, patience.clone()),
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
            draining,
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
        let Some(tls) = &self.tls else {
            return self.speak(stream, Client { address, is_tls: false }, held).await;
        };
        match timeout(self.header_read_timeout, tls.accept(stream)).await {
            // Boxed, so that connections without TLS do not make room for one with it.
            Ok(Ok(stream)) => Box::pin(self.speak(stream, Client { address, is_tls: true }, held)).await,
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "TLS failed");
                self.telemetry.connection_refused(RefusalCause::Tls);
            }
            Err(_) => self.telemetry.connection_refused(RefusalCause::Tls),
        }
    }

    /// The client's address: the peer's, or what a load balancer in between says. `None` where it says nothing valid.
    async fn client_address(&self, stream: &mut TcpStream, peer: SocketAddr) -> Option<SocketAddr> {
        if !self.expects_proxy_header {
            return Some(peer);
        }
        match timeout(self.header_read_timeout, proxy_protocol::read(stream)).await {
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
        let io = TokioIo::new(Wire::new(stream, Arc::clone(&seen), express));
        let mut connection = pin!(self.http.serve_connection_with_upgrades(io, service));
        let (mut is_ending, mut is_awaited) = (false, false);
        loop {
            tokio::select! {
                // In this order, an answer that comes after the drain has begun says `Connection: close`.
                biased;
                () = OnCall::new(self.draining.cancelled()), if !is_ending && !is_awaited => {
                    // Its request may be on the way: to close it at once would be to lose that.
                    is_awaited = activity.awaits_one_more(self.header_read_timeout);
                    is_ending = !is_awaited;
                }
                ended = connection.as_mut() => return self.ended(client, &seen, ended.err()),
                () = OnCall::new(activity.exhausted.notified()), if !is_ending => is_ending = true,
                idle = OnCall::new(activity.idle(&seen, self.header_read_timeout)) => match idle {
                    // It has never sent a request: there is nothing to end gracefully.
                    Idle::FromTheStart => return,
                    // It was told to end, and does not.
                    Idle::AfterRequests if is_ending => return,
                    Idle::AfterRequests => is_ending = true,
                    Idle::InHead => {
                        self.telemetry.connection_refused(RefusalCause::SlowHead);
                        self.refused(Refusal::HeadTooSlow, client, &seen);
                        seen.give_up();
                        // The read that fails now writes the answer.
                        let _ = connection.as_mut().await;
                        return;
                    }
                },
            }
            if is_ending {
                activity.end(self.header_read_timeout);
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
        seen: &Seen,
        held: &Held,
    ) -> impl Future<Output = Result<Response<Delivery>, Infallible>> + Send + use<> {
        let is_stream = request.version() >= Version::HTTP_2;
        let (busy, number) = activity.busy(!is_stream);
        if seen.refuses(number) {
            request.extensions_mut().insert(Flaw::Ambiguous);
        } else if self.limits.refuse(&request) {
            request.extensions_mut().insert(Flaw::TooLarge);
        }
        if request.headers().contains_key(header::UPGRADE) {
            request.extensions_mut().insert(held.clone());
        }
        // A connection that a drain finds waiting for a request has that one.
        let is_last = self.requests_max.is_some_and(|most| number >= most) || self.draining.is_cancelled();
        if is_last {
            activity.exhausted.notify_one();
        }
        let answered = self.proxy.serve(request, client);
        if matches!(answered, Serving::Now(_)) && !is_last {
            activity.may_go_on_express();
        }
        async move {
            let response = answered.await;
            let response = if is_last && !is_stream { closing(response) } else { response };
            Ok(response.map(|body| Delivery::new(body, is_stream, busy)))
        }
    }

    /// The answer that the store has at hand for the request that these bytes are.
    pub(super) fn at_hand(&self, bytes: &[u8], client: Client) -> Option<AtHand> {
        express::read(bytes, self.limits, |request| self.proxy.at_hand(&request, client))
    }

    /// What has come of a request, or in its place, is refused.
    pub(super) fn refused(&self, refusal: Refusal, client: Client, seen: &Seen) {
        let since = seen.in_head_since().map_or(Duration::ZERO, |since| since.elapsed());
        refusal.count(&self.telemetry, client, since);
    }

    fn ended(&self, client: Client, seen: &Seen, error: Option<Box<dyn std::error::Error + Send + Sync>>) {
        let Some(error) = error else { return };
        tracing::debug!(address = %client.address, %error, "a connection ended");
        let Some(error) = error.downcast_ref::<hyper::Error>() else { return };
        if error.is_parse() {
            self.telemetry.connection_refused(RefusalCause::Malformed);
        } else if error.is_user() {
            seen.broke_off();
        }
    }
}

/// Tells the client that no further request is taken here.
fn closing(mut response: Response<Body>) -> Response<Body> {
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// How many fields hyper takes where it is not told.
const HYPER_HEADERS_MAX: usize = 100;

/// Heads over HTTP/2 up to so many times the limit are refused by us, as over HTTP/1: logged, counted, and with a text. What is larger
/// still the library refuses by itself, with a bare 431, or ends the connection.
const HTTP2_HEAD_FACTOR: usize = 2;

fn http(settings: &Settings, patience: Patience) -> Builder<Streams> {
    let mut http = Builder::new(Streams(patience));
    http.http1()
        // Heads are timed by the connection, which can tell an idle client from a slow one, and answers the slow one.
        .header_read_timeout(None)
        .max_buf_size(settings.header_bytes_max)
        // A client that closes its half of the connection has left. To wait for it would mean not to notice those that
        // really leave, and to fetch for nobody.
        .half_close(false)
        // Bodies are not copied into a buffer that every connection would have to keep; see `Wire::poll_write_vectored`.
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
