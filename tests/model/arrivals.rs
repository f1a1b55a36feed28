//! What a fetch brings, and those who come while it becomes known: under which key to wait depends on what selects, which is known
//! with the answer.

use crate::checker::{block_on, explore};
use crate::flight::{self, Begun, Flights, Joined, Leader};
use crate::stage::join_all;
use crate::sync::Mutex;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

type Language = u8;

/// How many fields select, as far as is known: the language, and then the region where it is spoken.
type Fields = usize;

/// Under what fetches meet: nothing, before it is known that the language selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place(Option<(Language, Fields)>);

/// All of them lie in one shard of the table: were it drawn which do, no order could be played again.
impl Hash for Place {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// What a flight brings. Nothing: its leader was overtaken.
type Landing = Option<Language>;

/// What is known of a flight before it lands.
#[derive(Debug)]
struct Departure {
    tick: u64,
    language: Language,
}

impl Begun for Departure {
    fn tick(&self) -> u64 {
        self.tick
    }
}

/// The store and the notes, with plain sets in the place of moka. Who asks and who fetches takes the steps of the proxy, in the
/// order that the flights give them.
#[derive(Default)]
struct House {
    table: Flights<Place, Landing, Departure>,
    stored: Mutex<Vec<Language>>,
    /// How many fields an answer has named.
    selecting: Mutex<Fields>,
    /// How many flights were begun. Nobody waits for this lock, which is none of the checker's.
    begun: std::sync::Mutex<u64>,
    /// Nobody waits for this lock, which is none of the checker's.
    fetched: std::sync::Mutex<Vec<Language>>,
    /// Whether the body is still coming when the head has come.
    is_long: bool,
    /// Whether the first to come have gone, who knew nothing of what selects: nobody looks for them.
    is_known: bool,
    /// Whether all answers but those in the first language name the region, too.
    names_more: bool,
}

impl House {
    fn asks(&self, language: Language) {
        self.asks_by(None, language);
    }

    /// Asks by so many fields, or as many as are known to select.
    fn asks_by(&self, own: Option<Fields>, language: Language) {
        while !self.has(language) {
            let (place, elsewhere) = self.places_of(own, language);
            let is_for = |departure: &Departure| departure.language == language;
            let begin = || Departure { tick: self.tick(), language };
            let landing = match self.table.meet((&place, &elsewhere), 0, 9, is_for, begin).0 {
                Joined::Leader(leader, _seat, _) => {
                    let look = |leader: &Leader<_, _, _>| {
                        self.table.is_airborne(&elsewhere, 0..leader.tick(), is_for)
                            || self.has(language)
                            || self.places_of(own, language).0 != place
                    };
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

    fn fetches(&self, leader: Leader<Place, Landing, Departure>, language: Language) {
        self.fetched.lock().unwrap().push(language);
        let named = if self.names_more && language > 1 { 2 } else { 1 };
        let tell = || {
            let mut selecting = self.selecting.lock();
            *selecting = named.max(*selecting);
        };
        flight::make_known(|| self.stored.lock().push(language), tell);
        if self.is_long {
            drop(leader.land(Some(language)));
        } else {
            leader.land_and_leave(Some(language));
        }
    }

    /// Where to meet, as far as is known, and where those may who know less, or more.
    fn places_of(&self, own: Option<Fields>, language: Language) -> (Place, Vec<Place>) {
        let all = *self.selecting.lock();
        let place = |fields: Fields| Place((fields > 0).then_some((language, fields)));
        let own = own.unwrap_or(all);
        let first = usize::from(self.is_known);
        (place(own), (first..=all).filter(|other| *other != own).map(place).collect())
    }

    fn tick(&self) -> u64 {
        let mut begun = self.begun.lock().unwrap();
        *begun += 1;
        *begun
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
        let house = Arc::new(House { is_known: true, ..House::default() });
        house.asks(0);
        join_all([1, 1, 2, 2].into_iter().enumerate().map(|(role, language)| {
            let house = Arc::clone(&house);
            cast.plays(role, move || house.asks(language))
        }));
        house.check();
    });
}

#[test]
fn those_who_go_by_fewer_fields_and_those_who_go_by_more_fetch_once() {
    // Who has a stale response to go by goes by its list, whatever is known beside. All orders of two take minutes.
    explore(3, 1, |cast| {
        let selecting = Mutex::new(2);
        let house = Arc::new(House { is_known: true, selecting, ..House::default() });
        join_all([Some(1), None, Some(1)].into_iter().enumerate().map(|(role, own)| {
            let house = Arc::clone(&house);
            cast.plays(role, move || house.asks_by(own, 1))
        }));
        house.check();
    });
}

#[test]
fn those_who_come_while_more_is_told_of_what_selects_fetch_each_variant_once() {
    // The fetch of the first of two who ask for the same may have begun before a third is told of one field more. That takes
    // three, for all orders of whom there is no time.
    explore(3, 1, |cast| {
        let house = Arc::new(House { names_more: true, ..House::default() });
        house.asks(0);
        join_all([1, 1, 2].into_iter().enumerate().map(|(role, language)| {
            let house = Arc::clone(&house);
            cast.plays(role, move || house.asks(language))
        }));
        house.check();
    });
}
