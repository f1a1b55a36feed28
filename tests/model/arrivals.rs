//! What a fetch brings, and those who come while it becomes known: under which key to wait depends on what selects, which is known
//! with the answer.

use crate::checker::{block_on, explore};
use crate::flight::{self, Flights, Joined, Leader};
use crate::stage::join_all;
use crate::sync::Mutex;
use std::sync::Arc;

type Language = u8;

/// Under what fetches meet: nothing, before it is known that the language selects.
type Place = Option<Language>;

/// What a flight brings. Nothing: its leader was overtaken.
type Landing = Option<Language>;

/// The store and the notes, with plain sets in the place of moka. Who asks and who fetches takes the steps of the proxy, in the
/// order that the flights give them.
#[derive(Default)]
struct House {
    table: Flights<Place, Landing>,
    stored: Mutex<Vec<Language>>,
    language_selects: Mutex<bool>,
    /// Nobody waits for this lock, which is none of the checker's.
    fetched: std::sync::Mutex<Vec<Language>>,
    /// Whether the body is still coming when the head has come.
    is_long: bool,
}

impl House {
    fn asks(&self, language: Language) {
        while !self.has(language) {
            let place = self.place_of(language);
            let landing = match self.table.join(&place, 0, 9, || 1) {
                Joined::Leader(leader, _seat, _) => {
                    let look = |_: &_| self.has(language) || self.place_of(language) != place;
                    match leader.unless_overtaken(None, look) {
                        Some(leader) => return self.fetches(leader, language),
                        None => None,
                    }
                }
                Joined::Follower(mut seat) => block_on(seat.landing()).unwrap(),
                Joined::Landed(landing) => landing,
                Joined::Full => panic!("full"),
            };
            if landing == Some(language) {
                return;
            }
        }
    }

    fn fetches(&self, leader: Leader<Place, Landing>, language: Language) {
        self.fetched.lock().unwrap().push(language);
        flight::make_known(|| self.stored.lock().push(language), || *self.language_selects.lock() = true);
        if self.is_long {
            drop(leader.land(Some(language)));
        } else {
            leader.land_and_leave(Some(language));
        }
    }

    /// Where to meet, as far as is known.
    fn place_of(&self, language: Language) -> Place {
        self.language_selects.lock().then_some(language)
    }

    /// Nothing was fetched twice, and no flight is left.
    fn check(&self) {
        let fetched = std::mem::take(&mut *self.fetched.lock().unwrap());
        let mut distinct = fetched.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(fetched.len(), distinct.len(), "{fetched:?}");
        assert_eq!(self.table.count(), 0);
    }

    fn has(&self, language: Language) -> bool {
        self.stored.lock().contains(&language)
    }
}

#[test]
fn those_who_come_together_fetch_each_variant_once_whenever_they_learn_what_selects() {
    for is_long in [false, true] {
        explore(3, 2, move |cast| {
            let house = Arc::new(House { is_long, ..House::default() });
            join_all([1, 1, 2].into_iter().enumerate().map(|(role, language)| {
                let house = Arc::clone(&house);
                cast.plays(role, move || house.asks(language))
            }));
            house.check();
        });
    }
}

#[test]
fn those_who_know_what_selects_fetch_each_variant_once() {
    explore(4, 2, |cast| {
        let house = Arc::new(House::default());
        house.asks(0);
        join_all([1, 1, 2, 2].into_iter().enumerate().map(|(role, language)| {
            let house = Arc::clone(&house);
            cast.plays(role, move || house.asks(language))
        }));
        house.check();
    });
}
