//! One client connection from accept to close.

use super::Settings;
use crate::proxy::{Client, Proxy};
use crate::telemetry::{RefusalCause, Telemetry};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use parking_lot::Mutex;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// What all connections of the data port have in common.
pub(super) struct Connections {
    http: Builder<TokioExecutor>,
    tls: Option<TlsAcceptor>,
    header_read_timeout: Duration,
    idle_timeout: Duration,
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
        proxy: Arc<Proxy>,
        telemetry: Arc<Telemetry>,
        draining: CancellationToken,
    ) -> Self {
        Self {
            http: http(settings),
            tls,
            header_read_timeout: settings.header_read_timeout,
            idle_timeout: settings.idle_timeout,
            proxy,
            telemetry,
            draining,
        }
    }

    /// Serves the connection until it ends.
    pub(super) async fn serve(&self, stream: TcpStream, address: SocketAddr) {
        let _connected = self.telemetry.connected();
        // Answers must not wait for acknowledgements; where it fails they merely do.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else {
            return self.speak(stream, Client { address, is_tls: false }).await;
        };
        match timeout(self.header_read_timeout, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.speak(stream, Client { address, is_tls: true }).await,
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "TLS failed");
                self.telemetry.connection_refused(RefusalCause::Tls);
            }
            Err(_) => self.telemetry.connection_refused(RefusalCause::Tls),
        }
    }

    /// Serves a connection of any kind, without TLS, until it ends.
    pub(super) async fn serve_plain<S>(&self, stream: S, address: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let _connected = self.telemetry.connected();
        self.speak(stream, Client { address, is_tls: false }).await;
    }

    async fn speak<S>(&self, stream: S, client: Client)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let activity = Arc::new(Activity::new(self.header_read_timeout));
        let (proxy, idle_timeout, noted) = (&self.proxy, self.idle_timeout, Arc::clone(&activity));
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let busy = noted.busy(idle_timeout);
            let answered = Arc::clone(proxy).serve(request, client);
            async move {
                let response = answered.await;
                drop(busy);
                Ok::<_, Infallible>(response)
            }
        });
        let mut connection = pin!(self.http.serve_connection_with_upgrades(TokioIo::new(stream), service));
        let mut is_ending = false;
        loop {
            tokio::select! {
                biased;
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(address = %client.address, %error, "a connection ended");
                    }
                    return;
                }
                () = self.draining.cancelled(), if !is_ending => {
                    is_ending = true;
                    connection.as_mut().graceful_shutdown();
                }
                idle = activity.idle(), if !is_ending => match idle {
                    // It has never sent a request: there is nothing to end gracefully.
                    Idle::FromTheStart => return,
                    Idle::AfterRequests => {
                        is_ending = true;
                        connection.as_mut().graceful_shutdown();
                    }
                },
            }
        }
    }
}

/// When a connection was last of use.
struct Activity {
    /// Guards two numbers and a time. Held for their assignment, never across an await.
    state: Mutex<State>,
}

struct State {
    requests_in_progress: usize,
    requests: u64,
    /// Until when it may idle.
    until: Instant,
}

/// How a connection came to idle.
enum Idle {
    FromTheStart,
    AfterRequests,
}

/// A request in progress; when it is dropped, the connection begins to idle.
struct Busy {
    activity: Arc<Activity>,
    idle_timeout: Duration,
}

impl Activity {
    fn new(first_request_within: Duration) -> Self {
        let until = Instant::now() + first_request_within;
        Self { state: Mutex::new(State { requests_in_progress: 0, requests: 0, until }) }
    }

    fn busy(self: &Arc<Self>, idle_timeout: Duration) -> Busy {
        let mut state = self.state.lock();
        state.requests_in_progress += 1;
        state.requests += 1;
        Busy { activity: Arc::clone(self), idle_timeout }
    }

    /// Waits until the connection has idled for as long as it may. Cancel-safe.
    async fn idle(&self) -> Idle {
        loop {
            let (until, is_busy, is_new) = {
                let state = self.state.lock();
                (state.until, state.requests_in_progress > 0, state.requests == 0)
            };
            let now = Instant::now();
            match (is_busy, until <= now) {
                (false, true) if is_new => return Idle::FromTheStart,
                (false, true) => return Idle::AfterRequests,
                (false, false) => sleep_until(until).await,
                // A request is in progress; when it ends there is a whole pause ahead, so looking again later loses nothing.
                (true, _) => sleep_until(now + BUSY_CHECK).await,
            }
        }
    }
}

/// How often a connection with a request in progress is looked at again.
const BUSY_CHECK: Duration = Duration::from_secs(5);

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.activity.state.lock();
        state.requests_in_progress -= 1;
        state.until = Instant::now() + self.idle_timeout;
    }
}

fn http(settings: &Settings) -> Builder<TokioExecutor> {
    let mut http = Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.header_read_timeout)
        .max_headers(settings.header_count_max)
        .max_buf_size(settings.header_bytes_max)
        // A client that closes its half of the connection has left. To wait for it would mean not to notice those that
        // really leave, and to fetch for nobody.
        .half_close(false)
        // Head and small body are copied into one buffer: one write instead of a gather.
        .writev(false);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.http2_streams_max)
        .max_header_list_size(u32::try_from(settings.header_bytes_max).unwrap_or(u32::MAX))
        .adaptive_window(true)
        .keep_alive_interval(settings.idle_timeout / 2)
        .keep_alive_timeout(settings.header_read_timeout);
    http
}
