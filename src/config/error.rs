//! What is wrong with a configuration, where it stands, and what was meant perhaps.

use super::layers::Places;
use ::config::Value;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why there is no configuration. The whole fault is the operator's, so the text is written for them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{}: the configuration cannot be read", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}:{column}: {}", file.display(), cause.to_string().trim_end())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The column, counted from 1.
        column: usize,
        /// What the parser says, and the line in question. It is part of our text, and so not also its source.
        cause: Box<toml::de::Error>,
    },
    /// The layers cannot be laid upon each other.
    #[error("the configuration cannot be put together")]
    Layers(#[from] ::config::ConfigError),
    /// It can be read, but does not make sense.
    #[error("{}", listed(.0))]
    Mistakes(Vec<Mistake>),
}

impl Error {
    /// The mistakes one by one, where the configuration could be read at all.
    pub fn mistakes(&self) -> &[Mistake] {
        match self {
            Self::Mistakes(mistakes) => mistakes,
            Self::Unreadable { .. } | Self::Syntax { .. } | Self::Layers(_) => &[],
        }
    }
}

impl Error {
    /// The files that cannot be used as they are.
    pub fn files(&self) -> Vec<PathBuf> {
        let of = |mistake: &Mistake| match &mistake.wrong {
            Wrong::UnusableFile { file, beside, .. } => vec![Some(file.clone()), beside.clone()],
            Wrong::UnknownKey { .. }
            | Wrong::Missing { .. }
            | Wrong::Unexpected { .. }
            | Wrong::Contradiction(_) => Vec::new(),
        };
        self.mistakes().iter().flat_map(of).flatten().collect()
    }
}

fn listed(mistakes: &[Mistake]) -> String {
    let mut text = match mistakes.len() {
        1 => "1 mistake in the configuration:".to_owned(),
        number => format!("{number} mistakes in the configuration:"),
    };
    for mistake in mistakes {
        text.push_str("\n  ");
        text.push_str(&mistake.to_string());
    }
    text
}

/// One mistake.
#[derive(Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where it was written.
    pub place: Place,
    /// The key's path, for instance `route[2].cache.default_ttl`; elements of lists are counted from 0.
    pub key: String,
    /// What is wrong.
    pub wrong: Wrong,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Nowhere => write!(f, "{}: {}", self.key, self.wrong),
            place => write!(f, "{place}: {}: {}", self.key, self.wrong),
        }
    }
}

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In the file.
    File {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// In this environment variable.
    Variable(String),
    /// In this flag of the command line.
    Flag(String),
    /// It was not written at all.
    Nowhere,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line } => write!(f, "{}:{line}", file.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
            Self::Nowhere => f.write_str("built-in defaults"),
        }
    }
}

/// What is wrong with a value.
#[derive(Debug, PartialEq, Eq)]
pub enum Wrong {
    /// There is no such key.
    UnknownKey {
        /// The known key that looks most like it.
        nearest: Option<String>,
    },
    /// A key that must be there is not.
    Missing {
        /// What is expected of its value.
        expected: String,
    },
    /// The value has the wrong type, unit, shape or size.
    Unexpected {
        /// The value, as far as it can be shown.
        found: String,
        /// What is expected of it.
        expected: String,
        /// The known word that looks most like it.
        nearest: Option<String>,
    },
    /// The value alone is right, but it contradicts another.
    Contradiction(String),
    /// The value names a file that cannot be read, or holds something else.
    UnusableFile {
        /// The file.
        file: PathBuf,
        /// The file that it does not fit to, where it would do alone.
        beside: Option<PathBuf>,
        /// What is the matter with it, as a predicate.
        fault: String,
        /// What is expected of it.
        expected: &'static str,
    },
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nearest = match self {
            Self::UnknownKey { nearest } => {
                f.write_str("unknown key")?;
                nearest
            }
            Self::Unexpected { found, expected, nearest } => {
                write!(f, "expected {expected}; found {found}")?;
                nearest
            }
            Self::Missing { expected } => return write!(f, "missing; expected {expected}"),
            Self::Contradiction(text) => return f.write_str(text),
            Self::UnusableFile { file, fault, expected, .. } => {
                return write!(f, "the file {} {fault}; expected {expected}", file.display());
            }
        };
        nearest.as_ref().map_or(Ok(()), |nearest| write!(f, "; did you mean \"{nearest}\"?"))
    }
}

