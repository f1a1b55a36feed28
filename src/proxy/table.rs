//! What is remembered by key: bounded in number, and read far more often than written.

use crate::policy::{Key, KeyHashing};
use parking_lot::Mutex;
use std::collections::HashMap;

/// Shards of a table. A power of two: enough that two cores rarely meet.
const SHARDS: usize = 16;

/// Values by key. When there are too many, one goes that nobody has asked for lately.
#[derive(Debug)]
pub(super) struct Table<V> {
    /// Each guards the values of its keys. A plain lock, because it is held for one look or change; never across an await.
    shards: [Mutex<Shard<V>>; SHARDS],
    /// How many there may be in each.
    most: usize,
}

#[derive(Debug)]
struct Shard<V> {
    places: HashMap<Key, usize, KeyHashing>,
    slots: Vec<Slot<V>>,
    /// Where it is looked next for one that can go.
    hand: usize,
}

#[derive(Debug)]
struct Slot<V> {
    key: Key,
    value: V,
    /// Whether it was asked for since the hand passed: then it has a second chance.
    is_used: bool,
}

/// What becomes of a value.
#[derive(Debug)]
pub(super) enum Change<V> {
    /// It stays as it is, or is not there.
    None,
    Put(V),
    Remove,
}

impl<V: Clone> Table<V> {
    /// Room for so many, and a few more.
    pub(super) fn new(most: u64) -> Self {
        let most = usize::try_from(most.div_ceil(SHARDS as u64)).unwrap_or(usize::MAX);
        Self { shards: Default::default(), most }
    }

    /// The value of the key.
    pub(super) fn get(&self, key: &Key) -> Option<V> {
        let mut shard = self.shard(key).lock();
        let place = *shard.places.get(key)?;
        let slot = &mut shard.slots[place];
        slot.is_used = true;
        Some(slot.value.clone())
    }

    /// Whether the key has a value.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.shard(key).lock().places.contains_key(key)
    }

    /// Gives the key a value.
    pub(super) fn put(&self, key: Key, value: V) {
        self.shard(&key).lock().put(key, value, self.most);
    }

    /// Takes the value of the key away.
    pub(super) fn remove(&self, key: &Key) {
        self.shard(key).lock().remove(key);
    }

    /// Changes the value of the key. Nobody sees or changes it meanwhile.
    pub(super) fn change(&self, key: Key, change: impl FnOnce(Option<&V>) -> Change<V>) {
        let mut shard = self.shard(&key).lock();
        let before = shard.places.get(&key).map(|place| &shard.slots[*place].value);
        match change(before) {
            Change::None => {}
            Change::Put(value) => shard.put(key, value, self.most),
            Change::Remove => shard.remove(&key),
        }
    }

    fn shard(&self, key: &Key) -> &Mutex<Shard<V>> {
        &self.shards[key.spread() % SHARDS]
    }
}

impl<V> Shard<V> {
    fn put(&mut self, key: Key, value: V, most: usize) {
        if let Some(place) = self.places.get(&key) {
            self.slots[*place].value = value;
        } else if self.slots.len() < most {
            self.places.insert(key, self.slots.len());
            self.slots.push(Slot { key, value, is_used: false });
        } else if most > 0 {
            let place = self.unused();
            self.places.remove(&self.slots[place].key);
            self.places.insert(key, place);
            self.slots[place] = Slot { key, value, is_used: false };
        }
    }

    /// The next that was not asked for since the hand passed. In the second round at the latest there is one.
    fn unused(&mut self) -> usize {
        loop {
            let place = self.hand % self.slots.len();
            self.hand = place + 1;
            if !std::mem::take(&mut self.slots[place].is_used) {
                return place;
            }
        }
    }

    fn remove(&mut self, key: &Key) {
        let Some(place) = self.places.remove(key) else { return };
        self.slots.swap_remove(place);
        if let Some(moved) = self.slots.get(place) {
            self.places.insert(moved.key, place);
        }
    }
}

impl<V> Default for Shard<V> {
    fn default() -> Self {
        Self { places: HashMap::default(), slots: Vec::new(), hand: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Keyer;

    fn keys(count: usize) -> Vec<Key> {
        let keyer = Keyer::with_seed(1, 2);
        (0..count).map(|number| keyer.word("key", &format!("{number}"))).collect()
    }

    #[test]
    fn what_was_put_is_there_until_it_is_removed() {
        let (table, keys) = (Table::new(100_000), keys(1000));
        for (number, key) in keys.iter().enumerate() {
            table.put(*key, number);
        }
        for key in keys.iter().skip(1).step_by(2) {
            table.remove(key);
            table.remove(key);
        }
        for (number, key) in keys.iter().enumerate() {
            assert_eq!(table.get(key), (number % 2 == 0).then_some(number));
            assert_eq!(table.has(key), number % 2 == 0);
        }
    }

    #[test]
    fn a_change_sees_what_is_there_and_decides_what_becomes_of_it() {
        let (table, key) = (Table::new(1), keys(1)[0]);
        table.change(key, |before| {
            assert_eq!(before, None);
            Change::Put(1)
        });
        table.change(key, |before| before.map_or(Change::None, |before| Change::Put(before + 1)));
        assert_eq!(table.get(&key), Some(2));
        table.change(key, |_| Change::None);
        assert_eq!(table.get(&key), Some(2));
        table.change(key, |_| Change::Remove);
        assert_eq!(table.get(&key), None);
    }

    #[test]
    fn of_too_many_those_go_that_nobody_asks_for() {
        let (table, keys) = (Table::new(1000), keys(20_000));
        let (asked, others) = keys.split_at(200);
        for key in asked {
            table.put(*key, ());
        }
        for key in others {
            table.put(*key, ());
            for key in asked {
                table.get(key);
            }
        }
        assert!(asked.iter().all(|key| table.has(key)));
        let kept = keys.iter().filter(|key| table.has(key)).count();
        assert!((900..=1000 + SHARDS).contains(&kept), "{kept}");
        assert!(table.has(&others[others.len() - 1]));
    }

    #[test]
    fn without_room_nothing_is_kept() {
        let (table, key) = (Table::new(0), keys(1)[0]);
        table.put(key, ());
        assert!(!table.has(&key));
    }
}
