//! Makes connections to one origin.

use super::Error;
use super::farewell::Farewell;
use super::http1::{Line, Stream};
use super::pool::Connection;
use super::settings::{Origin, Protocol, Settings};
use crate::descriptors::{self, Share};
use crate::socket::Tcp;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::DuplexStream;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Connects to an origin within the process.
pub type Dial =
    dyn Fn(&Origin) -> Pin<Box<dyn Future<Output = io::Result<DuplexStream>> + Send>> + Send + Sync;

/// Finds the addresses of an origin.
pub type Lookup =
    dyn Fn(&Origin) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>> + Send + Sync;

/// Over what an upstream is reached.
#[derive(Clone, Default)]
pub enum Transport {
    /// Sockets.
    #[default]
    Tcp,
    /// Sockets to addresses that are not asked of the system.
    Lookup(Arc<Lookup>),
    /// Pipes in memory, without TLS: for simulations, in which nothing may depend on the machine.
    Memory(Arc<Dial>),
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "Tcp",
            Self::Lookup(_) => "Lookup",
            Self::Memory(_) => "Memory",
        })
    }
}

impl Transport {
    /// The addresses of an origin: several where its name has several.
    pub(super) async fn addresses(&self, origin: &Origin) -> io::Result<Vec<SocketAddr>> {
        match self {
            Self::Tcp => Ok(tokio::net::lookup_host((origin.host.as_str(), origin.port))
                .await
                .map_err(descriptors::or_none_left)?
                .take(ADDRESSES_MAX)
                .collect()),
            Self::Lookup(lookup) => lookup(origin).await,
            Self::Memory(_) => Ok(Vec::new()),
        }
    }
}

/// A name may have more addresses; they are left alone.
const ADDRESSES_MAX: usize = 64;

/// Makes connections to one origin.
#[derive(Clone)]
pub(super) struct Connector {
    origin: Origin,
    /// One of the addresses of the origin's name; `None`: whichever it has when a connection is made.
    address: Option<SocketAddr>,
    transport: Transport,
    protocol: Protocol,
    connect_timeout: Duration,
    header_bytes_max: usize,
    tls: Option<Tls>,
    server_name: Option<String>,
}

/// How TLS is spoken to an origin.
#[derive(Clone)]
struct Tls {
    /// With the protocols that are configured.
    as_configured: TlsConnector,
    /// With HTTP/1.1 alone, which has upgrades.
    http1: TlsConnector,
}

impl Tls {
    fn of(as_configured: &TlsConnector) -> Self {
        let mut config = ClientConfig::clone(as_configured.config());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self { as_configured: as_configured.clone(), http1: Arc::new(config).into() }
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Connector").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Connector {
    pub(super) fn new(
        origin: Origin,
        transport: Transport,
        settings: &Settings,
        tls: Option<&TlsConnector>,
    ) -> Self {
        Self {
            origin,
            address: None,
            transport,
            protocol: settings.protocol,
            connect_timeout: settings.connect_timeout,
            header_bytes_max: settings.response_header_bytes_max,
            tls: tls.map(Tls::of),
            server_name: settings.tls.server_name.clone(),
        }
    }

    /// The same, for one address alone.
    pub(super) fn at(&self, address: SocketAddr) -> Self {
        Self { address: Some(address), ..self.clone() }
    }

    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    pub(super) fn transport(&self) -> &Transport {
        &self.transport
    }

    pub(super) fn is_http2_only(&self) -> bool {
        self.protocol == Protocol::Http2
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// Connects and shakes hands within the connect time limit, having resolved the name where no address is known.
    pub(super) async fn connect(&self) -> Result<Connection, Error> {
        timeout(self.connect_timeout, self.dial(false)).await.map_err(|_| Error::ConnectTimeout)?
    }

    /// The same with a connection that can be upgraded.
    pub(super) async fn connect_to_upgrade(&self) -> Result<Connection, Error> {
        if self.is_http2_only() {
            return Err(Error::NoUpgrade);
        }
        timeout(self.connect_timeout, self.dial(true)).await.map_err(|_| Error::ConnectTimeout)?
    }

    async fn dial(&self, to_upgrade: bool) -> Result<Connection, Error> {
        if let Transport::Memory(dial) = &self.transport {
            let stream = dial(&self.origin).await.map_err(Error::Connect)?;
            return self.shake_hands(stream, self.protocol == Protocol::Http2).await;
        }
        let addresses = match self.address {
            Some(address) => vec![address],
            None => self.transport.addresses(&self.origin).await.map_err(Error::of_resolving)?,
        };
        let stream = first_that_connects(addresses).await.map_err(Error::of_connecting)?;
        // Small requests must not wait for the acknowledgement of earlier ones; where it fails they merely do.
        let _ = stream.set_nodelay(true);
        let Some(tls) = self.tls.as_ref().filter(|_| self.origin.https) else {
            return self.shake_hands(Tcp(stream), self.protocol == Protocol::Http2).await;
        };
        let name = self.server_name.clone().unwrap_or_else(|| self.origin.host.clone());
        let name = ServerName::try_from(name).map_err(|error| Error::Tls(io::Error::other(error)))?;
        let tls = if to_upgrade { &tls.http1 } else { &tls.as_configured };
        let stream = tls.connect(name, stream).await.map_err(Error::Tls)?;
        let negotiated = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        self.shake_hands(Farewell(stream), negotiated || self.protocol == Protocol::Http2).await
    }

    async fn shake_hands<S>(&self, stream: S, http2: bool) -> Result<Connection, Error>
    where
        S: Stream + 'static,
    {
        if http2 {
            let io = TokioIo::new(stream);
            let header_bytes_max = u32::try_from(self.header_bytes_max).unwrap_or(u32::MAX);
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .adaptive_window(true)
                .max_header_list_size(header_bytes_max)
                .handshake(io)
                .await
                .map_err(|error| Error::Handshake(error.into()))?;
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "an upstream connection ended");
                }
            });
            return Ok(Connection::Http2(sender));
        }
        Ok(Connection::Http1(Line::new(stream, self.header_bytes_max)))
    }
}

async fn first_that_connects(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) if Share::Upstreams.has(&stream) => return Ok(stream),
            Ok(_) => return Err(descriptors::none_left()),
            Err(error) => last = error,
        }
    }
    Err(last)
}
