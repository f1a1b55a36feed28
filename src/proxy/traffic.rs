//! Which keys are being fetched, and by how many: also by those who fetch for themselves and whom nobody waits for.

use crate::policy::{Key, KeyHashing};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// Shards of the table. A power of two: enough that two cores rarely meet.
const SHARDS: usize = 16;

/// The fetches that others with the same key could have waited for, had they brought what is for everyone.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// Each guards how many fetches are under way for its keys. A plain lock, because it is held for one map operation.
    shards: [Mutex<HashMap<Key, usize, KeyHashing>>; SHARDS],
}

/// Which fetches are for the same as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Among {
    /// Those under this key,
    pub(super) key: Key,
    /// and those that began before it was known what selects: their responses may turn out to be of the same variant.
    pub(super) unselected: Key,
}

/// A fetch under way, from the sending of its request to the end of its response.
#[derive(Debug)]
pub(super) struct Passage {
    traffic: Arc<Traffic>,
    key: Key,
}

impl Traffic {
    /// A fetch sets out. Says whether others are under way.
    pub(super) fn enter(self: &Arc<Self>, among: Among) -> (Passage, bool) {
        let Among { key, unselected } = among;
        let others = {
            let mut shard = self.shard(key).lock();
            let count = shard.entry(key).or_insert(0);
            *count += 1;
            *count - 1
        };
        let is_beside =
            others > 0 || key != unselected && self.shard(unselected).lock().contains_key(&unselected);
        (Passage { traffic: Arc::clone(self), key }, is_beside)
    }

    /// Whether others are under way beside one that has set out already.
    pub(super) fn has_others(&self, among: Among) -> bool {
        let Among { key, unselected } = among;
        self.shard(key).lock().get(&key).is_some_and(|count| *count > 1)
            || key != unselected && self.shard(unselected).lock().contains_key(&unselected)
    }

    fn shard(&self, key: Key) -> &Mutex<HashMap<Key, usize, KeyHashing>> {
        &self.shards[(key.low() >> 32) as usize % SHARDS]
    }
}

impl Passage {
    /// From here on it is known what selects: it is a fetch under this key.
    pub(super) fn turn_to(&mut self, key: Key) {
        if key != self.key {
            self.leave();
            self.key = key;
            *self.traffic.shard(key).lock().entry(key).or_insert(0) += 1;
        }
    }

    fn leave(&self) {
        let mut shard = self.traffic.shard(self.key).lock();
        if let Entry::Occupied(mut count) = shard.entry(self.key) {
            match *count.get() {
                0 | 1 => drop(count.remove()),
                more => *count.get_mut() = more - 1,
            }
        }
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Keyer;

    #[test]
    fn a_fetch_is_told_of_others_until_they_have_ended() {
        let (traffic, keyer) = (Arc::<Traffic>::default(), Keyer::with_seed(1, 2));
        let among = |key: &str, unselected: &str| Among {
            key: keyer.word("key", key),
            unselected: keyer.word("key", unselected),
        };
        let (one, other) = (among("one", "one"), among("other", "other"));
        let (first, is_beside) = traffic.enter(one);
        assert!(!is_beside);
        assert!(!traffic.enter(other).1);
        let (second, is_beside) = traffic.enter(one);
        assert!(is_beside);
        assert!(traffic.has_others(one) && !traffic.has_others(other));
        drop(first);
        assert!(traffic.enter(one).1, "the second is under way still");
        assert!(traffic.enter(among("variant", "one")).1, "it may turn out to be of the same variant");
        assert!(!traffic.enter(among("variant", "other")).1);
        let (mut second, variant) = (second, among("variant", "one"));
        second.turn_to(variant.key);
        assert!(!traffic.enter(among("another", "one")).1, "it is of another variant");
        assert!(traffic.enter(variant).1);
        drop(second);
        assert!(!traffic.enter(one).1);
        assert!(traffic.shards.iter().all(|shard| shard.lock().is_empty()));
    }
}
