//! The table of flights.

use crate::checker::{block_on, explore};
use crate::flight::{Flights, Follower, Joined, Leader, Lost};
use crate::stage::{ask_once, join_all};
use crate::sync::{AtomicUsize, Ordering};
use std::sync::Arc;

type Table = Flights<u8, u32>;

fn join(table: &Table) -> Joined<u8, u32> {
    table.join(&1, 0, 9, || 1)
}

fn lead(table: &Table) -> (Leader<u8, u32>, Follower<u32>) {
    match join(table) {
        Joined::Leader(leader, seat, false) => (leader, seat),
        other => panic!("{other:?}"),
    }
}

#[test]
fn at_most_one_flight_is_in_the_air_and_everyone_aboard_gets_its_landing() {
    explore(3, 2, |cast| {
        let table = Table::default();
        let in_the_air = Arc::new(AtomicUsize::new(0));
        join_all((0..3).map(|role| {
            let (table, in_the_air) = (table.clone(), Arc::clone(&in_the_air));
            cast.plays(role, move || match join(&table) {
                Joined::Leader(leader, mut seat, replaces) => {
                    assert!(!replaces);
                    assert_eq!(in_the_air.fetch_add(1, Ordering::SeqCst), 0);
                    in_the_air.fetch_sub(1, Ordering::SeqCst);
                    leader.land_and_leave(7);
                    assert_eq!(block_on(seat.landing()), Ok(7));
                }
                Joined::Follower(mut seat) => assert_eq!(block_on(seat.landing()), Ok(7)),
                other @ (Joined::Landed(_) | Joined::Full) => panic!("{other:?}"),
            })
        }));
        assert_eq!(table.count(), 0);
    });
}

#[test]
fn while_a_landing_is_kept_nobody_else_leads() {
    explore(2, 1, |cast| {
        let table = Table::default();
        let (leader, mut seat) = lead(&table);
        let others = [0, 1].map(|role| {
            let table = table.clone();
            cast.plays(role, move || match join(&table) {
                Joined::Follower(mut seat) => assert_eq!(block_on(seat.landing()), Ok(7)),
                Joined::Landed(landing) => assert_eq!(landing, 7),
                other @ (Joined::Leader(..) | Joined::Full) => panic!("{other:?}"),
            })
        });
        let landed = leader.land(7);
        assert_eq!(block_on(seat.landing()), Ok(7));
        join_all(others);
        drop(seat);
        assert_eq!(landed.aboard(), 0);
        drop(landed);
        assert_eq!(table.count(), 0);
    });
}

#[test]
fn nobody_waits_for_a_leader_that_is_gone() {
    for step in 0..4 {
        explore(2, 1, move |cast| {
            let table = Table::default();
            let (leader, mut seat) = lead(&table);
            let others = [0, 1].map(|role| {
                let table = table.clone();
                cast.plays(role, move || match join(&table) {
                    Joined::Follower(mut seat) => {
                        let landing = block_on(seat.landing());
                        assert!(landing == Err(Lost) || landing == Ok(7));
                    }
                    Joined::Leader(leader, mut seat, _) => {
                        drop(leader);
                        assert_eq!(block_on(seat.landing()), Err(Lost));
                    }
                    Joined::Landed(landing) => assert_eq!(landing, 7),
                    Joined::Full => panic!("full"),
                })
            });
            // The leader is dropped at each of its steps.
            match step {
                0 => drop(leader),
                1 => {
                    ask_once(leader.abandoned());
                    drop(leader);
                }
                2 => drop(leader.retire().expect_err("the first seat is taken")),
                _ => drop(leader.land(7)),
            }
            let landing = block_on(seat.landing());
            assert_eq!(landing, if step == 3 { Ok(7) } else { Err(Lost) });
            join_all(others);
            assert_eq!(table.count(), 0);
        });
    }
}

#[test]
fn who_joins_after_a_landing_was_left_leads() {
    explore(1, 1, |cast| {
        let table = Table::default();
        let (leader, _seat) = lead(&table);
        let has_left = Arc::new(AtomicUsize::new(0));
        let other = {
            let (table, has_left) = (table.clone(), Arc::clone(&has_left));
            cast.plays(0, move || {
                let comes_after = has_left.load(Ordering::SeqCst) == 1;
                match join(&table) {
                    Joined::Leader(leader, ..) => leader.land_and_leave(8),
                    Joined::Follower(mut seat) if !comes_after => {
                        assert_eq!(block_on(seat.landing()), Ok(7));
                    }
                    other => panic!("{other:?}"),
                }
            })
        };
        leader.land_and_leave(7);
        has_left.store(1, Ordering::SeqCst);
        join_all([other]);
    });
}

#[test]
fn a_flight_that_retires_strands_nobody_who_boards_at_the_same_time() {
    explore(2, 1, |cast| {
        let table = Table::default();
        let (leader, seat) = lead(&table);
        let others = [0, 1].map(|role| {
            let table = table.clone();
            cast.plays(role, move || match join(&table) {
                Joined::Follower(mut seat) => assert_eq!(block_on(seat.landing()), Ok(7)),
                Joined::Leader(leader, ..) => leader.land_and_leave(7),
                other @ (Joined::Landed(_) | Joined::Full) => panic!("{other:?}"),
            })
        });
        drop(seat);
        if let Err(leader) = leader.retire() {
            leader.land_and_leave(7);
        }
        join_all(others);
        assert_eq!(table.count(), 0);
    });
}

#[test]
fn a_flight_that_everyone_has_left_notices() {
    explore(3, 1, |cast| {
        let table = Table::default();
        let (mut leader, mut seat) = lead(&table);
        let first = cast.plays(0, move || {
            ask_once(seat.landing());
            drop(seat);
        });
        let others = [1, 2].map(|role| {
            let table = table.clone();
            cast.plays(role, move || match join(&table) {
                Joined::Follower(mut seat) => ask_once(seat.landing()),
                Joined::Leader(leader, ..) => drop(leader),
                other @ (Joined::Landed(_) | Joined::Full) => panic!("{other:?}"),
            })
        });
        block_on(async {
            loop {
                leader.abandoned().await;
                match leader.retire() {
                    Ok(()) => break,
                    Err(back) => leader = back,
                }
            }
        });
        join_all(others);
        join_all([first]);
        assert_eq!(table.count(), 0);
    });
}

#[test]
fn a_flight_that_is_too_old_is_replaced_once_and_flies_on_for_those_aboard() {
    explore(2, 2, |cast| {
        let table = Table::default();
        let (old, mut early) = lead(&table);
        let count = Arc::new(AtomicUsize::new(0));
        let newcomers = [0, 1].map(|role| {
            let (table, count) = (table.clone(), Arc::clone(&count));
            cast.plays(role, move || match table.join(&1, 2, 9, || 3) {
                Joined::Leader(leader, mut seat, replaces) => {
                    count.fetch_add(usize::from(replaces), Ordering::SeqCst);
                    leader.land_and_leave(30);
                    assert_eq!(block_on(seat.landing()), Ok(30));
                }
                Joined::Follower(mut seat) => assert_eq!(block_on(seat.landing()), Ok(30)),
                other @ (Joined::Landed(_) | Joined::Full) => panic!("{other:?}"),
            })
        });
        drop(old.land(10));
        assert_eq!(block_on(early.landing()), Ok(10));
        join_all(newcomers);
        assert!(count.load(Ordering::SeqCst) <= 1);
        assert_eq!(table.count(), 0);
    });
}
