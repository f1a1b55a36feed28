//! What memory a stored response takes, so that the bytes that the store may hold are bytes of the process.

/// What a key takes beside its responses, as measured: the nodes in which moka keeps it, its place in the table, and the
/// allocator's own notes on pages.
pub(super) const KEY_BYTES: u64 = 420;

/// What handing out parts of a piece of memory takes: a count of those who have one.
pub(super) const HANDLE_BYTES: u64 = 32;

/// What the allocator sets apart for so many bytes: it has sizes by sixteens up to 128, and then four for each doubling.
pub(super) fn allocated(bytes: u64) -> u64 {
    let step = match bytes {
        0 => return 0,
        1..=128 => 16,
        _ => 1 << ((bytes - 1).ilog2() - 2),
    };
    bytes.next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_that_the_allocator_has() {
        let sizes = [1, 16, 17, 128, 129, 160, 161, 1024, 1025, 1281, 8 << 10, (8 << 10) + 1, 1 << 20];
        let expected = [16, 16, 32, 128, 160, 160, 192, 1024, 1280, 1536, 8 << 10, 10 << 10, 1 << 20];
        assert_eq!(sizes.map(allocated), expected);
        assert_eq!(allocated(0), 0);
    }
}