/// What is called otherwise elsewhere, and looks more like another key than like ours; and where ours stands.
const ELSEWHERE: [(&str, &str, &str); 3] = [
    ("max_object_size", "coalescing", "body_bytes_max"),
    ("fetch_timeout", "upstream", "total_timeout"),
    ("lock_timeout", "coalescing", "waiter_timeout"),
];

/// The key that is meant by this one: it is known under another name, or looks most like one of these.
pub(super) fn meant<'a>(key: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> Option<String> {
    let named = ELSEWHERE.into_iter().find(|(elsewhere, ..)| *elsewhere == key);
    let named = named.map(|(_, section, ours)| {
        let is_here = known.clone().into_iter().any(|known| known == ours);
        if is_here { ours.to_owned() } else { format!("{section}.{ours}") }
    });
    named.or_else(|| nearest(key, known))
}

/// The known word that looks most like this one, if any looks enough like it to be what was meant.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    known
        .into_iter()
        .map(|known| (strsim::jaro_winkler(&word.to_lowercase(), known), known))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known.to_owned())
}

/// What is written down while a configuration is read: the mistakes, and which keys were asked for and where
/// they stand. In cells, because sections at several depths write into it while the outer ones are borrowed.
#[derive(Debug, Default)]
pub(super) struct Notes {
    written: Places,
    mistakes: RefCell<Vec<Mistake>>,
    places: RefCell<BTreeMap<String, Place>>,
}

impl Notes {
    pub(super) fn on(written: Places) -> Self {
        Self { written, ..Self::default() }
    }

    /// The file, if there is one.
    pub(super) fn file(&self) -> Option<&Path> {
        self.written.file()
    }

    /// Where the value at this path was written.
    pub(super) fn place(&self, path: &str, value: &Value) -> Place {
        self.written.of(path, value)
    }

    /// Writes down that this key was asked for.
    pub(super) fn asked(&self, key: String, place: Place) {
        self.places.borrow_mut().insert(key, place);
    }

    /// Writes down a mistake in a value that stands here.
    pub(super) fn mistake(&self, place: Place, key: impl Into<String>, wrong: Wrong) {
        self.mistakes.borrow_mut().push(Mistake { place, key: key.into(), wrong });
    }

    /// Writes down that the value of a key that was asked for contradicts another.
    pub(super) fn contradiction(&self, key: &str, text: impl Into<String>) {
        self.misfit(key, Wrong::Contradiction(text.into()));
    }

    /// Writes down what is wrong with the value of a key that was asked for, though it was read.
    pub(super) fn misfit(&self, key: &str, wrong: Wrong) {
        let place = self.places.borrow().get(key).cloned().unwrap_or(Place::Nowhere);
        self.mistake(place, key, wrong);
    }

    /// Whether a mistake was found in one of these keys.
    pub(super) fn wrong(&self, keys: &[&str]) -> bool {
        self.mistakes.borrow().iter().any(|mistake| keys.contains(&mistake.key.as_str()))
    }

    /// Every key that was asked for, with `[]` for the elements of lists.
    pub(super) fn keys(&self) -> BTreeSet<String> {
        let places = self.places.borrow();
        places.keys().map(|key| key.replace("[0]", "[]")).collect()
    }

    /// The value if there were no mistakes in these keys, else those.
    pub(super) fn judge_only<T>(self, keys: &[&str], value: T) -> Result<T, Error> {
        self.mistakes.borrow_mut().retain(|mistake| keys.contains(&mistake.key.as_str()));
        self.judge(value)
    }

    /// The value if there were no mistakes, else the mistakes in the order in which they are written.
    pub(super) fn judge<T>(self, value: T) -> Result<T, Error> {
        let mut mistakes = self.mistakes.into_inner();
        if mistakes.is_empty() {
            return Ok(value);
        }
        mistakes.sort_by(|a, b| a.place.cmp(&b.place));
        Err(Error::Mistakes(mistakes))
    }
}
