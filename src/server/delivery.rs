//! Clients that do not take their answers: how long a connection, or an HTTP/2 stream, waits for them.
//!
//! Over HTTP/1 a client that has stopped reading is a write that does not end ([`Paced`]). Over HTTP/2 it may as well be a stream
//! without a window, of which the connection sees nothing: there it is a body that is not asked for more ([`Streams`]).

use super::activity::Busy;
use super::patience::{Credit, Patience};
use super::stream::Breakable;
use crate::body::Span;
use crate::proxy::{Body, BodyError};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::rt::Executor;
use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::task::TaskTracker;

/// A stream whose peer must take what is written to it. It stands below TLS, so that all it counts is what the peer took.
#[derive(Debug)]
pub(super) struct Paced<S> {
    stream: S,
    patience: Patience,
    credit: Credit,
    pace: Pace,
}

#[derive(Debug)]
enum Pace {
    /// The last write was taken.
    Steady,
    /// A write has waited since then, until the timer ends.
    Waiting(Instant, Pin<Box<Sleep>>),
    /// The peer took nothing, or too little, for too long.
    Over,
}

impl<S: Breakable> Paced<S> {
    pub(super) fn new(stream: S, patience: Patience) -> Self {
        Self { stream, patience, credit: Credit::default(), pace: Pace::Steady }
    }

    /// What a write came to, if it may go on waiting. Only one that waits needs a timer.
    fn paced(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = written {
            let waited = match std::mem::replace(&mut self.pace, Pace::Steady) {
                Pace::Waiting(since, _) => since.elapsed(),
                Pace::Steady | Pace::Over => Duration::ZERO,
            };
            self.patience.taken(&mut self.credit, written.as_ref().map_or(0, |count| *count as u64), waited);
            return Poll::Ready(written);
        }
        let Some(longest) = self.patience.longest_wait(&self.credit) else { return written };
        if matches!(self.pace, Pace::Steady) {
            self.pace = Pace::Waiting(Instant::now(), Box::pin(sleep(longest)));
        }
        if let Pace::Waiting(_, timer) = &mut self.pace {
            ready!(timer.as_mut().poll(context));
            self.pace = Pace::Over;
            self.stream.break_off();
            self.patience.is_over();
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: Breakable> Breakable for Paced<S> {
    fn break_off(&self) {
        self.stream.break_off();
    }

    fn poll_send(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
        more_follows: bool,
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_send(context, bytes, more_follows);
        self.paced(written, context)
    }

    fn poll_receive(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_receive(context, buffer)
    }

    fn poll_write_span(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        span: &Span,
        offset: u64,
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_span(context, span, offset);
        self.paced(written, context)
    }
}

impl<S: Breakable> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: Breakable> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.paced(written, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.paced(written, context)
    }
}

/// Runs the streams of HTTP/2 connections, each as a task, and ends those whose client gives no window for too long. A stream
/// that is dropped is reset.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    pub(super) patience: Patience,
    /// Counts them.
    pub(super) tasks: TaskTracker,
}

impl<F> Executor<F> for Streams
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, stream: F) {
        if self.patience.is_endless() {
            self.tasks.spawn(stream);
        } else {
            self.tasks.spawn(TAKING.scope(Taking::default(), attended(stream, self.patience.clone())));
        }
    }
}

tokio::task_local! {
    /// What the body of a stream's answer tells the stream's task.
    static TAKING: Taking;
}

#[derive(Debug, Default)]
struct Taking {
    /// How often the body was asked for more.
    asked: Cell<u64>,
    /// How many bytes it has given.
    bytes: Cell<u64>,
    /// Whether it gave something the last time: then it is the client that is waited for.
    has_given: Cell<bool>,
}

/// A client that has been given a piece of a body, and that has not yet asked for more.
struct Wait {
    /// How often the body was asked before.
    asked: u64,
    since: Instant,
    timer: Pin<Box<Sleep>>,
}

