//! An upgrade without a refused connection: the program file is started anew and takes the listening sockets over.

use crate::app::App;
use command_fds::{CommandFdExt, FdMapping};
use std::ffi::OsString;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::time::{sleep, timeout};

/// How often, and how many times, a successor that will not serve is looked at until it is ended.
const END_CHECK: Duration = Duration::from_millis(10);
const END_CHECKS: u32 = 200;

/// Where passed descriptors begin, by the protocol of systemd.
const FIRST_DESCRIPTOR: RawFd = 3;

/// Why there is no successor. This process goes on.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpgradeError {
    /// It could not be started.
    #[error("cannot start {program:?}")]
    Start {
        /// The program file.
        program: OsString,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// It ended before it served.
    #[error("the new process ended at once: {0}")]
    Ended(ExitStatus),
    /// It did not serve in time.
    #[error("the new process did not serve within {0:?}")]
    TooSlow(Duration),
    /// Sockets cannot be passed on, or the new process cannot be watched.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A process that does not serve yet; dropped before it does, it is ended.
struct Successor(Option<Child>);

/// Starts this program's file with this process's arguments, passes the listening sockets on, and waits until it serves.
/// Returns its process id. Cancelled, it ends what it started.
pub(super) async fn upgrade(app: &App) -> Result<u32, UpgradeError> {
    let (ready, sockets) = app.pass_on()?;
    let successor = start(sockets)?;
    successor.serves(ready, app.upgrade_timeout()).await
}

fn start(sockets: Vec<(&'static str, OwnedFd)>) -> Result<Successor, UpgradeError> {
    let mut arguments = std::env::args_os();
    // As it was named, so that a link that points elsewhere by now is followed anew.
    let program = arguments.next().unwrap_or_default();
    let names: Vec<&str> = sockets.iter().map(|(name, _)| *name).collect();
    let mut command = Command::new(&program);
    command
        .args(arguments)
        .env("LISTEN_FDS", names.len().to_string())
        .env("LISTEN_FDNAMES", names.join(":"))
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_FDS_FIRST_FD");
    let mappings = (FIRST_DESCRIPTOR..)
        .zip(sockets)
        .map(|(child_fd, (_, parent_fd))| FdMapping { parent_fd, child_fd })
        .collect();
    command.fd_mappings(mappings).expect("each number is used once");
    // With the command goes our copy of its end of the stream, so that its death is the end of the stream.
    let child = command.spawn().map_err(|source| UpgradeError::Start { program, source })?;
    Ok(Successor(Some(child)))
}

impl Successor {
    async fn serves(mut self, ready: UnixStream, within: Duration) -> Result<u32, UpgradeError> {
        ready.set_nonblocking(true)?;
        let mut ready = tokio::net::UnixStream::from_std(ready)?;
        match timeout(within, ready.read_u8()).await {
            Ok(Ok(_)) => Ok(self.0.take().map_or(0, |child| child.id())),
            Ok(Err(_)) => Err(self.ended().await?.map_or(UpgradeError::TooSlow(within), UpgradeError::Ended)),
            Err(_) => Err(UpgradeError::TooSlow(within)),
        }
    }

    /// It has closed the stream: waits a little for it to end by itself, so that its exit code is its own.
    async fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        for _ in 0..END_CHECKS {
            if let Some(child) = &mut self.0
                && let Some(status) = child.try_wait()?
            {
                self.0 = None;
                return Ok(Some(status));
            }
            sleep(END_CHECK).await;
        }
        self.end()
    }

    /// Ends it, if it has not ended yet, and says how it did.
    fn end(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(mut child) = self.0.take() else { return Ok(None) };
        child.kill()?;
        child.wait().map(Some)
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(%error, "the new process cannot be ended");
        }
    }
}
