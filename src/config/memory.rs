//! How much memory there is for this process: the limit of its container, or the machine's.

use std::fs;
use std::path::Path;

/// The part of memory that the store takes when it is told `auto`: a quarter, but neither so little that
/// nothing is worth storing nor so much that a large machine is taken over unasked.
pub(super) fn for_store(memory: Option<u64>, unknown: u64) -> u64 {
    memory.map_or(unknown, |bytes| whole(bytes / 4).clamp(16 << 20, 8 << 30))
}

/// The part of memory for bodies in flight when it is told `auto`: an eighth, bounded the same way.
pub(super) fn for_bodies(memory: Option<u64>, unknown: usize) -> usize {
    let share = memory.map(|bytes| whole(bytes / 8).clamp(8 << 20, 2 << 30));
    share.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(unknown)
}

/// Whole mebibytes, which read better.
const fn whole(bytes: u64) -> u64 {
    bytes >> 20 << 20
}

/// The least of all limits that hold for this process; `None` where the system does not tell.
pub(super) fn available() -> Option<u64> {
    available_below(Path::new("/"))
}

fn available_below(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    groups.lines().filter_map(|line| group_limit(root, line)).chain(physical(root)).min()
}

/// The limit that one line of `/proc/self/cgroup` (`hierarchy:controllers:path`) leads to. A group is bound by
/// its ancestors too, and inside of a container the path may be the host's, so that only the root is found.
fn group_limit(root: &Path, line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let (mount, file) = if controllers.is_empty() {
        ("sys/fs/cgroup", "memory.max")
    } else if controllers.split(',').any(|controller| controller == "memory") {
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
    } else {
        return None;
    };
    let mount = root.join(mount);
    let group = Path::new(path.trim_start_matches('/'));
    // "max", and the huge number that means the same in version 1, lose against the physical memory.
    group.ancestors().filter_map(|group| number(&mount.join(group).join(file))).min()
}

fn physical(root: &Path) -> Option<u64> {
    let information = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let total = information.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system of which only these files are known.
    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    #[track_caller]
    fn check(files: &[(&str, &str)], expected: Option<u64>) {
        assert_eq!(available_below(system(files).path()), expected);
    }

    const MACHINE: (&str, &str) = ("proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\n");

    #[test]
    fn a_container_is_bound_by_its_version_2_limit() {
        let container =
            [MACHINE, ("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", "268435456\n")];
        check(&container, Some(256 << 20));
    }

    #[test]
    fn a_group_is_bound_by_its_ancestors() {
        let service = [
            MACHINE,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/memory.max", "1048576\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
        ];
        check(&service, Some(1 << 20));
    }

    #[test]
    fn version_1_knows_the_limit_under_another_name() {
        let container = [
            MACHINE,
            ("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/x\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
        ];
        check(&container, Some(512 << 20));
    }

    #[test]
    fn without_a_limit_it_is_the_machines_memory() {
        let free = [MACHINE, ("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", "max\n")];
        check(&free, Some(16 << 30));
        check(&[MACHINE], Some(16 << 30));
        check(&[], None);
    }

    #[test]
    fn the_shares_are_bounded() {
        assert_eq!(for_store(Some(1 << 30), 1), 256 << 20);
        assert_eq!(for_store(Some((1 << 30) + 12_345), 1), 256 << 20);
        assert_eq!(for_store(Some(1 << 20), 1), 16 << 20);
        assert_eq!(for_store(Some(1 << 40), 1), 8 << 30);
        assert_eq!(for_store(None, 1), 1);
        assert_eq!(for_bodies(Some(1 << 30), 1), 128 << 20);
        assert_eq!(for_bodies(None, 1), 1);
    }
}
