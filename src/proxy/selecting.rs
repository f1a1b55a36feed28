//! By what fields responses under a key are selected (RFC 9111 §4.1), as far as is known.
//!
//! An origin may answer different lists for one URI: `Vary: Accept-Encoding, Origin` where there is an `Origin`, and
//! `Vary: Accept-Encoding` where there is none. Until a request has an answer it is not known which list it will be, so it counts what
//! any of them names. Who has a stored response to go by, if only a stale one, knows more: the list of just that one.

use super::Cache;
use super::table::{Change, Table};
use crate::policy::{Fields, Key, same_values};
use crate::store::Stored;
use http::HeaderName;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What no answer has named for so long is forgotten with the next answer. What is stored counts as long as it is.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);

/// How often it is noted within that time that a field was named once more, at most.
const RENEWALS: u32 = 10;

/// Of more fields than this under one key, those alone count that the last answer named: no origin needs them.
const NAMES_MAX: usize = 32;

/// So many other lists are remembered under which fetches may be in the air.
const OTHERS_MAX: usize = 4;

/// A list of fields, sorted, each once.
type List = Arc<[HeaderName]>;

/// What selects among the responses under a key, for one request.
#[derive(Debug, Clone, Default)]
pub(super) struct Selecting(
    /// `None` where nothing does, as mostly.
    Option<Arc<Lists>>,
);

#[derive(Debug, PartialEq, Eq)]
struct Lists {
    /// What fetches for the request meet by.
    names: List,
    /// By what others for the same may meet: who knows less or more, or came before this was known.
    others: Vec<List>,
}

/// What is noted of a key: bounded in size, and in number by the cache that it lies in.
#[derive(Debug, Clone)]
pub(super) struct Noted {
    /// When each of the fields was last named.
    named_at: Arc<[SystemTime]>,
    lists: Arc<Lists>,
}

/// The notes of all keys.
pub(super) type Selectors = Table<Noted>;

impl Selecting {
    /// The fields, sorted.
    pub(super) fn names(&self) -> &[HeaderName] {
        self.0.as_deref().map_or(&[], |lists| &lists.names)
    }

    /// The other lists under which there may be fetches for the same.
    pub(super) fn others(&self) -> impl Iterator<Item = &[HeaderName]> {
        self.0.iter().flat_map(|lists| lists.others.iter().map(|list| &**list))
    }

    /// Whether two requests are for the same, as far as is known.
    pub(super) fn is_same(&self, one: &impl Fields, other: &impl Fields) -> bool {
        same_values(self.names(), one, other)
    }
}

#[cfg(test)]
impl Selecting {
    /// These fields, and before they were known none.
    pub(super) fn by(names: &[&'static str]) -> Self {
        let names: List = names.iter().map(|name| HeaderName::from_static(name)).collect();
        Self(Some(Arc::new(Lists::of(names, [List::from([])], 1))))
    }
}

impl Lists {
    /// These names, and of the others those that are others, each once.
    fn of(names: List, others: impl IntoIterator<Item = List>, others_max: usize) -> Self {
        let mut kept: Vec<List> = Vec::new();
        for list in others {
            if list != names && !kept.contains(&list) && kept.len() < others_max {
                kept.push(list);
            }
        }
        Self { names, others: kept }
    }
}

impl Cache {
    /// What selects for a request, given what is stored under its key and which of that, stale, is for it. `answered`: it has waited
    /// for a response that names these fields, and was not for it.
    pub(super) fn selecting(
        &self,
        key: &Key,
        stored: &[Stored],
        stale: Option<&Stored>,
        answered: &[HeaderName],
    ) -> Selecting {
        let noted = self.selectors.get(key).map(|noted| noted.lists);
        let known = noted.as_ref().map_or(&[][..], |lists| &lists.names);
        let is_known = |stored: &Stored| stored.metadata().selection.names() == known;
        if stored.iter().all(is_known) && answered.iter().all(|name| known.contains(name)) {
            return Selecting(noted);
        }
        let list = |names: &[HeaderName]| List::from(names);
        let of_stored = || stored.iter().map(|stored| stored.metadata().selection.names());
        let all = union(of_stored().chain([known, answered]));
        let all = if all.len() > NAMES_MAX { list(known) } else { all };
        let own = stale.filter(|stale| answered.is_empty() && !is_refuted(stale, stored));
        let names = own.map_or_else(|| Arc::clone(&all), |own| list(own.metadata().selection.names()));
        let noted_others = noted.iter().flat_map(|lists| lists.others.iter().cloned());
        let others = noted_others.chain([all, list(known)]).chain(of_stored().map(list)).chain([list(&[])]);
        Selecting(Some(Arc::new(Lists::of(names, others, OTHERS_MAX * 2))))
    }

