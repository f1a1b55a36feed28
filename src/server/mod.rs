//! The data port: listeners, connections and their limits, and how it all ends.
//!
//! A connection is a task of its own. It is closed when it idles for too long, when its client is too slow with a request's
//! head, and, after the work in flight, when the server drains.

mod clients;
mod connection;
mod framing;
mod proxy_protocol;
mod settings;
mod sockets;
mod tls;
mod wire;

pub use settings::Settings;
pub use sockets::{ListenError, PassError, Port, Sockets};
pub use tls::acceptor;
pub use wire::Breakable;

use crate::proxy::Proxy;
use crate::telemetry::{RefusalCause, Telemetry};
use connection::Connections;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections that may wait to be accepted. The kernel lowers it to its own limit (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// Pauses of an accept loop after an error, such as no file descriptors being left: doubling from the shorter to the longer.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

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

/// The running data port.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Connections>,
    closing: CancellationToken,
    draining: CancellationToken,
    connections: TaskTracker,
    drain_timeout: Duration,
}

impl Server {
    /// Begins to accept connections on these listeners.
    pub fn start(
        listeners: Vec<TcpListener>,
        tls: Option<TlsAcceptor>,
        settings: &Settings,
        proxy: &Arc<Proxy>,
        telemetry: &Arc<Telemetry>,
    ) -> Self {
        let draining = CancellationToken::new();
        let shared =
            Connections::new(settings, tls, Arc::clone(proxy), Arc::clone(telemetry), draining.clone());
        let server = Self {
            shared: Arc::new(shared),
            closing: CancellationToken::new(),
            draining,
            connections: TaskTracker::new(),
            drain_timeout: settings.drain_timeout,
        };
        let accepting = Arc::new(Accepting {
            places: Arc::new(Semaphore::new(settings.connections_max.min(Semaphore::MAX_PERMITS))),
            shared: Arc::clone(&server.shared),
            tasks: server.connections.clone(),
            telemetry: Arc::clone(telemetry),
        });
        for listener in listeners {
            let (accepting, closing) = (Arc::clone(&accepting), server.closing.clone());
            // Tracked like a connection, so that a drain waits for what is accepted last.
            server.connections.spawn(async move {
                closing.run_until_cancelled(accepting.accept_from(&listener)).await;
                accepting.accept_the_rest(&listener).await;
            });
        }
        server
    }

    /// Serves a connection that did not come through a listener, as one of a client at this address, without TLS.
    pub fn attach<S>(&self, stream: S, address: SocketAddr)
    where
        S: Breakable + AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        self.connections.spawn(async move { shared.serve_plain(stream, address).await });
    }

    /// Closes the listeners, tells connections to end after what they are doing, and waits until they have, or until the
    /// time for that is over. Returns how many were cut off.
    pub async fn drain(&self) -> usize {
        self.closing.cancel();
        self.draining.cancel();
        self.connections.close();
        let _ = tokio::time::timeout(self.drain_timeout, self.connections.wait()).await;
        self.connections.len()
    }
}

/// What the listeners have in common.
struct Accepting {
    shared: Arc<Connections>,
    places: Arc<Semaphore>,
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
                    self.admit(stream, address);
                }
                Err(error) => {
                    self.telemetry.connection_refused(RefusalCause::Accept);
                    tracing::warn!(%error, "cannot accept connections; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(ACCEPT_PAUSE.1);
                }
            }
        }
    }

    /// Takes the connections that the kernel has accepted already: with the socket they would be reset.
    async fn accept_the_rest(&self, listener: &TcpListener) {
        for _ in 0..BACKLOG {
            match tokio::time::timeout(Duration::ZERO, listener.accept()).await {
                Ok(Ok((stream, address))) => self.admit(stream, address),
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }

    fn admit(&self, stream: TcpStream, address: SocketAddr) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return self.telemetry.connection_refused(RefusalCause::Limit);
        };
        let connections = Arc::clone(&self.shared);
        self.tasks.spawn(async move { connections.serve(stream, address, place).await });
    }
}
