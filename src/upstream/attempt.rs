//! One exchange with one address, and whether it is tried again.

use super::body::{Head, Incoming};
use super::health::Verdict;
use super::http1::{self, HeadAsItLies};
use super::limit::Place;
use super::members::Member;
use super::pool::{Asking, Connection, Sent};
use super::request::{Outgoing, Progress, RequestBody};
use super::{Error, Upstream};
use crate::boxed::{Apart, boxed};
use http::{StatusCode, header};
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// The head of a response, and what must be seen to at its end.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) head: Head,
    pub(super) incoming: Incoming,
    pub(super) sent: Sent,
    pub(super) member: Arc<Member>,
}

/// An attempt that failed, with the request's body where none of it was sent.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: Error,
    pub(super) unsent: Option<RequestBody>,
    /// Whether the connection came from the pool.
    pub(super) was_idle: bool,
    /// Whether the connection ended before a byte of the answer.
    pub(super) is_silent: bool,
    /// Whether it was the client, with its upload, that was waited for.
    pub(super) is_clients_turn: bool,
}

impl Failed {
    pub(super) fn with(error: Error) -> Self {
        Self { error, unsent: None, was_idle: false, is_silent: false, is_clients_turn: false }
    }

    /// Whether an idle connection turned out to be dead. An origin may close one at any time (RFC 9112 §9.5).
    fn is_of_dead_connection(&self) -> bool {
        self.was_idle && self.is_silent && matches!(self.error, Error::Closed(_))
    }

    /// Whether it says something of the health of the upstream.
    pub(super) fn is_upstreams_fault(&self) -> bool {
        self.error.is_upstreams_fault() && !self.is_clients_turn && !self.is_of_dead_connection()
    }
}

/// A request on its way through its attempts.
pub(super) struct Trip<'a> {
    pub(super) outgoing: &'a Outgoing,
    pub(super) place: &'a Place,
    pub(super) deadline: Option<Instant>,
    /// Who is told of each attempt.
    pub(super) ledger: &'a mut dyn Ledger,
}

/// Who keeps account of the attempts of a request, one after the other. Whoever is dropped between the beginning of one and its
/// end has lost its client, or was given up.
pub trait Ledger: Send {
    /// An attempt begins at this moment: a connection is looked for, or made.
    fn begun(&mut self, now: Instant);
    /// The request is being sent.
    fn sent(&mut self);
    /// None of it was sent after all: the connection had been closed before.
    fn unsent(&mut self);
    /// The head of a final response has come over HTTP/1.1, and lies where it was read. Returns whether it is taken as it is: then no
    /// table is made of its fields, and the response has none. It may still be an answer after which the request is tried again.
    fn takes(&mut self, _head: &HeadAsItLies<'_>) -> bool {
        false
    }
    /// The head of a response came at this moment.
    fn answered(&mut self, status: StatusCode, came: Instant);
    /// The attempt has come to nothing.
    fn failed(&mut self);
}

/// What was tried already for a request.
#[derive(Debug, Default)]
struct Tries {
    retries: u32,
    /// Whether a connection from the pool turned out to be dead.
    is_renewed: bool,
    /// Where it failed, the latest at the end.
    failed: Vec<Arc<Member>>,
    /// Where to go next; `None`: wherever the balance says.
    next: Option<Arc<Member>>,
}

/// The longest pause before the first retry, twice as long before each further one; a random part of it is waited.
const RETRY_PAUSE: Duration = Duration::from_millis(25);

impl Upstream {
    pub(super) async fn attempts(&self, mut trip: Trip<'_>, body: RequestBody) -> Result<Answered, Failed> {
        let (outgoing, deadline) = (trip.outgoing, trip.deadline);
        self.retry_budget.deposit();
        let mut body = body;
        let mut tries = Tries::default();
        loop {
            let member = match tries.next.take() {
                Some(next) => next,
                None => Arc::clone(self.chooser.choose(&self.members.load(), outgoing, tries.failed.last())),
            };
            let spare = body.replay().filter(|_| outgoing.is_idempotent());
            let is_again = tries.is_renewed || !tries.failed.is_empty();
            let attempted = self.attempt(&mut trip, &member, body, is_again).await;
            if let Ok(Answered { head, .. }) = &attempted
                && !head.status().is_server_error()
                && !self.settings.retry_statuses.contains(&head.status())
            {
                return attempted;
            }
            let considering: Apart<'_, _> =
                boxed(|| self.consider(&mut tries, member, attempted, spare, deadline));
            match considering.await {
                Ok(replay) => body = replay,
                Err(attempted) => return attempted,
            }
        }
    }

