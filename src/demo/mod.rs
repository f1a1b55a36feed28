//! What shows forebay at work without anything else installed: a slow upstream and a stampede.

pub mod stampede;
pub mod upstream;

pub use stampede::{Cache, Report, Run, Stampede, StampedeError};
pub use upstream::DemoUpstream;

use crate::descriptors::Share;

/// File descriptors that a process keeps for other things than the stampede's sockets.
const FILES_APART: u64 = 128;

/// Raises this process's soft limit on open files to its hard limit, and says what it is then.
///
/// # Errors
/// What the operating system says.
pub fn raise_file_limit() -> std::io::Result<u64> {
    rlimit::increase_nofile_limit(u64::MAX)
}

/// How many stampeding clients fit under a limit on open files, where both ends of their connections, and those
/// of the fetches they cause, belong to one process.
pub fn clients_max(file_limit: u64) -> usize {
    let possible = Share::Clients.end(file_limit).saturating_sub(FILES_APART) / 4;
    usize::try_from(possible).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_limit_is_raised_to_the_hard_limit() {
        let limit = raise_file_limit().unwrap();
        let (soft, _hard) = rlimit::getrlimit(rlimit::Resource::NOFILE).unwrap();
        assert_eq!(limit, soft);
    }

    #[test]
    fn clients_leave_room_for_other_files() {
        assert_eq!(clients_max(1024 + 128 + 4000), 1000);
        assert_eq!(clients_max(64), 0);
    }
}
