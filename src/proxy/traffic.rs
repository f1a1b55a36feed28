//! Which keys are being fetched, and for whom: also by those who fetch for themselves and whom nobody waits for.

use super::meeting::Among;
use super::plain::ClientFields;
use crate::policy::{Key, KeyHashing};
use crate::telemetry::DuplicateCause;
use parking_lot::Mutex;
use slab::Slab;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// Shards of the table. A power of two: enough that two cores rarely meet.
const SHARDS: usize = 16;

/// Of the fetches under a key so many are looked at. Where there are more, it is taken for granted that one is for the same.
const LOOKED_AT_MAX: usize = 64;

/// The fetches that others with the same key could have waited for, had they brought what is for everyone.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// Each guards which fetches are under way for its keys. A plain lock, because it is held for one map operation.
    shards: [Mutex<HashMap<Key, Fetches, KeyHashing>>; SHARDS],
}

/// The fetches under one key. Mostly there is one, which needs no list.
#[derive(Debug, Default)]
struct Fetches {
    one: Option<UnderWay>,
    more: Slab<UnderWay>,
}

#[derive(Debug)]
struct UnderWay {
    /// The fields of the client that it was sent for.
    headers: ClientFields,
    ticket: Ticket,
}

/// What others have to know of a fetch under way that they do not wait for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    /// Its place among all fetches and purges.
    pub(super) tick: u64,
    /// Why they do not: it is this that makes one beside it one too many.
    pub(super) alone: DuplicateCause,
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
    /// A fetch sets out. Where others are under way, says why it does not share what they bring: that they were begun before `since`,
    /// when the last purge was, or else why nobody waits for one of the others.
    pub(super) fn enter(
        self: &Arc<Self>,
        among: &Among,
        ticket: Ticket,
        since: u64,
    ) -> (Passage, Option<DuplicateCause>) {
        let key = among.key;
        let (place, here) = {
            let mut shard = self.shard(key).lock();
            let fetches = shard.entry(key).or_default();
            let here = fetches.cause(since, |_| true);
            (fetches.insert(UnderWay { headers: among.headers.clone(), ticket }), here)
        };
        let cause = here.into_iter().chain(self.elsewhere(among, since)).min();
        (Passage { traffic: Arc::clone(self), key, place }, cause)
    }

    /// Whether others are under way beside one that has set out already.
    pub(super) fn has_others(&self, among: &Among) -> bool {
        self.shard(among.key).lock().get(&among.key).is_some_and(|fetches| fetches.count() > 1)
            || self.elsewhere(among, 0).next().is_some()
    }

    /// The same of those that are under way for the same under other keys, because their requests met others by other fields.
    fn elsewhere(&self, among: &Among, since: u64) -> impl Iterator<Item = DuplicateCause> {
        among.elsewhere.iter().filter_map(move |key| {
            let shard = self.shard(*key).lock();
            let fetches = shard.get(key)?;
            let are_many = fetches.count() > LOOKED_AT_MAX;
            fetches.cause(since, |headers| are_many || among.is_for(headers))
        })
    }

    fn shard(&self, key: Key) -> &Mutex<HashMap<Key, Fetches, KeyHashing>> {
        &self.shards[key.spread() % SHARDS]
    }
}

impl Passage {
    /// What came is for one client, whatever has been purged.
    pub(super) fn is_for_one(&self) {
        let mut shard = self.traffic.shard(self.key).lock();
        if let Some(fetch) = shard.get_mut(&self.key).and_then(|fetches| fetches.at(self.place)) {
            fetch.ticket = Ticket { tick: u64::MAX, alone: DuplicateCause::Uncacheable };
        }
    }
}

impl Fetches {
    fn count(&self) -> usize {
        usize::from(self.one.is_some()) + self.more.len()
    }

    fn insert(&mut self, fetch: UnderWay) -> Option<usize> {
        if self.one.is_none() {
            self.one = Some(fetch);
            return None;
        }
        Some(self.more.insert(fetch))
    }