    /// Whether the request is tried again, after an attempt that may not have been a good one: with this body. Otherwise that attempt was
    /// the last.
    async fn consider(
        &self,
        tries: &mut Tries,
        member: Arc<Member>,
        attempted: Result<Answered, Failed>,
        spare: Option<RequestBody>,
        deadline: Option<Instant>,
    ) -> Result<RequestBody, Result<Answered, Failed>> {
        let (attempted, replay) = match attempted {
            Ok(answered) => {
                let status = answered.head.status();
                if status.is_server_error() {
                    member.pool().judge(Verdict::Bad);
                }
                (Ok(answered), spare.filter(|_| self.settings.retry_statuses.contains(&status)))
            }
            // Another attempt would lack it as well.
            Err(failed) if failed.error.is_own_want() => return Err(Err(failed)),
            Err(mut failed) => {
                let replay = failed.unsent.take().or_else(|| spare.filter(|_| failed.error.may_be_retried()));
                // That an idle connection has died is nobody's fault, and a new one costs the upstream nothing extra.
                if failed.is_of_dead_connection()
                    && !tries.is_renewed
                    && let Some(replay) = replay
                {
                    tries.is_renewed = true;
                    return Ok(replay);
                }
                if failed.is_upstreams_fault() {
                    member.pool().judge(Verdict::Bad);
                }
                (Err(failed), replay)
            }
        };
        let Some(replay) = replay else { return Err(attempted) };
        tries.failed.push(member);
        if self.may_retry(tries, &attempted, deadline).await { Ok(replay) } else { Err(attempted) }
    }

    /// Whether the request is tried again, to which end it may pause, or choose where to go next.
    async fn may_retry(
        &self,
        tries: &mut Tries,
        attempted: &Result<Answered, Failed>,
        deadline: Option<Instant>,
    ) -> bool {
        // Another address of the same name costs nothing: that one has not seen anything of the request.
        if let Err(Failed { error: Error::Connect(_), .. }) = attempted
            && let Some(sibling) = self.untried_sibling(tries)
        {
            tries.next = Some(sibling);
            return true;
        }
        let pause = RETRY_PAUSE.mul_f64(fastrand::f64()) * (1 << tries.retries.min(10));
        let is_in_vain = deadline.is_some_and(|deadline| Instant::now() + pause >= deadline)
            || self.refuses_for().is_some();
        if is_in_vain || tries.retries >= self.settings.retries || !self.retry_budget.withdraw() {
            return false;
        }
        match attempted {
            Ok(Answered { head, .. }) => {
                tracing::debug!(upstream = %self.settings.name, status = %head.status(), "trying again");
            }
            Err(Failed { error, .. }) => {
                tracing::debug!(upstream = %self.settings.name, %error, "trying again");
            }
        }
        tokio::time::sleep(pause).await;
        tries.retries += 1;
        true
    }

    fn untried_sibling(&self, tries: &Tries) -> Option<Arc<Member>> {
        let failed = tries.failed.last()?;
        let is_untried = |member: &&Arc<Member>| !tries.failed.iter().any(|tried| Arc::ptr_eq(tried, member));
        let members = self.members.load();
        members.iter().filter(is_untried).find(|member| member.is_sibling_of(failed)).cloned()
    }

    async fn attempt(
        &self,
        trip: &mut Trip<'_>,
        member: &Arc<Member>,
        body: RequestBody,
        is_again: bool,
    ) -> Result<Answered, Failed> {
        let begun = Instant::now();
        let upload = body.progress();
        trip.ledger.begun(begun);
        // A connection that is to be upgraded is mostly not one to return, and a second attempt must not meet another dead idle one.
        let idle = if trip.outgoing.upgrade || is_again { None } else { member.pool().idle(begun) };
        let was_idle = idle.is_some();
        let connected = if let Some(connection) = idle {
            Ok((connection, begun))
        } else {
            let connecting: Apart<'_, _> = boxed(|| connect(member, trip.outgoing.upgrade, trip.deadline));
            connecting.await
        };
        let exchanged = match connected {
            Ok((connection, connected)) => {
                trip.ledger.sent();
                let asking = connection.ask(member.pool(), trip.outgoing, body);
                let exchanged = self.exchange(trip, asking, connected, upload.as_deref()).await;
                exchanged.map_err(|failed| Failed { was_idle, ..failed })
            }
            Err(error) if matches!(error, Error::NoUpgrade) => Err(Failed::with(error)),
            Err(error) => Err(Failed { unsent: Some(body), ..Failed::with(error) }),
        };
        let exchanged =
            exchanged.and_then(|(head, incoming, sent)| match check(&head, &incoming, trip.outgoing) {
                Ok(()) => Ok(Answered { head, incoming, sent, member: Arc::clone(member) }),
                Err(error) => Err(Failed::with(error)),
            });
        match &exchanged {
            Ok(Answered { head, incoming, .. }) => trip.ledger.answered(head.status(), incoming.came()),
            Err(Failed { unsent: Some(_), error: Error::Closed(_), .. }) => trip.ledger.unsent(),
            Err(_) => trip.ledger.failed(),
        }
        let place = trip.place;
        match &exchanged {
            Ok(answered) => match answered.head.status() {
                StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => place.overloaded(begun),
                // The pace of an upload is its client's; an error is soon told.
                status if status.is_server_error() || upload.is_some() => {}
                _ => place.answered(begun),
            },
            Err(failed) if failed.is_clients_turn => {}
            Err(failed) if matches!(failed.error, Error::ConnectTimeout | Error::HeadTimeout) => {
                place.overloaded(begun);
            }
            Err(_) => {}
        }
        exchanged
    }

