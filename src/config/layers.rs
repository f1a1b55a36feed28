//! The layers of a configuration, laid upon each other by the `config` crate: the file, then the environment,
//! then the flags. (The lowest layer, the built-in defaults, are the `Default`s of the modules' settings.)
//! Every value keeps the place where it was written as its *origin*.

use super::Overrides;
use super::error::{Error, Place};
use ::config::{ConfigError, Map, Source, Value, ValueKind};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What the names of environment variables begin with.
pub(super) const PREFIX: &str = "FOREBAY__";

/// All layers as one table, and where its values were written.
pub(super) fn merged(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
    overrides: &Overrides,
) -> Result<(Value, Places), Error> {
    let mut places = Places { file: file.map(Path::to_owned), headers: BTreeMap::new() };
    let layer = file.map(|file| from_file(file, &mut places.headers)).transpose()?;
    let layers = ::config::Config::builder()
        .add_source(layer.unwrap_or_default())
        .add_source(from_environment(environment))
        .add_source(from_flags(overrides))
        .build()?;
    Ok((layers.cache, places))
}

/// Where values were written. A value's origin tells; but a table loses it when layers are merged, so that the
/// headers of the file's tables are kept beside.
#[derive(Debug, Default)]
pub(super) struct Places {
    file: Option<PathBuf>,
    headers: BTreeMap<String, usize>,
}

impl Places {
    /// The file, if there is one.
    pub(super) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Where the value at this path was written.
    pub(super) fn of(&self, path: &str, value: &Value) -> Place {
        let header = || self.line(*self.headers.get(path)?);
        self.origin(value).or_else(header).unwrap_or_else(|| self.first(value))
    }

    fn origin(&self, value: &Value) -> Option<Place> {
        match value.origin()?.split_once(' ')? {
            ("line", line) => self.line(line.parse().ok()?),
            ("variable", name) => Some(Place::Variable(name.to_owned())),
            ("flag", name) => Some(Place::Flag(name.to_owned())),
            _ => None,
        }
    }

    fn line(&self, line: usize) -> Option<Place> {
        Some(Place::File { file: self.file.clone()?, line })
    }

    /// Where the first of the values in a table or a list was written.
    fn first(&self, value: &Value) -> Place {
        let of = |value| self.origin(value).unwrap_or_else(|| self.first(value));
        let first = match &value.kind {
            ValueKind::Table(table) => table.values().map(of).min(),
            // A list of which only one element is given has others that are nowhere.
            ValueKind::Array(list) => list.iter().map(of).min(),
            _ => None,
        };
        first.unwrap_or(Place::Nowhere)
    }
}

/// Whether the value comes from a source that knows only text, so that numbers and lists are read from text.
pub(super) fn is_text_only(value: &Value) -> bool {
    value.origin().is_some_and(|origin| !origin.starts_with("line "))
}

