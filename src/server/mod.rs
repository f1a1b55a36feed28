//! The data port: listeners, connections and their limits, and how it all ends.
//!
//! A connection is a task of its own. It is closed when it idles for too long, when its client is too slow with a request's
//! head or stops taking its answer, and, after the work in flight, when the server drains.

mod activity;
mod clients;
mod connection;
mod delivery;
mod express;
mod framing;
mod lingering;
mod on_call;
mod patience;
mod proxy_protocol;
mod refusal;
mod seen;
mod settings;
mod sockets;
mod stream;
mod tls;
mod wire;
mod workers;

pub use settings::Settings;
pub use sockets::{ListenError, PassError, Port, Sockets};
pub use stream::Breakable;
pub use tls::acceptor;
pub use workers::Workers;

use crate::descriptors::{self, Share};
use crate::proxy::Proxy;
use crate::telemetry::{RefusalCause, Telemetry};
use arc_swap::ArcSwap;
use clients::Clients;
use connection::Connections;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections that may wait to be accepted. The kernel lowers it to its own limit (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// Pauses of an accept loop after an error, such as no file descriptors being left: doubling from the shorter to the longer.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// What a connection's kernel buffer may hold that has not been sent. It would else grow to megabytes, and say that there is room only
/// when a third of it is: a client that takes little would seem to take nothing.
#[cfg(target_os = "linux")]
const UNSENT_BYTES_MAX: u32 = 128 << 10;

/// Binds an address for listening.
///
/// # Errors
/// What the operating system says, for instance that the address is in use.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// What is cut off has so long to end: it need not wait for anything.
const CUT_OFF_GRACE: Duration = Duration::from_secs(1);

/// How what is under way ends with the process.
#[derive(Debug, Clone, Default)]
struct Ends {
    /// Connections are to end after what they are doing.
    draining: CancellationToken,
    /// They are to end at once.
    cut_off: CancellationToken,
    /// The streams of HTTP/2, which are tasks beside those of their connections.
    streams: TaskTracker,
}

/// The running data port.
#[derive(Debug)]
pub struct Server {
    /// What the next connection is served with; those that are open end as they began.
    shared: Arc<ArcSwap<Connections>>,
    settings: ArcSwap<Settings>,
    places: Arc<Places>,
    clients: Arc<Clients>,
    proxy: Arc<Proxy>,
    telemetry: Arc<Telemetry>,
    closing: CancellationToken,
    ends: Ends,
    connections: TaskTracker,
    workers: Arc<Workers>,
}

impl Server {
    /// Begins to accept connections on these listeners, for these workers to serve.
    pub fn start(
        listeners: Vec<TcpListener>,
        workers: Workers,
        tls: Option<TlsAcceptor>,
        settings: &Settings,
        proxy: &Arc<Proxy>,
        telemetry: &Arc<Telemetry>,
    ) -> Self {
        let ends = Ends::default();
        let clients = Clients::new(settings.connections_per_client_max);
        let (proxy, telemetry) = (Arc::clone(proxy), Arc::clone(telemetry));
        let shared = Connections::new(
            settings,
            tls,
            Arc::clone(&clients),
            Arc::clone(&proxy),
            Arc::clone(&telemetry),
            ends.clone(),
        );
        let server = Self {
            shared: Arc::new(ArcSwap::from_pointee(shared)),
            settings: ArcSwap::from_pointee(settings.clone()),
            places: Places::new(settings.connections_max),
            clients,
            proxy,
            telemetry,
            closing: CancellationToken::new(),
            ends,
            connections: TaskTracker::new(),
            workers: Arc::new(workers),
        };
        let accepting = Arc::new(Accepting {
            connections: Arc::clone(&server.shared),
            places: Arc::clone(&server.places),
            workers: Arc::clone(&server.workers),
            tasks: server.connections.clone(),
            telemetry: Arc::clone(&server.telemetry),
        });
        for listener in listeners {
            keep_unsent_small(&listener);
            let (accepting, closing) = (Arc::clone(&accepting), server.closing.clone());
            // Tracked like a connection, so that a drain waits for what is accepted last.
            server.connections.spawn(async move {
                closing.run_until_cancelled(accepting.accept_from(&listener)).await;
                accepting.accept_the_rest(&listener).await;
            });
        }
        server
    }

    /// Serves connections that are accepted from here on with these settings and certificates. Those that are open go on as
    /// they began; the listeners, too, stay what they are.
    pub fn reconfigure(&self, tls: Option<TlsAcceptor>, settings: &Settings) {
        self.places.limit(settings.connections_max);
        self.clients.limit(settings.connections_per_client_max);
        self.settings.store(Arc::new(settings.clone()));
        self.shared.store(Arc::new(Connections::new(
            settings,
            tls,
            Arc::clone(&self.clients),
            Arc::clone(&self.proxy),
            Arc::clone(&self.telemetry),
            self.ends.clone(),
        )));
    }

    /// What it was told last.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// Serves a connection that did not come through a listener, as one of a client at this address, without TLS.
    pub fn attach<S>(&self, stream: S, address: SocketAddr)
    where
        S: Breakable + Send + 'static,
    {
        let shared = self.shared.load_full();
        self.connections.spawn(async move { shared.serve_plain(stream, address).await });
    }

    /// Closes the listeners, tells connections to end after what they are doing, and waits until they have, or until the
    /// time for that is over. Returns how many were cut off.
    pub async fn drain(&self) -> usize {
        self.closing.cancel();
        self.ends.draining.cancel();
        self.connections.close();
        match timeout(self.settings.load().drain_timeout, self.connections.wait()).await {
            Ok(()) => 0,
            Err(_) => self.cut_off().await,
        }
    }

    /// Closes the listeners and ends every connection, whatever it is doing. Returns how many there were, when all that was under way
    /// has been told.
    pub async fn cut_off(&self) -> usize {
        self.closing.cancel();
        self.connections.close();
        self.ends.streams.close();
        let count = self.connections.len();
        self.telemetry.cut_off();
        self.ends.cut_off.cancel();
        let ended = async { tokio::join!(self.connections.wait(), self.ends.streams.wait()) };
        if timeout(CUT_OFF_GRACE, ended).await.is_err() {
            tracing::warn!("what was cut off does not end");
        }
        count
    }
}

/// What is accepted inherits it, so that no connection needs a system call for it. Where it fails, slow clients are judged more
/// coarsely.
#[cfg(target_os = "linux")]
fn keep_unsent_small(listener: &TcpListener) {
    if let Err(error) = socket2::SockRef::from(listener).set_tcp_notsent_lowat(UNSENT_BYTES_MAX) {
        tracing::debug!(%error, "the kernel's buffers stay as large as they get");
    }
}

#[cfg(not(target_os = "linux"))]
fn keep_unsent_small(_listener: &TcpListener) {}

/// What the listeners have in common.
struct Accepting {
    connections: Arc<ArcSwap<Connections>>,
    places: Arc<Places>,
    workers: Arc<Workers>,
    tasks: TaskTracker,
    telemetry: Arc<Telemetry>,
}

impl Accepting {
    async fn accept_from(&self, listener: &TcpListener) {
        let mut pause = ACCEPT_PAUSE.0;
        loop {
            match listener.accept().await {
                Ok((stream, address)) => {
                    pause = ACCEPT_PAUSE.0;
                    match self.within_share(stream).await {
                        Ok(stream) => self.admit(stream, address),
                        Err(error) => lost(&self.telemetry, &error),
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections; trying again");
                    self.pause(&mut pause).await;
                }
            }
        }
    }

    /// The connection, as soon as it takes no descriptor that is kept for other things. Meanwhile the next ones wait to be accepted.
    async fn within_share(&self, mut stream: TcpStream) -> io::Result<TcpStream> {
        let mut pause = ACCEPT_PAUSE.0;
        while !Share::Clients.has(&stream) {
            tracing::warn!(
                open_files_max = descriptors::limit(),
                kept = Share::Clients.kept(),
                "no file descriptor is left for clients, new ones wait; the rest is kept for upstreams and the admin port"
            );
            self.pause(&mut pause).await;
            let renumbered = descriptors::renumbered(stream.into_std()?.into());
            stream = TcpStream::from_std(renumbered.into())?;
        }
        Ok(stream)
    }

    async fn pause(&self, pause: &mut Duration) {
        self.telemetry.accept_paused();
        tokio::time::sleep(*pause).await;
        *pause = (*pause * 2).min(ACCEPT_PAUSE.1);
    }

    /// Takes the connections that the kernel has accepted already: with the socket they would be reset.
    async fn accept_the_rest(&self, listener: &TcpListener) {
        for _ in 0..BACKLOG {
            match timeout(Duration::ZERO, listener.accept()).await {
                Ok(Ok((stream, address))) => self.admit(stream, address),
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }

    fn admit(&self, stream: TcpStream, address: SocketAddr) {
        let Some(place) = self.places.take() else {
            return self.telemetry.connection_refused(RefusalCause::Limit);
        };
        let connections = self.connections.load_full();
        let Some(worker) = self.workers.idlest() else {
            self.tasks.spawn(connections.serve(stream, address, place));
            return;
        };
        let (occupied, telemetry) = (worker.occupy(), Arc::clone(&self.telemetry));
        let stream = stream.into_std();
        let serve = async move {
            // From here on the worker's runtime watches the socket.
            match stream.and_then(TcpStream::from_std) {
                Ok(stream) => connections.serve(stream, address, place).await,
                Err(error) => lost(&telemetry, &error),
            }
            drop(occupied);
        };
        self.tasks.spawn_on(serve, worker.runtime());
    }
}

/// A connection that was accepted, and cannot be served.
fn lost(telemetry: &Telemetry, error: &io::Error) {
    tracing::warn!(%error, "cannot hand a connection over");
    telemetry.connection_refused(RefusalCause::Accept);
}

/// How many connections there may be, and how many there are.
#[derive(Debug)]
struct Places {
    taken: AtomicUsize,
    most: AtomicUsize,
}

/// The place of one connection; when it is dropped, another may have it.
#[derive(Debug)]
#[must_use = "it counts as long as it lives"]
struct Place(Arc<Places>);

impl Places {
    fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { taken: AtomicUsize::new(0), most: AtomicUsize::new(most) })
    }

    /// Says how many there may be from here on. Where there are more, they stay.
    fn limit(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// A place, if there is one left.
    fn take(self: &Arc<Self>) -> Option<Place> {
        let place = Place(Arc::clone(self));
        (self.taken.fetch_add(1, Ordering::Relaxed) < self.most.load(Ordering::Relaxed)).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}
