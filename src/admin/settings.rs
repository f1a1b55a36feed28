//! What the admin port can be told.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// The admin port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where operators and Prometheus connect.
    pub listen: SocketAddr,
    /// A file whose first line is the bearer token that changing requests (purge) must carry.
    pub token_file: Option<PathBuf>,
    /// The token itself (from the environment).
    pub token: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)), token_file: None, token: None }
    }
}
