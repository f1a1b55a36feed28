//! What bodies that are being filled take of memory, by what the origin sent of them, and which are therefore not kept whole.
//!
//! Within one moment nobody sees who was first: so it is counted what they take at least, and at most.

use super::errands::BUFFER_BYTES;
use super::{Fault, Fetch, State, World};
use crate::plan::Sharing;
use tokio::time::Instant;

/// The bodies that are filled for others, too.
pub(super) struct Memory<'a> {
    bytes_max: usize,
    fillings: Vec<Filling<'a>>,
}

struct Filling<'a> {
    fetch: &'a Fetch,
    window: Window,
}

/// Whether a body is not kept whole, from some moment on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Window {
    /// It is kept whole.
    Never,
    /// It is not kept from then on: what has been read is dropped.
    Since(Instant),
    /// It may not be kept from then on.
    Perhaps(Instant),
}

impl<'a> Memory<'a> {
    pub(super) fn of(world: &World, state: &'a State) -> Self {
        let fillings = state.fetches.iter().filter(|fetch| world.is_filled(fetch));
        let fillings = fillings.map(|fetch| Filling { fetch, window: Window::Never }).collect();
        let mut memory = Self { bytes_max: world.plan.proxy.inflight_bytes_max, fillings };
        let mut pieces: Vec<(Instant, usize, usize, usize)> = Vec::new();
        for (place, filling) in memory.fillings.iter().enumerate() {
            let mut before = 0;
            for (at, bytes) in &filling.fetch.sent {
                // A large piece comes in several, of which each meets those before it.
                let is_large = filling.fetch.body.len() > BUFFER_BYTES;
                pieces.push((*at, place, if is_large { *bytes } else { before }, *bytes));
                before = *bytes;
            }
        }
        pieces.sort_unstable();
        for (at, place, before, bytes) in pieces {
            memory.comes(place, at, before, bytes as u64 > world.plan.coalescing().body_bytes_max);
        }
        memory
    }

    /// A piece comes, after so many bytes of its body: where there is no memory for it, the body is not kept from here on.
    fn comes(&mut self, place: usize, at: Instant, before: usize, is_too_large: bool) {
        if matches!(self.fillings[place].window, Window::Since(_)) {
            return;
        }
        let (least, most) = self.taken(at, self.fillings[place].fetch);
        let own = self.fillings[place].takes(at).0.min(before);
        let is_short = self.is_reached(least + own, most + before);
        let filling = &mut self.fillings[place];
        match (is_too_large || is_short == Some(true), filling.window) {
            (true, Window::Never) => filling.window = Window::Since(at),
            (false, Window::Never) if is_short.is_none() => filling.window = Window::Perhaps(at),
            // Since when that is so decides whether it was found meanwhile.
            (_, window) => filling.window = window,
        }
    }

    /// Whether at this moment others take as much as there may be; `None`: that is not seen.
    pub(super) fn is_short(&self, at: Instant, but: &Fetch) -> Option<bool> {
        let (least, most) = self.taken(at, but);
        self.is_reached(least, most)
    }

    /// How much others than this one take, at least and at most.
    fn taken(&self, at: Instant, but: &Fetch) -> (usize, usize) {
        let others = self.fillings.iter().filter(|filling| !std::ptr::eq(filling.fetch, but));
        let taken = others.map(|filling| filling.takes(at));
        taken.fold((0, 0), |(least, most), taken| (least + taken.0, most + taken.1))
    }

    fn is_reached(&self, least: usize, most: usize) -> Option<bool> {
        match (least >= self.bytes_max, most >= self.bytes_max) {
            (true, _) => Some(true),
            (false, true) => None,
            (false, false) => Some(false),
        }
    }

    /// Whether the body of a fetch that is filled is kept whole.
    pub(super) fn window(&self, fetch: &Fetch) -> Window {
        let filling = self.fillings.iter().find(|filling| std::ptr::eq(filling.fetch, fetch));
        filling.map_or(Window::Never, |filling| filling.window)
    }
}

impl Filling<'_> {
    /// How many bytes it takes at this moment, at least and at most.
    fn takes(&self, at: Instant) -> (usize, usize) {
        let fetch = self.fetch;
        let last = |is_sent: &dyn Fn(Instant) -> bool| {
            let sent = fetch.sent.iter().take_while(|(sent, _)| is_sent(*sent)).last();
            sent.map_or(0, |(_, bytes)| *bytes)
        };
        let (before, by_now) = (last(&|sent| sent < at), last(&|sent| sent <= at));
        if fetch.body.len() > BUFFER_BYTES {
            // It goes at the pace of its readers.
            return (0, by_now);
        }
        match (fetch.ended, self.window) {
            (Some(ended), _) if ended < at => (0, 0),
            // Who reads a small body has it at once.
            (_, Window::Since(since)) if since < at => (0, 0),
            (Some(ended), _) if ended == at => (0, by_now),
            (_, Window::Since(since) | Window::Perhaps(since)) if since <= at => (0, by_now),
            _ => (before, by_now),
        }
    }
}

impl World {
    /// Whether the body of what came of a fetch goes where others could read it, too.
    fn is_filled(&self, fetch: &Fetch) -> bool {
        let has_body = fetch.answered.is_some()
            && !fetch.is_head
            && !fetch.is_confirmation
            && !matches!(fetch.fault, Some(Fault::Reset | Fault::Silence | Fault::ServerError));
        has_body && !fetch.is_range && !self.is_for_one(fetch)
    }

    /// Whether an answer says that it is not for others.
    pub(super) fn is_for_one(&self, fetch: &Fetch) -> bool {
        let resource = &self.plan.resources[fetch.resource];
        let is_validated_always = resource.sharing == Sharing::NoCache;
        // With the credentials of one it may be for that one only.
        let is_personal = fetch.authorization && (!resource.says_public || is_validated_always);
        fetch.is_private || is_validated_always && !fetch.has_etag || is_personal
    }
}
