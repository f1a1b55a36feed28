//! What the listeners can be told.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// The data port: addresses and limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where clients connect.
    pub listen: Vec<SocketAddr>,
    /// Certificate chain and key (PEM files), if clients speak TLS.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Whether each connection begins with a header of the PROXY protocol, which says who the client is.
    pub proxy_protocol: bool,
    /// Client connections at once.
    pub connections_max: usize,
    /// Connections of one client address at once; `None`: no limit of their own.
    pub connections_per_client_max: Option<usize>,
    /// Requests on one connection, which is closed after them; `None`: unlimited.
    pub requests_per_connection_max: Option<u64>,
    /// Time from accept, or from the first byte after a pause, until a request's head is complete.
    pub header_read_timeout: Duration,
    /// How long a keep-alive connection may stay idle.
    pub idle_timeout: Duration,
    /// How long a client may take nothing of its answer; `None`: for ever.
    pub send_timeout: Option<Duration>,
    /// Fewest bytes of an answer for each second that the client is waited for, after the first ten; `None`: any pace will do.
    pub send_rate_min: Option<u64>,
    /// Largest request head in bytes.
    pub header_bytes_max: usize,
    /// Most fields in a request head.
    pub header_count_max: usize,
    /// HTTP/2 streams at once on one connection.
    pub http2_streams_max: u32,
    /// Pause between "not ready" and closing the listeners.
    pub drain_delay: Duration,
    /// How long requests in flight may take to finish at stop.
    pub drain_timeout: Duration,
    /// How long a process that is to take the sockets over may take until it serves.
    pub upgrade_timeout: Duration,
    /// Worker threads; `None`: one for each core the container may use.
    pub threads: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))],
            tls: None,
            proxy_protocol: false,
            connections_max: 20_000,
            connections_per_client_max: None,
            requests_per_connection_max: None,
            header_read_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            send_timeout: Some(Duration::from_secs(60)),
            send_rate_min: None,
            header_bytes_max: 64 << 10,
            header_count_max: 100,
            http2_streams_max: 250,
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(30),
            upgrade_timeout: Duration::from_secs(60),
            threads: None,
        }
    }
}