    /// Notes that a response names these fields whose fetch others have met by those.
    pub(super) fn selected_by(&self, key: Key, names: &[HeaderName], met_by: &[HeaderName], now: SystemTime) {
        if names.is_empty() && met_by.is_empty() && !self.selectors.has(&key) {
            return;
        }
        self.selectors.change(key, |before| match Noted::after(before, names, met_by, now) {
            Some(noted) if noted.lists.names.is_empty() => Change::Remove,
            Some(noted) => Change::Put(noted),
            None => Change::None,
        });
    }
}

impl Noted {
    /// What is noted after an answer; `None`: the same as before.
    fn after(
        before: Option<&Self>,
        names: &[HeaderName],
        met_by: &[HeaderName],
        now: SystemTime,
    ) -> Option<Self> {
        if before.is_some_and(|noted| noted.says_already(names, met_by, now)) {
            return None;
        }
        let stays = |(name, at): &(&HeaderName, SystemTime)| {
            !names.contains(name) && !is_past(*at, FORGOTTEN_AFTER, now)
        };
        let is_recent = before.is_some_and(|noted| !noted.is_renewed_by(names, now));
        let left = before.into_iter().flat_map(Noted::fields).filter(stays);
        let mut fields: Vec<_> = left.chain(names.iter().map(|name| (name, now))).collect();
        if fields.len() > NAMES_MAX {
            fields = names.iter().map(|name| (name, now)).collect();
        }
        fields.sort_by(|(one, _), (other, _)| one.as_str().cmp(other.as_str()));
        let lists_before = before.map(|noted| &noted.lists);
        let all: List = fields.iter().map(|(name, _)| (*name).clone()).collect();
        let newest = [names, met_by]
            .map(List::from)
            .into_iter()
            .chain(lists_before.map(|lists| Arc::clone(&lists.names)));
        let others = newest.chain(lists_before.into_iter().flat_map(|lists| lists.others.iter().cloned()));
        // Those who came before anything was known of the key meet by nothing: that is always looked for.
        let others = others.filter(|list| !list.is_empty());
        let mut lists = Lists::of(all, others, OTHERS_MAX - 1);
        lists.others.push(List::from([]));
        if is_recent && lists_before.is_some_and(|before| before.is_like(&lists)) {
            return None;
        }
        let named_at = fields.iter().map(|(_, at)| *at).collect();
        Some(Self { named_at, lists: Arc::new(lists) })
    }

    fn fields(&self) -> impl Iterator<Item = (&HeaderName, SystemTime)> {
        self.lists.names.iter().zip(self.named_at.iter().copied())
    }

    /// Whether an answer that names these is just like those before, as most are.
    fn says_already(&self, names: &[HeaderName], met_by: &[HeaderName], now: SystemTime) -> bool {
        let Lists { names: known, others } = &*self.lists;
        let is_known = |list: &[HeaderName]| list == &**known || others.iter().any(|other| **other == *list);
        **known == *names && is_known(met_by) && !self.is_renewed_by(names, now)
    }

    /// Whether it is worth noting that these fields were named once more.
    fn is_renewed_by(&self, names: &[HeaderName], now: SystemTime) -> bool {
        let mut named = self.fields().filter(|(name, _)| names.contains(name));
        named.any(|(_, at)| is_past(at, FORGOTTEN_AFTER / RENEWALS, now))
    }
}

impl Lists {
    /// Whether they are the same, in whatever order the others are.
    fn is_like(&self, other: &Self) -> bool {
        self.names == other.names
            && self.others.len() == other.others.len()
            && self.others.iter().all(|list| other.others.contains(list))
    }
}

fn is_past(at: SystemTime, age: Duration, now: SystemTime) -> bool {
    now.duration_since(at).is_ok_and(|passed| passed > age)
}

fn union<'a>(lists: impl Iterator<Item = &'a [HeaderName]>) -> List {
    let mut names: Vec<HeaderName> = lists.flatten().cloned().collect();
    names.sort_by(|one, other| one.as_str().cmp(other.as_str()));
    names.dedup();
    names.into()
}

