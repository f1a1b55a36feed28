//! Listening sockets: those that this process binds, and those that it is passed by whoever started it.
//!
//! A service manager passes sockets by the protocol of systemd (`LISTEN_FDS`, `LISTEN_FDNAMES`), and so does a forebay that
//! makes way for another. A socket's name says what it is for:
//!
//! | name | |
//! |---|---|
//! | `data`, `admin` | takes the place of all that is configured to be listened on for that port |
//! | `server.listen`, `admin.listen` | was bound as configured there, and is used where that is still configured |
//! | `ready` | no listener: where a predecessor waits to be told that this process serves |

use super::bind;
use listenfd::ListenFd;
use socket2::{Domain, SockRef, Type};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use tokio::net::TcpListener;

/// What a listening socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Clients.
    Data,
    /// Operators.
    Admin,
}

impl Port {
    /// The name of a socket whose address was chosen by who passed it.
    const fn given(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Admin => "admin",
        }
    }

    /// The name of a socket that was bound as configured: the key it is configured by.
    const fn configured(self) -> &'static str {
        match self {
            Self::Data => "server.listen",
            Self::Admin => "admin.listen",
        }
    }
}

/// The name of the stream on which a predecessor waits.
const READY: &str = "ready";

/// What is written to that stream.
const READY_TEXT: &[u8] = b"READY=1\n";

/// The sockets that were passed and not used yet, and all that are listened on.
#[derive(Debug, Default)]
pub struct Sockets {
    passed: Vec<(Passed, std::net::TcpListener)>,
    predecessor: Option<UnixStream>,
    /// A second descriptor of each socket that is listened on, to be passed on. A socket is closed when all of its
    /// descriptors are.
    open: Vec<(&'static str, OwnedFd)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passed {
    Given(Port),
    Configured(Port),
}

/// What was passed cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// The name of a socket says nothing to us.
    #[error("a socket was passed under the name {0:?}: name it data or admin (systemd: FileDescriptorName=)")]
    Name(String),
    /// It is no listening TCP socket.
    #[error("what was passed under the name {name:?} is no listening TCP socket")]
    Kind {
        /// Its name.
        name: String,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
}

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct ListenError {
    /// The address.
    pub address: SocketAddr,
    /// What the operating system says.
    #[source]
    pub source: io::Error,
}

impl Sockets {
    /// Takes the sockets that were passed to this process, if any, and their variables out of its environment, which must
    /// therefore happen before it has threads. `names` is what `LISTEN_FDNAMES` says.
    ///
    /// # Errors
    /// [`PassError`]: to ignore a socket would be to leave its clients waiting.
    pub fn take(names: Option<&str>) -> Result<Self, PassError> {
        let mut descriptors = ListenFd::from_env();
        let names: Vec<&str> = names.unwrap_or_default().split(':').collect();
        let mut sockets = Self::default();
        for index in 0..descriptors.len() {
            let name = names.get(index).copied().unwrap_or_default();
            let wrong = |source| PassError::Kind { name: name.to_owned(), source };
            if name == READY {
                let (family, kind) = (Domain::UNIX.into(), Type::STREAM.into());
                sockets.predecessor =
                    descriptors.take_custom(index, family, kind, "unix stream").map_err(wrong)?;
                continue;
            }
            let role = role(name).ok_or_else(|| PassError::Name(name.to_owned()))?;
            if let Some(listener) = descriptors.take_tcp_listener(index).map_err(wrong)? {
                // A socket of `Accept=yes` is a connection.
                if !SockRef::from(&listener).is_listener().map_err(wrong)? {
                    return Err(wrong(io::ErrorKind::InvalidInput.into()));
                }
                listener.set_nonblocking(true).map_err(wrong)?;
                sockets.passed.push((role, listener));
            }
        }
        Ok(sockets)
    }

    /// What is to be listened on for this port: what was passed for it, else the configured addresses, of which those are
    /// not bound anew that were passed. Must be called in a runtime.
    ///
    /// # Errors
    /// [`ListenError`], for instance that an address is in use.
    pub fn listen(&mut self, port: Port, configured: &[SocketAddr]) -> Result<Vec<TcpListener>, ListenError> {
        let given: Vec<_> = self.passed.extract_if(.., |(role, _)| *role == Passed::Given(port)).collect();
        if !given.is_empty() {
            return given.into_iter().map(|(_, listener)| self.open(port.given(), listener)).collect();
        }
        configured.iter().map(|address| self.listen_on(port, *address)).collect()
    }

    fn listen_on(&mut self, port: Port, address: SocketAddr) -> Result<TcpListener, ListenError> {
        let fits = |(role, listener): &(Passed, std::net::TcpListener)| {
            *role == Passed::Configured(port)
                && listener.local_addr().is_ok_and(|bound| {
                    bound == address || (address.port() == 0 && bound.ip() == address.ip())
                })
        };
        if let Some(index) = self.passed.iter().position(fits) {
            let (_, listener) = self.passed.swap_remove(index);
            return self.open(port.configured(), listener);
        }
        let listener = bind(address).map_err(|source| ListenError { address, source })?;
        self.keep(port.configured(), &listener, address)?;
        Ok(listener)
    }

