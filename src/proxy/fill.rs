//! Reads an upstream's body into a shared body, at a pace that its readers and the memory limits allow.

use super::Cache;
use super::collapse::Landing;
use super::fetch::Fill;
use super::meeting::Departure;
use super::settings::{Coalescing, OnAbandon};
use crate::body::{Finished, Writer};
use crate::clock::Clock;
use crate::flight::Landed;
use crate::policy::Key;
use crate::store::Stored;
use crate::store::stamps::{Standing, Underway};
use crate::upstream;
use bytes::Bytes;
use http_body_util::BodyExt;
use std::sync::Arc;
use std::time::Duration;

/// How far ahead of its slowest reader a body goes that is too large to keep.
const WINDOW_BYTES: u64 = 1 << 20;

/// A stored response whose body is being filled, and the landing under which later requests find it. However the fill
/// ends, short of [`Kept::completed`] the response leaves the store, *before* its readers see it break.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) cache: Arc<Cache>,
    pub(super) clock: Clock,
    pub(super) key: Key,
    pub(super) stored: Stored,
    /// What it replaced because a validation was answered in full: a response that breaks off replaces nothing.
    pub(super) replaced: Option<Stored>,
    /// `None` where no flight is registered: the response of a fetch that went alone.
    pub(super) landed: Option<Landed<Key, Landing, Departure>>,
    /// While the landing can be found, the stamps that make it void must not be forgotten.
    pub(super) _underway: Underway,
    /// What becomes of it when this is dropped.
    pub(super) fate: Fate,
}

/// What has become of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Broken,
    Whole,
    /// It was whole when the store took it.
    WholeFromTheStart,
}

impl Kept {
    fn completed(mut self, fate: Fate) {
        self.fate = fate;
    }

    /// The response leaves the store, and nothing comes back in its place: it is good, but too large.
    fn too_large(mut self) {
        self.replaced = None;
    }

    /// Whether somebody reads, or may be about to.
    fn is_wanted(&self, writer: &Writer) -> bool {
        writer.readers() > 0 || self.landed.as_ref().is_some_and(|landed| landed.aboard() > 0)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        match self.fate {
            Fate::WholeFromTheStart => {}
            Fate::Whole => self.cache.store.weigh_again(self.key, self.clock.now()),
            Fate::Broken => {
                let now = self.clock.now();
                self.cache.store.remove(self.key, self.stored.body(), now);
                if let Some(old) = &self.replaced
                    && self.cache.store.standing(old) == Standing::Valid
                {
                    self.cache.store.put(self.key, old, now);
                }
            }
        }
    }
}

/// Reads the body to its end. With `kept` the whole is kept as long as it stays within the limits; without it, or
/// beyond them, only a window is, for the readers that are attached.
///
/// The body is finished only if the upstream's body ended well; in every other case its readers are broken off.
pub(super) async fn fill(fill: Fill, mut kept: Option<Kept>, limits: &Coalescing) {
    let (mut writer, mut source) = match fill {
        Fill::Coming { writer, source } => (writer, source),
        Fill::Whole(finished) => return completing(kept, Fate::WholeFromTheStart, finished),
        Fill::Broken => return drop(kept),
    };
    let mut is_window = false;
    let mut trailers = None;
    loop {
        let frame = match next(&mut source, &mut writer, kept.as_ref(), limits).await {
            Next::Frame(frame) => frame,
            Next::End => break,
            Next::Broken | Next::Abandoned => return breaking_off(kept, writer),
        };
        match frame.into_data() {
            Ok(bytes) => {
                let length = writer.length() + bytes.len() as u64;
                if !is_window && (length > limits.body_bytes_max || writer.is_over_budget()) {
                    if let Some(kept) = kept.take() {
                        kept.too_large();
                    }
                    writer.keep_window(WINDOW_BYTES);
                    is_window = true;
                }
                writer.push(bytes);
                if is_window {
                    wait_for_room(&mut writer, limits.reader_stall_timeout).await;
                }
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    completing(kept, Fate::Whole, writer.finish(trailers));
}

/// First settled in the store, then left to its readers.
fn completing(kept: Option<Kept>, fate: Fate, finished: Finished) {
    if let Some(kept) = kept {
        kept.completed(fate);
    }
    drop(finished);
}

/// First out of the store, then visible to the readers.
fn breaking_off(kept: Option<Kept>, writer: Writer) {
    drop(kept);
    drop(writer);
}

impl Fill {
    /// Reads a body that has come together with its head, as small ones mostly do: then it is whole before anybody is told of it, and
    /// the store takes it once, instead of once more at its end.
    ///
    /// Cancel-safe: nothing is waited for.
    pub(super) async fn take_what_is_here(&mut self) {
        let Self::Coming { source, .. } = self else { return };
        if !source.is_here() {
            return;
        }
        let frame = source.frame().await;
        let Self::Coming { mut writer, .. } = std::mem::replace(self, Self::Broken) else { return };
        match frame.map(|frame| frame.map(http_body::Frame::into_data)) {
            Some(Ok(Ok(bytes))) => writer.push(bytes),
            None => {}
            Some(Ok(Err(_))) => return,
            Some(Err(error)) => return tracing::debug!(%error, "a body broke off"),
        }
        *self = Self::Whole(writer.finish(None));
    }
}

enum Next {
    Frame(http_body::Frame<Bytes>),
    End,
    Broken,
    Abandoned,
}

/// The next frame, unless nobody is left to read it.
async fn next(
    source: &mut upstream::Body,
    writer: &mut Writer,
    kept: Option<&Kept>,
    limits: &Coalescing,
) -> Next {
    let frame = source.frame();
    let frame = match (kept, limits.on_abandon) {
        (Some(_), OnAbandon::Finish) => frame.await,
        (Some(kept), OnAbandon::Cancel) => tokio::select! {
            biased;
            frame = frame => frame,
            () = unwanted(kept, writer) => return Next::Abandoned,
        },
        (None, _) => tokio::select! {
            biased;
            frame = frame => frame,
            () = writer.abandoned() => return Next::Abandoned,
        },
    };
    match frame {
        None => Next::End,
        Some(Ok(frame)) => Next::Frame(frame),
        Some(Err(error)) => {
            tracing::debug!(%error, "a body broke off");
            Next::Broken
        }
    }
}

/// Waits until nobody reads and nobody who waited for the head is about to.
async fn unwanted(kept: &Kept, writer: &mut Writer) {
    loop {
        writer.unread().await;
        if !kept.is_wanted(writer) {
            return;
        }
        // Someone is on the way from a seat to a reader: that takes a turn of the scheduler, no more.
        tokio::task::yield_now().await;
    }
}

/// Waits for the slowest reader, and cuts it off if it stalls. One that moves has not stalled, however far behind it is.
async fn wait_for_room(writer: &mut Writer, stall_timeout: Duration) {
    loop {
        let slowest = writer.slowest();
        if tokio::time::timeout(stall_timeout, writer.room()).await.is_ok() {
            return;
        }
        let count = writer.cut_off(slowest.unwrap_or_default());
        if count > 0 {
            tracing::info!(count, "cut off readers that stalled");
        }
    }
}
