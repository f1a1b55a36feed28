//! Large finished bodies, as pages of a file that lives in memory.
//!
//! From such a file the kernel sends without copying: that halves what a hit of 128 KiB costs. There is one file for all bodies, and
//! it is never full: each body gets a place of its own, further on than all before it, and when it goes its pages are given back,
//! which leaves a hole.

use super::Block;
use bytes::Bytes;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bodies of these sizes are worth it: what is smaller is sent as quickly from memory, and what is larger takes too long to
/// be moved at once.
const BYTES: std::ops::RangeInclusive<u64> = (32 << 10)..=(8 << 20);

/// Places begin at multiples of this: of a page, however large pages are.
const ALIGNMENT: u64 = 64 << 10;

/// Where large bodies are kept.
#[derive(Debug)]
pub struct Pages {
    file: File,
    /// Where the next place begins.
    next: AtomicU64,
}

impl Pages {
    /// An empty file. `None` where the system has none that live in memory.
    pub fn new() -> Option<Arc<Self>> {
        let file = create().inspect_err(|error| tracing::debug!(%error, "no file in memory")).ok()?;
        Some(Arc::new(Self { file, next: AtomicU64::new(0) }))
    }

    /// Bytes of memory that the file takes.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn bytes_held(&self) -> io::Result<u64> {
        Ok(std::os::unix::fs::MetadataExt::blocks(&self.file.metadata()?) * 512)
    }

    /// Copies a body into a place of its own. `None` where it is not worth it, or there is no room.
    pub(super) fn keep<'a>(
        self: &Arc<Self>,
        blocks: impl IntoIterator<Item = &'a Block>,
        length: u64,
    ) -> Option<Place> {
        if !BYTES.contains(&length) {
            return None;
        }
        let start = self.next.fetch_add(length.next_multiple_of(ALIGNMENT), Ordering::Relaxed);
        // From here on, dropping it gives back what has been written.
        let place = Place { pages: Arc::clone(self), start, length };
        for block in blocks {
            let written = self.file.write_all_at(&block.bytes, start + block.offset);
            written.inspect_err(|error| tracing::debug!(%error, "no room in the file in memory")).ok()?;
        }
        Some(place)
    }
}

/// A body in its place.
#[derive(Debug)]
pub(super) struct Place {
    pages: Arc<Pages>,
    start: u64,
    length: u64,
}

impl Place {
    /// Its size in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// The file that it is in, and where in it the byte with this offset is.
    pub(super) fn at(&self, offset: u64) -> (BorrowedFd<'_>, u64) {
        (self.pages.file.as_fd(), self.start + offset)
    }

    /// A copy of the bytes from an offset on, so many at most.
    pub(super) fn read(&self, offset: u64, most: usize) -> io::Result<Bytes> {
        let rest = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; rest.min(most)];
        self.pages.file.read_exact_at(&mut bytes, self.start + offset)?;
        Ok(bytes.into())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Up to the next place: the rest of the last page has no other owner.
        let place = self.length.next_multiple_of(ALIGNMENT);
        if let Err(error) = give_back(&self.pages.file, self.start, place) {
            tracing::warn!(%error, "memory of a stored body cannot be given back");
        }
    }
}

#[cfg(target_os = "linux")]
fn create() -> io::Result<File> {
    Ok(rustix::fs::memfd_create("forebay-bodies", rustix::fs::MemfdFlags::CLOEXEC)?.into())
}

#[cfg(not(target_os = "linux"))]
fn create() -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_os = "linux")]
fn give_back(file: &File, start: u64, length: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    Ok(fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, start, length)?)
}

#[cfg(not(target_os = "linux"))]
fn give_back(_file: &File, _start: u64, _length: u64) -> io::Result<()> {
    Ok(())
}