/// One layer: values by their paths.
#[derive(Debug, Clone, Default)]
struct Layer(Map<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

fn from_file(file: &Path, headers: &mut BTreeMap<String, usize>) -> Result<Layer, Error> {
    let text = std::fs::read_to_string(file)
        .map_err(|source| Error::Unreadable { file: file.to_owned(), source })?;
    let lines = Lines::of(&text);
    let table = DeTable::parse(&text).map_err(|cause| {
        let (line, column) = lines.position(cause.span().map_or(0, |span| span.start));
        Error::Syntax { file: file.to_owned(), line, column, cause: Box::new(cause) }
    })?;
    let table = table_of(table.into_inner(), &lines);
    note_headers("", &table, headers);
    Ok(Layer(table))
}

fn note_headers(path: &str, table: &Map<String, Value>, headers: &mut BTreeMap<String, usize>) {
    for (key, value) in table {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        if let ValueKind::Table(table) = &value.kind {
            note_headers(&path, table, headers);
            let line = value.origin().and_then(|origin| origin.strip_prefix("line ")?.parse().ok());
            headers.extend(line.map(|line| (path, line)));
        }
    }
}

fn table_of(table: DeTable<'_>, lines: &Lines) -> Map<String, Value> {
    table
        .into_iter()
        .map(|(key, value)| {
            // A table stands where its header is, and a value where its key is.
            let line = if value.get_ref().is_table() { value.span().start } else { key.span().start };
            (key.into_inner().into_owned(), value_of(value, line, lines))
        })
        .collect()
}

fn value_of(value: Spanned<DeValue<'_>>, start: usize, lines: &Lines) -> Value {
    let kind = match value.into_inner() {
        DeValue::String(text) => ValueKind::String(text.into_owned()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).map_or_else(
            // Beyond what TOML promises: as a text it is refused wherever a number is expected.
            |_| ValueKind::String(number.to_string()),
            ValueKind::I64,
        ),
        DeValue::Float(number) => {
            number.as_str().parse().map_or_else(|_| ValueKind::String(number.to_string()), ValueKind::Float)
        }
        DeValue::Boolean(truth) => ValueKind::Boolean(truth),
        DeValue::Datetime(time) => ValueKind::String(time.to_string()),
        DeValue::Table(table) => ValueKind::Table(table_of(table, lines)),
        DeValue::Array(array) => {
            let elements = array.into_iter().map(|element| {
                let start = element.span().start;
                value_of(element, start, lines)
            });
            ValueKind::Array(elements.collect())
        }
    };
    Value::new(Some(&format!("line {}", lines.position(start).0)), kind)
}

/// `FOREBAY__ROUTE__0__CACHE__DEFAULT_TTL` is `route[0].cache.default_ttl`. An empty variable counts as unset,
/// because a container's definition often cannot leave one out.
fn from_environment(environment: impl Iterator<Item = (String, String)>) -> Layer {
    let ours = environment.filter(|(_, value)| !value.is_empty()).filter_map(|(name, value)| {
        let path = name.strip_prefix(PREFIX)?.split("__").fold(String::new(), joined);
        Some((path, Value::new(Some(&format!("variable {name}")), value)))
    });
    Layer(ours.collect())
}

fn joined(mut path: String, part: &str) -> String {
    // The index of a list that no one writes by hand would only ask for memory.
    let index = !path.is_empty() && part.len() <= 3 && part.parse::<u16>().is_ok();
    if index {
        return format!("{path}[{part}]");
    }
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(&part.to_ascii_lowercase());
    path
}

fn from_flags(overrides: &Overrides) -> Layer {
    let mut layer = Map::new();
    let mut set = |key: &str, flag: &str, kind: ValueKind| {
        layer.insert(key.to_owned(), Value::new(Some(&format!("flag {flag}")), kind));
    };
    if !overrides.listen.is_empty() {
        let addresses = overrides.listen.iter().map(ToString::to_string).collect::<Vec<_>>();
        set("server.listen", "--listen", addresses.into());
    }
    if let Some(address) = overrides.admin_listen {
        set("admin.listen", "--admin-listen", address.to_string().into());
    }
    if let Some(url) = &overrides.upstream {
        let origin = Some("flag --upstream".to_owned());
        let one = |entries: &[(&str, &str)]| {
            let entries = entries
                .iter()
                .map(|(key, text)| ((*key).to_owned(), Value::new(origin.as_ref(), *text)))
                .collect::<Map<_, _>>();
            vec![Value::new(origin.as_ref(), entries)]
        };
        set("upstream", "--upstream", one(&[("name", "default"), ("url", url)]).into());
        let route = [("name", "default"), ("path", "/"), ("upstream", "default")];
        set("route", "--upstream", one(&route).into());
    }
    if let Some(filter) = &overrides.log_filter {
        set("log.filter", "--log-level", filter.as_str().into());
    }
    if let Some(format) = &overrides.log_format {
        set("log.format", "--log-format", format.as_str().into());
    }
    Layer(layer)
}

/// Where the lines of a text begin.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect())
    }

    /// Line and column of a byte, both counted from 1.
    fn position(&self, byte: usize) -> (usize, usize) {
        let line = self.0.partition_point(|start| *start <= byte);
        let start = line.checked_sub(1).and_then(|line| self.0.get(line)).copied().unwrap_or(0);
        (line, byte - start + 1)
    }
}
