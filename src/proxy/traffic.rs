//! Which keys are being fetched, and for whom: also by those who fetch for themselves and whom nobody waits for.

use super::meeting::Among;
use crate::policy::{Key, KeyHashing};
use http::HeaderMap;
use parking_lot::Mutex;
use slab::Slab;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// Shards of the table. A power of two: enough that two cores rarely meet.
const SHARDS: usize = 16;

/// Of so many fetches under another key it is looked whether they are for the same; of more it is taken for granted.
const LOOKED_AT_MAX: usize = 64;

/// The fetches that others with the same key could have waited for, had they brought what is for everyone.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// Each guards which fetches are under way for its keys. A plain lock, because it is held for one map operation.
    shards: [Mutex<HashMap<Key, Fetches, KeyHashing>>; SHARDS],
}

/// The fetches under one key, by the fields of the clients that they were sent for. Mostly there is one, which needs no list.
#[derive(Debug, Default)]
struct Fetches {
    one: Option<Arc<HeaderMap>>,
    more: Slab<Arc<HeaderMap>>,
}

/// A fetch under way, from the sending of its request to the end of its response.
#[derive(Debug)]
pub(super) struct Passage {
    traffic: Arc<Traffic>,
    key: Key,
    /// Where it stands among those under its key; `None`: it is the one.
    place: Option<usize>,
}

impl Traffic {
    /// A fetch sets out. Says whether others are under way.
    pub(super) fn enter(self: &Arc<Self>, among: &Among) -> (Passage, bool) {
        let key = among.key;
        let (place, others) = {
            let mut shard = self.shard(key).lock();
            let fetches = shard.entry(key).or_default();
            let others = fetches.count();
            (fetches.insert(Arc::clone(&among.headers)), others)
        };
        let is_beside = others > 0 || self.has_elsewhere(among);
        (Passage { traffic: Arc::clone(self), key, place }, is_beside)
    }

    /// Whether others are under way beside one that has set out already.
    pub(super) fn has_others(&self, among: &Among) -> bool {
        self.shard(among.key).lock().get(&among.key).is_some_and(|fetches| fetches.count() > 1)
            || self.has_elsewhere(among)
    }

    /// Whether one is under way for the same under another key, because its request met others by other fields.
    fn has_elsewhere(&self, among: &Among) -> bool {
        among.elsewhere.iter().any(|key| {
            let shard = self.shard(*key).lock();
            shard.get(key).is_some_and(|fetches| fetches.count() > LOOKED_AT_MAX || fetches.has_for(among))
        })
    }

    fn shard(&self, key: Key) -> &Mutex<HashMap<Key, Fetches, KeyHashing>> {
        &self.shards[key.spread() % SHARDS]
    }
}

impl Fetches {
    fn count(&self) -> usize {
        usize::from(self.one.is_some()) + self.more.len()
    }

    fn insert(&mut self, headers: Arc<HeaderMap>) -> Option<usize> {
        if self.one.is_none() {
            self.one = Some(headers);
            return None;
        }
        Some(self.more.insert(headers))
    }

    fn remove(&mut self, place: Option<usize>) {
        match place {
            None => self.one = None,
            Some(place) => drop(self.more.remove(place)),
        }
    }

    fn has_for(&self, among: &Among) -> bool {
        self.one.iter().chain(self.more.iter().map(|(_, headers)| headers)).any(|other| among.is_for(other))
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let mut shard = self.traffic.shard(self.key).lock();
        if let Entry::Occupied(mut fetches) = shard.entry(self.key) {
            fetches.get_mut().remove(self.place);
            if fetches.get().count() == 0 {
                fetches.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::selecting::Selecting;
    use super::*;
    use crate::policy::Keyer;

    #[test]
    fn a_fetch_is_told_of_others_for_the_same_until_they_have_ended() {
        let (traffic, keyer) = (Arc::<Traffic>::default(), Keyer::with_seed(1, 2));
        let by_language = Selecting::by(&["accept-language"]);
        let among = |language: &'static str, selecting: &Selecting| {
            let headers = [("accept-language", language)];
            let headers: HeaderMap = headers
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .into_iter()
                .collect();
            let key = |names: &[_]| keyer.variant(keyer.word("key", "key"), names, &headers);
            let elsewhere: Vec<_> = selecting.others().map(key).collect();
            Among::under(key(selecting.names()), &elsewhere, headers.clone(), selecting.clone())
        };
        let (unselected, german, french) =
            (among("de", &Selecting::default()), among("de", &by_language), among("fr", &by_language));
        let (first, is_beside) = traffic.enter(&unselected);
        assert!(!is_beside);
        let (second, is_beside) = traffic.enter(&unselected);
        assert!(is_beside && traffic.has_others(&unselected));
        drop(first);
        assert!(traffic.enter(&unselected).1, "the second is under way still");
        assert!(traffic.enter(&german).1, "it is for the same, though not known to be when it began");
        assert!(!traffic.enter(&french).1);
        assert!(traffic.has_others(&german) && !traffic.has_others(&french));
        drop(second);
        assert!(!traffic.enter(&german).1);
        assert!(traffic.shards.iter().all(|shard| shard.lock().is_empty()));
    }

    #[test]
    fn of_very_many_elsewhere_one_is_taken_to_be_for_the_same() {
        let (traffic, keyer) = (Arc::<Traffic>::default(), Keyer::with_seed(1, 2));
        let (key, elsewhere) = (keyer.word("key", "own"), keyer.word("key", "elsewhere"));
        let selecting = Selecting::by(&["foo"]);
        let other: HeaderMap = [("foo".parse().unwrap(), "bar".parse().unwrap())].into_iter().collect();
        let other = Among::under(elsewhere, &[], other, Selecting::default());
        let own = Among::under(key, &[elsewhere], HeaderMap::new(), selecting);
        let mut under_way: Vec<_> = (0..LOOKED_AT_MAX).map(|_| traffic.enter(&other)).collect();
        assert!(!traffic.enter(&own).1);
        under_way.push(traffic.enter(&other));
        assert!(traffic.enter(&own).1);
    }
}
