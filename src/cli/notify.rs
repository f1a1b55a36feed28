//! Tells the service manager how far we are (`Type=notify` of systemd).

use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Ready to serve.
pub(super) const READY: &str = "READY=1";

/// Serving, with the configuration that was loaded last.
pub(super) const RELOADED: &str = "READY=1\nSTATUS=";

/// Serving, with the configuration before the one that was loaded last.
pub(super) const RELOAD_REFUSED: &str = "READY=1\nSTATUS=The last configuration was refused; see the log.";

/// On the way to the end.
pub(super) const STOPPING: &str = "STOPPING=1";

/// Another process serves in place of this one. Only the main process is listened to, so this one says it.
pub(super) fn main_process(id: u32) -> String {
    format!("MAINPID={id}\nREADY=1")
}

/// Tells it to the socket that `NOTIFY_SOCKET` names; without one there is nobody to tell.
pub(super) fn notify(environment: &[(String, String)], state: &str) {
    let named = environment.iter().find(|(name, _)| name == "NOTIFY_SOCKET");
    let Some((_, socket)) = named.filter(|(_, socket)| !socket.is_empty()) else { return };
    if let Err(error) = send(socket, state) {
        tracing::warn!(%error, socket, "cannot tell the service manager");
    }
}

/// Loading the configuration again since this moment, by which the manager tells one reload from the next.
pub(super) fn reloading() -> String {
    let now = clock_gettime(ClockId::Monotonic);
    format!(
        "RELOADING=1\nMONOTONIC_USEC={}",
        i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec / 1_000)
    )
}

fn send(socket: &str, state: &str) -> io::Result<()> {
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address(socket)?).map(drop)
}

/// The address of a socket in the file system or, with an `@` before it, of an abstract one, which Linux alone has.
fn address(socket: &str) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = socket.strip_prefix('@') {
        return <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name);
    }
    SocketAddr::from_pathname(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(socket: &UnixDatagram, name: &str) {
        notify(&[("NOTIFY_SOCKET".to_owned(), name.to_owned())], READY);
        let mut told = [0; 64];
        let length = socket.recv(&mut told).unwrap();
        assert_eq!(&told[..length], b"READY=1", "{name}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_service_manager_is_told_by_path_and_by_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        check(&UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap());
        let name = format!("forebay-notify-{}", std::process::id());
        let address = address(&format!("@{name}")).unwrap();
        check(&UnixDatagram::bind_addr(&address).unwrap(), &format!("@{name}"));
    }

    #[test]
    fn a_reload_tells_its_time() {
        let told = [reloading(), reloading()].map(|text| {
            let time = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").map(str::parse::<u64>);
            time.unwrap().unwrap()
        });
        assert!(0 < told[0] && told[0] <= told[1], "{told:?}");
    }

    #[test]
    fn without_a_service_manager_nothing_happens() {
        notify(&[], READY);
        notify(&[("NOTIFY_SOCKET".to_owned(), String::new())], READY);
        notify(&[("NOTIFY_SOCKET".to_owned(), "/nonexistent/socket".to_owned())], STOPPING);
    }
}
