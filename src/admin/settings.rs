//! What the admin port can be told.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// The admin port.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where operators and Prometheus connect.
    pub listen: SocketAddr,
    /// Names by which it may be called beside addresses and `localhost`, in lower case. Without any, every name will do where
    /// it does not listen on a loopback address.
    pub hosts: Vec<String>,
    /// A file whose first line is the bearer token that changing requests (purge) must carry.
    pub token_file: Option<PathBuf>,
    /// The token itself (from the environment).
    pub token: Option<String>,
}

impl Settings {
    /// The token, from its file where it is in one.
    pub(super) fn read_token(&self) -> io::Result<Option<String>> {
        let Some(file) = &self.token_file else { return Ok(self.token.clone()) };
        let text = std::fs::read_to_string(file)?;
        match text.lines().next().map(str::trim) {
            Some(token) if !token.is_empty() => Ok(Some(token.to_owned())),
            Some(_) | None => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the first line of {} is empty", file.display()),
            )),
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Settings")
            .field("listen", &self.listen)
            .field("hosts", &self.hosts)
            .field("token_file", &self.token_file)
            .field("token", &self.token.as_ref().map(|_| format_args!("…")))
            .finish()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)),
            hosts: Vec::new(),
            token_file: None,
            token: None,
        }
    }
}
