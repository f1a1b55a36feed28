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

/// The store and the notes, with plain sets in the place of moka. Who asks and who fetches takes the steps of the proxy, in the
/// order that the flights give them.
#[derive(Default)]
struct House {
    table: Flights<Place, Language>,
    stored: Mutex<Vec<Language>>,
    language_selects: Mutex<bool>,
    fetched: Mutex<Vec<Language>>,
    /// Whether the body is still coming when the head has come.
    is_long: bool,
}

impl House {
    fn asks(&self, language: Language) {
        if self.has(language) {
            return;
        }
        let mut place = if *self.language_selects.lock() { Some(language) } else { None };
        loop {
            let landing = match self.table.join(&place, 0, 9, || 1) {
                Joined::Leader(leader, seat, _) => {
                    if let Ok(leader) =
                        leader.unless_found(|| Some((language, ())).filter(|_| self.has(language)))
                    {
                        self.fetches(leader, language);
                    }
                    return drop(seat);
                }
                Joined::Follower(mut seat) => block_on(seat.landing()).unwrap(),
                Joined::Landed(landing) => landing,
                Joined::Full => panic!("full"),
            };
            if landing == language || self.has(language) {
                return;
            }
            place = Some(language);
        }
    }

    fn fetches(&self, leader: Leader<Place, Language>, language: Language) {
        self.fetched.lock().push(language);
        flight::make_known(|| self.stored.lock().push(language), || *self.language_selects.lock() = true);
        if self.is_long {
            drop(leader.land(language));
        } else {
            leader.land_and_leave(language);
        }
    }

    fn has(&self, language: Language) -> bool {
        self.stored.lock().contains(&language)
    }
}

#[test]
fn those_who_come_together_fetch_once_whenever_they_learn_what_selects() {
    for is_long in [false, true] {
        explore(3, 2, move |cast| {
            let house = Arc::new(House { is_long, ..House::default() });
            join_all((0..3).map(|role| {
                let house = Arc::clone(&house);
                cast.plays(role, move || house.asks(1))
            }));
            assert_eq!(*house.fetched.lock(), [1]);
            assert_eq!(house.table.count(), 0);
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
        let mut fetched = std::mem::take(&mut *house.fetched.lock());
        let all = fetched.len();
        fetched.sort_unstable();
        fetched.dedup();
        assert_eq!(fetched.len(), all, "{fetched:?}");
        assert_eq!(house.table.count(), 0);
    });
}
