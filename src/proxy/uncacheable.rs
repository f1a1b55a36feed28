//! How it is noted that the answers under a key are for one client each, by which those who ask for it meet no more.

use super::Cache;
use super::selecting::Selecting;
use super::settings::Coalescing;
use crate::policy::{Fields, Key, Selection};
use crate::store::Stored;
use http::HeaderName;
use std::time::SystemTime;

/// Those who ask like one client, and where they have met until now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Meeting<'a, F> {
    /// Under which key: that of their variant, as far as it was known.
    pub(super) key: Key,
    /// Under which responses to them are stored.
    pub(super) of: Key,
    /// The fields of that client.
    pub(super) headers: &'a F,
    /// By which of them they have met.
    pub(super) met_by: &'a [HeaderName],
    pub(super) coalescing: &'a Coalescing,
}

impl Cache {
    /// An answer was for one client alone. `tells_of_all`: it says so of all answers to those whom it was selected for.
    pub(super) fn note_private<F: Fields>(
        &self,
        meeting: &Meeting<'_, F>,
        selection: &Selection,
        tells_of_all: bool,
        now: SystemTime,
    ) {
        self.proofs.note(meeting.of, false);
        if tells_of_all {
            self.selected_by(meeting.of, selection.names(), meeting.met_by, now);
            self.note_uncacheable(meeting, None, now);
        } else {
            self.notes.recovered(&meeting.key);
        }
    }

    /// What comes to those who ask like this client is not for others: for a while nobody waits for it. `own`: what is stored for them.
    pub(super) fn note_uncacheable<F: Fields>(
        &self,
        meeting: &Meeting<'_, F>,
        own: Option<&Stored>,
        now: SystemTime,
    ) {
        let key = meeting.key;
        let selecting = self.selecting_after(meeting, own, now);
        let place = selecting.map_or(key, |selecting| self.place(meeting, selecting.names()));
        if place != key {
            self.notes.recovered(&key);
        }
        self.notes.uncacheable(place, now, meeting.coalescing.hit_for_miss_ttl);
    }

    /// What selects from now on for them, of whose stored responses `own` is the only one. `None`: nothing does, as before.
    pub(super) fn selecting_after<F>(
        &self,
        meeting: &Meeting<'_, F>,
        own: Option<&Stored>,
        now: SystemTime,
    ) -> Option<Selecting> {
        if meeting.key == meeting.of && !self.selectors.has(&meeting.key) {
            return None;
        }
        let variants = self.store.lookup(meeting.of, now);
        let responses = variants.as_ref().map_or(&[][..], |variants| variants.responses());
        Some(self.selecting(&meeting.of, responses, own, &[]))
    }

    /// Where they meet by these fields.
    pub(super) fn place<F: Fields>(&self, meeting: &Meeting<'_, F>, names: &[HeaderName]) -> Key {
        self.keyer.variant(meeting.of, names, meeting.headers)
    }
}
