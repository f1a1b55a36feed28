//! What the store can be told.

/// The store's limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of stored responses, heads and bodies together, before eviction starts.
    pub bytes_max: u64,
    /// Stored responses side by side under one key; the oldest leaves first.
    pub variants_max: usize,
    /// Keys of which something is remembered beside what is stored, at most: that they are uncacheable or failing, say.
    pub notes_max: u64,
    /// Invalidation stamps remembered one by one, at most; older ones are folded into a coarser stamp.
    pub stamps_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { bytes_max: 256 << 20, variants_max: 64, notes_max: 100_000, stamps_max: 100_000 }
    }
}
