//! For which keys a response has proved to be for everyone, so that requests with credentials may wait for the next.
//!
//! The last response under a key says so (RFC 9111 §3.5), whoever asked for it. That outlives the response: it may have been purged, or
//! pushed out of the store, and still the next fetch is more likely one for all than one for each. No more than that hangs on it:
//! what lands is judged for each who waits. So a table of a fixed size will do, in which a key may lose its place to another.

use crate::policy::Key;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Places that get their memory together, with the first of them that is taken.
const PAGE_PLACES: usize = 1024;

type Page = [AtomicU32; PAGE_PLACES];

/// A place for each key, which it shares with others: the last that was noted has it.
#[derive(Debug)]
pub(super) struct Proofs {
    pages: Box<[OnceLock<Box<Page>>]>,
}

/// A place that nobody has.
const FREE: u32 = 0;

impl Proofs {
    /// Room for so many keys, and a few more.
    pub(super) fn new(keys_max: u64) -> Self {
        let pages = usize::try_from(keys_max.div_ceil(PAGE_PLACES as u64)).unwrap_or(usize::MAX);
        let pages = if pages == 0 { 0 } else { pages.next_power_of_two() };
        Self { pages: (0..pages).map(|_| OnceLock::new()).collect() }
    }

    /// Notes whether the last response under the key permits to be shared with requests that carry credentials.
    pub(super) fn note(&self, key: Key, permits: bool) {
        let Some((page, place)) = self.place(key) else { return };
        let mark = mark(key);
        if permits {
            let place = &page.get_or_init(empty)[place];
            // Most say the same again, and to look does not take the place from the other threads.
            if place.load(Ordering::Relaxed) != mark {
                place.store(mark, Ordering::Relaxed);
            }
        } else if self.has(key)
            && let Some(page) = page.get()
        {
            // Where another key has taken the place meanwhile, that is the answer.
            let _ = page[place].compare_exchange(mark, FREE, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Whether the last response under the key permitted that, as far as is known.
    pub(super) fn has(&self, key: Key) -> bool {
        let page = self.place(key).and_then(|(page, place)| Some(&page.get()?[place]));
        page.is_some_and(|place| place.load(Ordering::Relaxed) == mark(key))
    }

    fn place(&self, key: Key) -> Option<(&OnceLock<Box<Page>>, usize)> {
        let number = key.spread();
        // A power of two, or none.
        let page = self.pages.get((number / PAGE_PLACES) & self.pages.len().wrapping_sub(1))?;
        Some((page, number % PAGE_PLACES))
    }
}

fn empty() -> Box<Page> {
    Box::new([const { AtomicU32::new(FREE) }; PAGE_PLACES])
}

/// What tells a key from others in its place: bits that do not choose the place.
fn mark(key: Key) -> u32 {
    ((key.as_u128() >> 96) as u32).max(FREE + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Keyer;

    fn keys() -> impl Iterator<Item = Key> {
        let keyer = Keyer::with_seed(1, 2);
        (0..).map(move |number| keyer.word("key", &format!("{number}")))
    }

    #[test]
    fn a_key_is_known_until_a_response_says_otherwise() {
        let proofs = Proofs::new(100_000);
        let noted: Vec<Key> = keys().take(1000).collect();
        assert!(noted.iter().all(|key| !proofs.has(*key)));
        for key in &noted {
            proofs.note(*key, true);
        }
        let known = noted.iter().filter(|key| proofs.has(**key)).count();
        assert!(known > 980, "{known}");
        let last = noted[999];
        proofs.note(last, false);
        assert!(!proofs.has(last));
        assert_eq!(noted.iter().filter(|key| proofs.has(**key)).count(), known - 1);
        assert!(keys().skip(1000).take(10_000).all(|key| !proofs.has(key)), "one was taken for another");
    }

    #[test]
    fn a_key_that_has_lost_its_place_takes_nobody_elses_away() {
        let proofs = Proofs::new(1);
        let noted: Vec<Key> = keys().take(100_000).collect();
        for key in &noted {
            proofs.note(*key, true);
        }
        let known = |proofs: &Proofs| noted.iter().filter(|key| proofs.has(**key)).count();
        let taken = known(&proofs);
        assert!(taken <= PAGE_PLACES && taken > PAGE_PLACES / 2, "{taken}");
        for key in noted.iter().filter(|key| !proofs.has(**key)) {
            proofs.note(*key, false);
        }
        assert_eq!(known(&proofs), taken);
    }

    #[test]
    fn memory_comes_with_the_first_key_and_without_room_nothing_is_known() {
        let proofs = Proofs::new(100_000);
        let key = keys().next().unwrap();
        proofs.note(key, false);
        assert!(proofs.pages.iter().all(|page| page.get().is_none()));
        proofs.note(key, true);
        assert_eq!(proofs.pages.iter().filter(|page| page.get().is_some()).count(), 1);
        let none = Proofs::new(0);
        none.note(key, true);
        assert!(!none.has(key));
    }
}
