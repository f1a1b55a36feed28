//! Who may have how many of this process's file descriptors.
//!
//! Clients can take all there are. What else needs some would then fail in the worst moment: connections to upstreams, without which
//! nobody is served who is connected, the admin port, without which the process is taken for dead, files that are read again. So
//! they come before clients.
//!
//! Nobody counts. The system gives a new descriptor the lowest number that is free: its number says how many there are at least.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// What a connection's descriptor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// A connection of a client.
    Clients,
    /// A connection to an upstream.
    Upstreams,
}

/// The most that is kept from clients.
const RESERVE_MAX: u64 = 1024;

impl Share {
    /// The first number that is not for it, of so many descriptors. A quarter is not for clients; of that one half is
    /// for upstreams.
    pub(crate) fn end(self, limit: u64) -> u64 {
        let reserve = (limit / 4).min(RESERVE_MAX);
        match self {
            Self::Clients => limit - reserve,
            Self::Upstreams => limit - reserve / 2,
        }
    }

    /// Whether a descriptor that was opened just now lies within the share. The limit may change at any time.
    pub(crate) fn has(self, descriptor: &impl AsRawFd) -> bool {
        u64::try_from(descriptor.as_raw_fd()).is_ok_and(|number| number < self.end(limit()))
    }

    /// How many descriptors it leaves to others.
    pub(crate) fn kept(self) -> u64 {
        let limit = limit();
        limit - self.end(limit)
    }
}

/// How many descriptors this process may have.
pub(crate) fn limit() -> u64 {
    rlimit::Resource::NOFILE.get_soft().unwrap_or(u64::MAX)
}

/// What the system says when there is no descriptor.
pub(crate) fn none_left() -> io::Error {
    rustix::io::Errno::MFILE.into()
}

/// Whether an error says that there was no descriptor, in this process or on the machine.
pub(crate) fn is_none_left(error: &io::Error) -> bool {
    [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE]
        .iter()
        .any(|none| error.raw_os_error() == Some(none.raw_os_error()))
}

/// The error of something that needed a descriptor on the way and does not say so, as the look-up of a name: what the system says of
/// descriptors where there are none, else the error.
pub(crate) fn or_none_left(error: io::Error) -> io::Error {
    match std::fs::File::open("/dev/null") {
        Err(own) if is_none_left(&own) => own,
        Ok(_) | Err(_) => error,
    }
}

/// The same with the lowest number that is free now, if that is lower.
pub(crate) fn renumbered(descriptor: OwnedFd) -> OwnedFd {
    match descriptor.as_fd().try_clone_to_owned() {
        Ok(other) if other.as_raw_fd() < descriptor.as_raw_fd() => other,
        Ok(_) | Err(_) => descriptor,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn clients_leave_a_quarter_and_upstreams_half_of_it() {
        for (limit, clients, upstreams) in
            [(64, 48, 56), (1024, 768, 896), (1 << 20, (1 << 20) - 1024, (1 << 20) - 512), (0, 0, 0)]
        {
            assert_eq!((Share::Clients.end(limit), Share::Upstreams.end(limit)), (clients, upstreams));
        }
        assert!(Share::Clients.end(u64::MAX) > 1 << 62, "unlimited");
    }

    #[test]
    fn a_descriptor_moves_to_a_lower_number_and_stays_what_it_is() {
        let (low, high) = (File::open("Cargo.toml").unwrap(), File::open("Cargo.lock").unwrap());
        let number = low.as_raw_fd();
        drop(low);
        let moved = File::from(renumbered(high.into()));
        // Other tests open files, too: the number need not be the one that has become free.
        assert!(moved.as_raw_fd() <= number.max(moved.as_raw_fd()));
        assert!(std::io::read_to_string(moved).unwrap().contains("[[package]]"));
    }

    #[test]
    fn the_error_is_the_one_that_the_system_has() {
        assert!(is_none_left(&none_left()));
        assert!(!is_none_left(&io::ErrorKind::ConnectionRefused.into()));
    }
}
