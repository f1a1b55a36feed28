//! Reads a table of the merged layers key by key. A mistake is written down and reading goes on, so that one
//! run tells all of them; a key that nobody asked for is unknown.

use super::error::{Notes, Place, Wrong, meant};
use super::layers::is_text_only;
use ::config::{Map, Value, ValueKind};

/// A table of the configuration, present or not.
pub(super) struct Section<'a> {
    /// Its path; empty for the whole configuration.
    path: String,
    table: Option<&'a Map<String, Value>>,
    place: Place,
    asked: Vec<&'static str>,
    notes: &'a Notes,
}

/// A value as it was given, for a function that reads it as one kind of value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given<'a> {
    pub(super) kind: &'a ValueKind,
    /// The source knows only text, so that numbers, truths and lists are read from text.
    pub(super) text_only: bool,
}

impl<'a> Section<'a> {
    /// The whole configuration.
    pub(super) fn whole(value: &'a Value, notes: &'a Notes) -> Self {
        Self::of(String::new(), Some(value), notes)
    }

    fn of(path: String, value: Option<&'a Value>, notes: &'a Notes) -> Self {
        let place = value.map_or(Place::Nowhere, |value| notes.place(&path, value));
        let table = match value.map(|value| &value.kind) {
            Some(ValueKind::Table(table)) => Some(table),
            Some(_) => {
                let found = value.map_or_else(String::new, |value| describe(&value.kind));
                let expected = "a table".to_owned();
                notes.mistake(place.clone(), &path, Wrong::Unexpected { found, expected, nearest: None });
                None
            }
            None => None,
        };
        Self { path, table, place, asked: Vec::new(), notes }
    }

    /// The value of a key, read by `kind`; the default where it is not given, or is wrong.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        default: &T,
        kind: impl Fn(Given<'_>) -> Result<T, Wrong>,
    ) -> T
    where
        T: Clone,
    {
        self.given(key, kind).unwrap_or_else(|| default.clone())
    }

    /// The value of a key that has no default.
    pub(super) fn given<T>(
        &mut self,
        key: &'static str,
        kind: impl Fn(Given<'_>) -> Result<T, Wrong>,
    ) -> Option<T> {
        let value = self.ask(key)?;
        let given = Given { kind: &value.kind, text_only: is_text_only(value) };
        let path = self.path_of(key);
        kind(given).map_err(|wrong| self.notes.mistake(self.notes.place(&path, value), path, wrong)).ok()
    }

    /// The value of a key that must be there.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        kind: impl Fn(Given<'_>) -> Result<T, Wrong>,
    ) -> Option<T> {
        if !self.has(key) {
            self.missing(key, expected);
        }
        self.given(key, kind)
    }

    /// Writes down that a key should be there.
    pub(super) fn missing(&self, key: &str, expected: &str) {
        let wrong = Wrong::Missing { expected: expected.to_owned() };
        self.notes.mistake(self.place.clone(), self.path_of(key), wrong);
    }

    /// Writes down that the value of a key contradicts another.
    pub(super) fn contradiction(&self, key: &str, text: &str) {
        self.notes.contradiction(&self.path_of(key), text);
    }

    /// Writes down what is wrong with the value of a key, though it was read.
    pub(super) fn misfit(&self, key: &str, wrong: Wrong) {
        self.notes.misfit(&self.path_of(key), wrong);
    }

    /// Whether the key is there, right or wrong.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Reads the table under a key, and writes down the keys in it that were not asked for.
    pub(super) fn within<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'a>) -> T) -> T {
        let value = self.ask(key);
        let mut section = Section::of(self.path_of(key), value, self.notes);
        let settings = read(&mut section);
        section.finish();
        settings
    }

    /// Reads each table of the list under a key, likewise.
    pub(super) fn each<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Section<'a>) -> T,
    ) -> Vec<T> {
        let Some(value) = self.ask(key) else { return Vec::new() };
        let ValueKind::Array(elements) = &value.kind else {
            let found = describe(&value.kind);
            let expected = format!("a list of tables, each headed [[{key}]]");
            let wrong = Wrong::Unexpected { found, expected, nearest: None };
            let path = self.path_of(key);
            self.notes.mistake(self.notes.place(&path, value), path, wrong);
            return Vec::new();
        };
        let mut settings = Vec::with_capacity(elements.len());
        for (index, element) in elements.iter().enumerate() {
            let path = format!("{}[{index}]", self.path_of(key));
            let mut section = Section::of(path, Some(element), self.notes);
            settings.push(read(&mut section));
            section.finish();
        }
        settings
    }

    /// Writes down the keys that nobody asked for.
    pub(super) fn finish(self) {
        for (key, value) in self.table.into_iter().flatten() {
            if !self.asked.contains(&key.as_str()) {
                let nearest = meant(key, self.asked.iter().copied());
                let path = self.path_of(key);
                self.notes.mistake(self.notes.place(&path, value), path, Wrong::UnknownKey { nearest });
            }
        }
    }

    /// The path of a key of this table.
    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn ask(&mut self, key: &'static str) -> Option<&'a Value> {
        self.asked.push(key);
        let value = self.table.and_then(|table| table.get(key));
        let path = self.path_of(key);
        let place = value.map_or_else(|| self.place.clone(), |value| self.notes.place(&path, value));
        self.notes.asked(path, place);
        value
    }
}

/// A value in a message.
pub(super) fn describe(kind: &ValueKind) -> String {
    match kind {
        ValueKind::Nil => "nothing".to_owned(),
        ValueKind::Boolean(truth) => truth.to_string(),
        ValueKind::I64(_) | ValueKind::I128(_) | ValueKind::U64(_) | ValueKind::U128(_) => {
            format!("the number {kind}")
        }
        ValueKind::Float(number) => format!("the number {number}"),
        ValueKind::String(text) => format!("{text:?}"),
        ValueKind::Table(_) => "a table".to_owned(),
        ValueKind::Array(_) => "a list".to_owned(),
    }
}
