use crate::flight::{Flights, Follower, Joined, Leader, Lost};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

type Table = Flights<&'static str, u32>;
type Pair = (Leader<&'static str, u32>, Follower<u32>);

#[derive(Default)]
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a waker that cannot bear it");
    }
}

fn poll<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

fn poll_with<F: Future>(future: F, waker: &Waker) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(waker))
}

fn join(table: &Table, since: u64, tick: u64) -> Joined<&'static str, u32> {
    table.join(&"key", since, 3, || tick)
}

#[track_caller]
fn lead(table: &Table, since: u64, tick: u64) -> (Pair, bool) {
    match join(table, since, tick) {
        Joined::Leader(leader, seat, replaces) => ((leader, seat), replaces),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn follow(table: &Table) -> Follower<u32> {
    match join(table, 0, 99) {
        Joined::Follower(seat) => seat,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_first_leads_and_all_others_follow() {
    let table = Table::default();
    let ((leader, mut first), replaces) = lead(&table, 0, 7);
    assert!(!replaces);
    assert_eq!((leader.tick(), *leader.key(), first.tick()), (7, "key", 7));
    let mut second = follow(&table);
    assert_eq!(table.look(&"key").map(|seen| (seen.tick, seen.seats)), Some((7, 2)));
    assert_eq!(table.look(&"other"), None);
    assert_eq!(
        (table.is_airborne(&["key"], 7..8, |_| true), table.is_airborne(&["other"], 0..9, |_| true)),
        (true, false)
    );
    assert!(poll(first.landing()).is_pending());
    let landed = leader.land(1);
    assert_eq!(poll(first.landing()), Poll::Ready(Ok(1)));
    assert_eq!(poll(second.landing()), Poll::Ready(Ok(1)));
    assert_eq!((table.is_airborne(&["key"], 0..9, |_| true), landed.aboard()), (false, 2));
    drop((first, second));
    assert_eq!(landed.aboard(), 0);
    assert!(matches!(join(&table, 0, 8), Joined::Landed(1)));
    drop(landed);
    assert_eq!(table.count(), 0);
    let _ = lead(&table, 0, 9);
}

#[test]
fn a_landing_that_is_left_is_for_those_aboard_only() {
    let table = Table::default();
    let ((leader, mut seat), _) = lead(&table, 0, 1);
    leader.land_and_leave(5);
    let (_next, replaces) = lead(&table, 0, 2);
    assert!(!replaces);
    assert_eq!(poll(seat.landing()), Poll::Ready(Ok(5)));
    assert_eq!(poll(seat.landing()), Poll::Ready(Ok(5)), "asked again");
}

#[test]
fn a_flight_whose_leader_is_dropped_is_lost() {
    let table = Table::default();
    let ((leader, mut first), _) = lead(&table, 0, 1);
    let mut second = follow(&table);
    let bell = Arc::new(Bell::default());
    assert!(poll_with(first.landing(), &Waker::from(Arc::clone(&bell))).is_pending());
    drop(leader);
    assert_eq!(bell.0.load(Ordering::SeqCst), 1);
    assert_eq!(poll(first.landing()), Poll::Ready(Err(Lost)));
    assert_eq!(poll(second.landing()), Poll::Ready(Err(Lost)));
    let _ = lead(&table, 0, 2);
}

#[test]
fn a_full_flight_takes_nobody_more_until_a_seat_is_free() {
    let table = Table::default();
    let ((_leader, first), _) = lead(&table, 0, 1);
    let others = (follow(&table), follow(&table));
    assert!(matches!(join(&table, 0, 2), Joined::Full));
    drop(others);
    let _ = follow(&table);
    drop(first);
}

#[test]
fn a_flight_that_is_too_old_is_replaced_and_flies_on() {
    let table = Table::default();
    let ((old, mut early), _) = lead(&table, 0, 1);
    let ((new, mut late), replaces) = lead(&table, 2, 3);
    assert!(replaces);
    assert_eq!(table.look(&"key").map(|seen| (seen.tick, seen.seats)), Some((3, 1)));
    drop(old.land(10));
    assert_eq!(table.count(), 1, "the end of the old one does not take out the new one");
    new.land_and_leave(30);
    assert_eq!(poll(early.landing()), Poll::Ready(Ok(10)));
    assert_eq!(poll(late.landing()), Poll::Ready(Ok(30)));
    assert_eq!(table.count(), 0);
}

#[test]
fn a_landing_that_is_too_old_is_replaced() {
    let table = Table::default();
    let ((old, _early), _) = lead(&table, 0, 1);
    let landed = old.land(10);
    let ((_new, _late), _) = lead(&table, 2, 3);
    drop(landed);
    assert_eq!(table.look(&"key").map(|seen| (seen.tick, seen.seats)), Some((3, 1)));
}

#[test]
fn a_flight_that_nobody_waits_for_is_retired() {
    let table = Table::default();
    let ((leader, first), _) = lead(&table, 0, 1);
    let bell = Arc::new(Bell::default());
    assert!(poll_with(leader.abandoned(), &Waker::from(Arc::clone(&bell))).is_pending());
    drop(first);
    assert_eq!(bell.0.load(Ordering::SeqCst), 1);
    assert!(poll(leader.abandoned()).is_ready());
    let mut late = follow(&table);
    let leader = leader.retire().expect_err("somebody has come aboard");
    assert!(poll(late.landing()).is_pending());
    drop(late);
    assert!(leader.retire().is_ok());
    assert_eq!(table.count(), 0);
}

#[test]
fn a_seat_may_be_given_up_while_it_waits() {
    let table = Table::default();
    let ((leader, mut first), _) = lead(&table, 0, 1);
    let mut second = follow(&table);
    assert!(poll(first.landing()).is_pending());
    assert!(poll(second.landing()).is_pending());
    drop(second);
    let mut third = follow(&table);
    leader.land_and_leave(4);
    assert_eq!(poll(first.landing()), Poll::Ready(Ok(4)));
    assert_eq!(poll(third.landing()), Poll::Ready(Ok(4)));
}

#[test]
fn a_waker_that_panics_leaves_no_flight_behind() {
    let table = Table::default();
    let ((leader, mut seat), _) = lead(&table, 0, 1);
    assert!(poll_with(seat.landing(), &Waker::from(Arc::new(Panics))).is_pending());
    let landing = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(leader.land(1))));
    assert!(landing.is_err());
    assert_eq!(table.count(), 0);
}

#[tokio::test]
async fn a_thousand_wait_for_one() {
    let table = Flights::<u8, u32>::default();
    let Joined::Leader(leader, seat, _) = table.join(&1, 0, 1_000, || 1) else { panic!("nobody leads") };
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 1..1_000 {
        let Joined::Follower(mut seat) = table.join(&1, 0, 1_000, || 2) else { panic!("a second leader") };
        waiting.spawn(async move { seat.landing().await });
    }
    tokio::task::yield_now().await;
    leader.land_and_leave(42);
    drop(seat);
    assert!(waiting.join_all().await.into_iter().all(|landing| landing == Ok(42)));
}