/// Drives the stream to its end, or until its client has taken nothing, or too little, for too long.
async fn attended<F: Future>(stream: F, patience: Patience) {
    let mut stream = pin!(stream);
    let mut credit = Credit::default();
    let mut waiting: Option<Wait> = None;
    let mut counted = 0;
    poll_fn(|context| {
        if stream.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let (asked, bytes, has_given) =
            TAKING.with(|taking| (taking.asked.get(), taking.bytes.get(), taking.has_given.get()));
        let ended = waiting.take_if(|wait| wait.asked != asked || !has_given);
        let waited = ended.as_ref().map_or(Duration::ZERO, |wait| wait.since.elapsed());
        patience.taken(&mut credit, bytes - counted, waited);
        counted = bytes;
        let Some(longest) = patience.longest_wait(&credit).filter(|_| has_given) else {
            return Poll::Pending;
        };
        let wait = waiting.get_or_insert_with(|| {
            let since = Instant::now();
            let timer = match ended {
                Some(Wait { mut timer, .. }) => {
                    timer.as_mut().reset(since + longest);
                    timer
                }
                None => Box::pin(sleep(longest)),
            };
            Wait { asked, since, timer }
        });
        ready!(wait.timer.as_mut().poll(context));
        patience.is_over();
        Poll::Ready(())
    })
    .await;
}

/// The most that a stream is given at once: whoever takes so much within the time limit is waited for.
const PIECE_BYTES: usize = 16 << 10;

/// The body of an answer on its way to the client. As long as it lives, its connection does not idle.
pub(super) struct Delivery {
    body: Body,
    /// `None`: it is not for a stream.
    stream: Option<Rest>,
    /// Why the body has broken off. It is told a turn later, in which what came before it is sent.
    error: Option<BodyError>,
    _busy: Busy,
}

/// What is left of a frame that was given in part.
#[derive(Default)]
struct Rest(Bytes);

impl Rest {
    /// The frame's first piece. The others are kept.
    fn first_piece(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        match frame.into_data() {
            Ok(bytes) => {
                self.0 = bytes;
                Frame::data(self.next_piece())
            }
            Err(frame) => frame,
        }
    }

    fn next_piece(&mut self) -> Bytes {
        self.0.split_to(self.0.len().min(PIECE_BYTES))
    }
}

impl Delivery {
    pub(super) fn new(body: Body, is_stream: bool, busy: Busy) -> Self {
        Self { body, stream: is_stream.then(Rest::default), error: None, _busy: busy }
    }

    fn poll_body(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(error) = self.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Err(error))) = polled {
            self.error = Some(error);
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        polled
    }

    fn rest_bytes(&self) -> usize {
        self.stream.as_ref().map_or(0, |rest| rest.0.len())
    }
}

impl http_body::Body for Delivery {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let body = (self.rest_bytes() == 0).then(|| self.poll_body(context));
        let polled = match (&mut self.stream, body) {
            (Some(rest), Some(polled)) => polled.map_ok(|frame| rest.first_piece(frame)),
            (Some(rest), None) => Poll::Ready(Some(Ok(Frame::data(rest.next_piece())))),
            (None, polled) => return polled.unwrap_or(Poll::Pending),
        };
        // Without a time limit there is nobody to tell.
        let _ = TAKING.try_with(|taking| {
            taking.asked.set(taking.asked.get() + 1);
            let given = match &polled {
                Poll::Ready(Some(Ok(frame))) => Some(frame.data_ref().map_or(0, |bytes| bytes.len() as u64)),
                Poll::Ready(_) | Poll::Pending => None,
            };
            taking.bytes.set(taking.bytes.get() + given.unwrap_or(0));
            taking.has_given.set(given.is_some());
        });
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.rest_bytes() == 0 && self.error.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (hint, rest) = (self.body.size_hint(), self.rest_bytes() as u64);
        if rest == 0 {
            return hint;
        }
        let mut whole = SizeHint::new();
        if let Some(upper) = hint.upper() {
            whole.set_upper(upper + rest);
        }
        whole.set_lower(hint.lower() + rest);
        whole
    }
}