/// Whether the origin has said since, to a request that this response would have been for, that more selects.
fn is_refuted(stale: &Stored, stored: &[Stored]) -> bool {
    let own = &stale.metadata().selection;
    let newer = stored.iter().take_while(|other| other.tick() > stale.tick());
    newer.into_iter().any(|newer| own.is_extended_by(&newer.metadata().selection))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const START: SystemTime = SystemTime::UNIX_EPOCH;

    fn names(text: &str) -> Vec<HeaderName> {
        text.split_whitespace().map(|name| name.parse().unwrap()).collect()
    }

    /// What is noted after answers that name these, so many seconds after the start each.
    fn noted(answers: &[(u64, &str)]) -> Option<Noted> {
        answers.iter().fold(None, |before: Option<Noted>, (seconds, answer)| {
            let now = START + Duration::from_secs(*seconds);
            Noted::after(before.as_ref(), &names(answer), &[], now).or(before)
        })
    }

    #[track_caller]
    fn check(answers: &[(u64, &str)], all: &str, others: &[&str]) {
        let noted = noted(answers).unwrap();
        assert_eq!(*noted.lists.names, *names(all), "{answers:?}");
        let found: HashSet<Vec<HeaderName>> = noted.lists.others.iter().map(|list| list.to_vec()).collect();
        assert_eq!(found, others.iter().map(|list| names(list)).collect(), "{answers:?}");
    }

    #[test]
    fn what_any_answer_names_counts_and_lists_under_which_fetches_may_be_are_remembered() {
        check(&[(0, "a")], "a", &[""]);
        check(&[(0, "a"), (1, "a b")], "a b", &["a", ""]);
        check(&[(0, "a b"), (1, "a")], "a b", &["a", ""]);
        check(&[(0, "a"), (1, "b"), (2, "a")], "a b", &["a", "b", ""]);
        check(&[(0, "b"), (1, "a"), (2, "")], "a b", &["a", "b", ""]);
        // Of many lists those of the last answers.
        check(&[(0, "a"), (1, "b"), (2, "c"), (3, "d")], "a b c d", &["d", "a b c", "c", ""]);
    }

    #[test]
    fn what_is_not_named_any_more_is_forgotten_after_a_while() {
        check(&[(0, "a b"), (29, "a")], "a b", &["a", ""]);
        check(&[(0, "a b"), (31, "a")], "a", &["a b", ""]);
        check(&[(0, "a b"), (20, "b"), (31, "a"), (49, "a")], "a b", &["a", "b", ""]);
        check(&[(0, "a b"), (20, "b"), (31, "a"), (62, "")], "", &["a", "a b", "b", ""]);
    }

    #[test]
    fn the_same_answer_again_is_noted_now_and_then_only() {
        let first = noted(&[(0, "a")]).unwrap();
        let after =
            |seconds| Noted::after(Some(&first), &names("a"), &[], START + Duration::from_secs(seconds));
        assert!(after(3).is_none());
        assert_eq!(after(4).unwrap().named_at[0], START + Duration::from_secs(4));
    }

    #[test]
    fn an_origin_that_names_ever_more_is_taken_at_its_last_word() {
        let answers: Vec<_> = (0..=NAMES_MAX).map(|number| (0, format!("x-{number}"))).collect();
        let answers: Vec<_> = answers.iter().map(|(at, name)| (*at, name.as_str())).collect();
        assert_eq!(noted(&answers[..NAMES_MAX]).unwrap().lists.names.len(), NAMES_MAX);
        let last = noted(&answers).unwrap();
        assert_eq!((last.lists.names.len(), last.lists.others.len()), (1, OTHERS_MAX));
    }
}