    fn open(
        &mut self,
        name: &'static str,
        listener: std::net::TcpListener,
    ) -> Result<TcpListener, ListenError> {
        let address = listener.local_addr().unwrap_or_else(|_| SocketAddr::from(([0; 4], 0)));
        let listener = TcpListener::from_std(listener).map_err(|source| ListenError { address, source })?;
        self.keep(name, &listener, address)?;
        Ok(listener)
    }

    fn keep(
        &mut self,
        name: &'static str,
        listener: &impl AsFd,
        address: SocketAddr,
    ) -> Result<(), ListenError> {
        let second =
            listener.as_fd().try_clone_to_owned().map_err(|source| ListenError { address, source })?;
        self.open.push((name, second));
        Ok(())
    }

    /// This process serves: what was passed and is not listened on is closed, and a predecessor is told, if there is one.
    /// Returns whether there is.
    pub fn ready(&mut self) -> bool {
        self.passed.clear();
        let Some(mut predecessor) = self.predecessor.take() else { return false };
        if let Err(error) = predecessor.write_all(READY_TEXT) {
            tracing::warn!(%error, "the predecessor is gone");
        }
        true
    }

    /// A second descriptor of everything that is listened on, by name, for a successor; and the stream on which it says that
    /// it serves, under the name that it looks for.
    ///
    /// # Errors
    /// What the operating system says, for instance that there are too many open files.
    pub fn pass_on(&self) -> io::Result<(UnixStream, Vec<(&'static str, OwnedFd)>)> {
        let (ours, theirs) = UnixStream::pair()?;
        let listeners = self.open.iter().map(|(name, socket)| Ok((*name, socket.try_clone()?)));
        let mut sockets = listeners.collect::<io::Result<Vec<_>>>()?;
        sockets.push((READY, theirs.into()));
        Ok((ours, sockets))
    }
}

fn role(name: &str) -> Option<Passed> {
    let ports = [Port::Data, Port::Admin];
    let given = ports.into_iter().find(|port| port.given() == name).map(Passed::Given);
    given.or_else(|| ports.into_iter().find(|port| port.configured() == name).map(Passed::Configured))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(role: Passed) -> (Sockets, SocketAddr) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        (Sockets { passed: vec![(role, listener)], ..Sockets::default() }, address)
    }

    #[track_caller]
    fn check(role: Passed, configured: &str, is_used: bool) {
        let (mut sockets, address) = passed(role);
        let configured = configured.replace("PORT", &address.port().to_string()).parse().unwrap();
        let listeners = sockets.listen(Port::Data, &[configured]).unwrap();
        let bound: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        assert_eq!(bound == [address], is_used, "{role:?} {configured}: {bound:?}");
        assert_eq!(sockets.open.len(), 1);
    }

    #[tokio::test]
    async fn a_socket_that_was_given_wins_and_one_that_was_configured_must_still_be() {
        check(Passed::Given(Port::Data), "127.0.0.1:1", true);
        check(Passed::Given(Port::Admin), "127.0.0.1:0", false);
        check(Passed::Configured(Port::Data), "127.0.0.1:PORT", true);
        check(Passed::Configured(Port::Data), "127.0.0.1:0", true);
        check(Passed::Configured(Port::Data), "127.0.0.2:PORT", false);
        check(Passed::Configured(Port::Data), "127.0.0.2:0", false);
        check(Passed::Configured(Port::Admin), "127.0.0.1:0", false);
    }

    #[tokio::test]
    async fn what_is_not_listened_on_is_closed_when_all_is_ready() {
        let (mut sockets, address) = passed(Passed::Configured(Port::Data));
        drop(sockets.listen(Port::Data, &["127.0.0.2:0".parse().unwrap()]).unwrap());
        assert!(std::net::TcpStream::connect(address).is_ok());
        assert!(!sockets.ready(), "there is no predecessor");
        assert!(std::net::TcpStream::connect(address).is_err());
    }

    #[tokio::test]
    async fn names_are_passed_on_as_they_will_be_understood() {
        let (mut sockets, _) = passed(Passed::Given(Port::Admin));
        drop(sockets.listen(Port::Admin, &[]).unwrap());
        drop(sockets.listen(Port::Data, &["127.0.0.1:0".parse().unwrap()]).unwrap());
        let (_stream, passed_on) = sockets.pass_on().unwrap();
        let names: Vec<_> = passed_on.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["admin", "server.listen", "ready"]);
        let roles: Vec<_> = names.iter().map(|name| role(name)).collect();
        assert_eq!(roles, [Some(Passed::Given(Port::Admin)), Some(Passed::Configured(Port::Data)), None]);
        assert_eq!(role("forebay.socket"), None);
    }
}