    fn at(&mut self, place: Option<usize>) -> Option<&mut UnderWay> {
        match place {
            None => self.one.as_mut(),
            Some(place) => self.more.get_mut(place),
        }
    }

    fn remove(&mut self, place: Option<usize>) {
        match place {
            None => self.one = None,
            Some(place) => drop(self.more.remove(place)),
        }
    }

    /// Why one that sets out does not share what those bring that are for the same; `None`: there are none.
    fn cause(&self, since: u64, is_for: impl Fn(&ClientFields) -> bool) -> Option<DuplicateCause> {
        let all = self.one.iter().chain(self.more.iter().map(|(_, fetch)| fetch)).take(LOOKED_AT_MAX);
        let mut least = None;
        for UnderWay { ticket, .. } in all.filter(|fetch| is_for(&fetch.headers)) {
            let cause = if ticket.tick < since { DuplicateCause::Purge } else { ticket.alone };
            least = Some(least.map_or(cause, |least: DuplicateCause| least.min(cause)));
            if cause == DuplicateCause::Uncacheable {
                // None comes before it, and where there are many they are mostly of this kind.
                break;
            }
        }
        least
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
    use http::HeaderMap;

    const fn ticket(tick: u64, alone: DuplicateCause) -> Ticket {
        Ticket { tick, alone }
    }

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
        let enter = |among: &Among| {
            let (passage, cause) = traffic.enter(among, ticket(1, DuplicateCause::Uncacheable), 0);
            (passage, cause.is_some())
        };
        let (first, is_beside) = enter(&unselected);
        assert!(!is_beside);
        let (second, is_beside) = enter(&unselected);
        assert!(is_beside && traffic.has_others(&unselected));
        drop(first);
        assert!(enter(&unselected).1, "the second is under way still");
        assert!(enter(&german).1, "it is for the same, though not known to be when it began");
        assert!(!enter(&french).1);
        assert!(traffic.has_others(&german) && !traffic.has_others(&french));
        drop(second);
        assert!(!enter(&german).1);
        assert!(traffic.shards.iter().all(|shard| shard.lock().is_empty()));
    }

    #[test]
    fn a_fetch_is_told_why_it_does_not_share_what_the_others_bring() {
        use DuplicateCause::{Purge, Uncacheable, WaiterTimeout};
        let traffic = Arc::<Traffic>::default();
        let key = Keyer::with_seed(1, 2).word("key", "key");
        let among = Among::under(key, &[], HeaderMap::new(), Selecting::default());
        let cause = |since| traffic.enter(&among, ticket(100, Uncacheable), since).1;
        assert_eq!(cause(0), None);
        let _old = traffic.enter(&among, ticket(2, Uncacheable), 0);
        assert_eq!((cause(0), cause(2), cause(3)), (Some(Uncacheable), Some(Uncacheable), Some(Purge)));
        let _new = traffic.enter(&among, ticket(5, WaiterTimeout), 0);
        assert_eq!((cause(2), cause(3), cause(6)), (Some(Uncacheable), Some(WaiterTimeout), Some(Purge)));
    }

    #[test]
    fn of_very_many_elsewhere_one_is_taken_to_be_for_the_same() {
        let (traffic, keyer) = (Arc::<Traffic>::default(), Keyer::with_seed(1, 2));
        let (key, elsewhere) = (keyer.word("key", "own"), keyer.word("key", "elsewhere"));
        let selecting = Selecting::by(&["foo"]);
        let other: HeaderMap = [("foo".parse().unwrap(), "bar".parse().unwrap())].into_iter().collect();
        let other = Among::under(elsewhere, &[], other, Selecting::default());
        let own = Among::under(key, &[elsewhere], HeaderMap::new(), selecting);
        let enter = |among| traffic.enter(among, ticket(1, DuplicateCause::Uncacheable), 0);
        let mut under_way: Vec<_> = (0..LOOKED_AT_MAX).map(|_| enter(&other)).collect();
        assert_eq!(enter(&own).1, None);
        under_way.push(enter(&other));
        assert_eq!(enter(&own).1, Some(DuplicateCause::Uncacheable));
    }
}