    /// Waits for the head, from then on, and from the moment at which the upstream has all of the request that has come so far: an
    /// upload takes its time, and its client's pace has a limit of its own.
    fn exchange<'a>(
        &'a self,
        trip: &'a mut Trip<'_>,
        mut asking: Asking,
        mut since: Instant,
        upload: Option<&'a Progress>,
    ) -> impl Future<Output = Result<(Head, Incoming, Sent), Failed>> {
        let Trip { outgoing, deadline, ref mut ledger, .. } = *trip;
        poll_fn(move |context| {
            let mut taker = |head: &HeadAsItLies<'_>| ledger.takes(head);
            if let Poll::Ready(answered) = asking.poll_head(context, &outgoing.method, &mut taker) {
                return Poll::Ready(answered);
            }
            loop {
                let until = since + self.settings.head_timeout;
                ready!(asking.poll_alarm(deadline.map_or(until, |deadline| until.min(deadline)), context));
                let now = Instant::now();
                since = match upload {
                    _ if deadline.is_some_and(|deadline| deadline <= now) => break,
                    Some(upload) if upload.is_awaited() => now,
                    Some(upload) => match upload.latest().filter(|latest| *latest > since) {
                        Some(latest) => latest,
                        None => break,
                    },
                    None => break,
                };
            }
            let is_clients_turn = upload.is_some_and(Progress::is_awaited);
            Poll::Ready(Err(Failed { is_clients_turn, ..Failed::with(Error::HeadTimeout) }))
        })
    }
}

/// A new connection, and since when it is there.
async fn connect(
    member: &Arc<Member>,
    upgrade: bool,
    deadline: Option<Instant>,
) -> Result<(Connection, Instant), Error> {
    let pool = member.pool();
    let connecting = async { if upgrade { pool.dial_to_upgrade().await } else { pool.connect().await } };
    let connection = before(deadline, connecting).await.unwrap_or(Err(Error::ConnectTimeout))?;
    Ok((connection, Instant::now()))
}

/// What a future comes to; `None` if that is after the deadline.
async fn before<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, future).await.ok(),
        None => Some(future.await),
    }
}

/// Refuses heads that must not be passed on.
fn check(head: &Head, incoming: &Incoming, outgoing: &Outgoing) -> Result<(), Error> {
    let status = head.status();
    // RFC 9110 §15: "status codes outside the range 100..599 are invalid".
    if status.as_u16() > 599 {
        return Err(Error::Malformed("a status outside of 100 to 599"));
    }
    if status == StatusCode::SWITCHING_PROTOCOLS && !outgoing.upgrade {
        return Err(Error::Malformed("a 101 that was not asked for"));
    }
    let asked = |name| outgoing.headers.contains_key(name);
    if status == StatusCode::PARTIAL_CONTENT && !asked(header::RANGE) {
        return Err(Error::Malformed("a 206 that was not asked for"));
    }
    if status == StatusCode::NOT_MODIFIED
        && !(asked(header::IF_NONE_MATCH) || asked(header::IF_MODIFIED_SINCE))
    {
        return Err(Error::Malformed("a 304 that was not asked for"));
    }
    match (incoming, head) {
        (Incoming::Http2(_), Head::Table(response)) => {
            let framing = http1::framing(&outgoing.method, status, response.version(), response.headers());
            framing.map(drop).map_err(Error::Malformed)
        }
        // It was seen to when it was read.
        (Incoming::Http1(_) | Incoming::Over, _) | (Incoming::Http2(_), Head::Taken(_)) => Ok(()),
    }
}
