//! The configuration: built-in defaults, then a TOML file, then the environment, then flags; the later wins.
//!
//! [`load`] lays the layers upon each other, reads them key by key into each module's own `Settings`, and
//! tells *all* mistakes it finds, each with the place where it was written, the key's path, what was expected
//! and the nearest known word. There is no state in between: what `load` returns can be served.
//!
//! | file | part |
//! |---|---|
//! | `layers` | file, environment and flags become one table whose values know where they were written |
//! | `section` | reads a table key by key and knows which keys nobody asked for |
//! | `values`, `units`, `words` | kinds of values: addresses, URLs, durations, sizes, words |
//! | `files` | files that are named: certificates, keys, roots, the token |
//! | `sections`, `routes` | the keys, table by table, beside their defaults |
//! | `variables` | environment variables whose names have a slip |
//! | `written` | the effective configuration as a file |
//! | `memory` | what `auto` means |
//! | `fixed` | what cannot change while the program runs |

mod error;
mod files;
mod fixed;
mod layers;
mod memory;
mod routes;
mod section;
mod sections;
mod units;
mod values;
mod variables;
mod words;
mod written;

pub use error::{Error, Mistake, Place, Wrong};
pub use units::{NoQuantity, parse_duration, parse_size};
pub use variables::{FILE_VARIABLE, strangers};

use self::error::Notes;
use self::routes::Defaults;
use self::section::Section;
use crate::{admin, proxy, server, store, telemetry, upstream, watch};
use ::config::{Map, Value};
use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// A configuration that makes sense: every module's own settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The data port.
    pub server: server::Settings,
    /// The admin port.
    pub admin: admin::Settings,
    /// Logs.
    pub telemetry: telemetry::Settings,
    /// The store.
    pub store: store::Settings,
    /// Every upstream; empty if none is configured, and then there are no routes either
    /// (see [`Config::with_demo`]).
    pub upstreams: Vec<upstream::Settings>,
    /// The routes and what holds for all of them.
    pub proxy: proxy::Settings,
    /// Whether the files of the configuration are watched.
    pub watch: watch::Settings,
    /// Where it comes from.
    pub source: Source,
    /// What routes inherit, for [`Config::with_demo`] and [`Config::to_toml`].
    defaults: Defaults,
}

/// Where a configuration comes from, the environment and flags apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// There is no file.
    BuiltIn,
    /// This file.
    File(PathBuf),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in defaults"),
            Self::File(file) => write!(f, "{}", file.display()),
        }
    }
}

/// What the command line says: the uppermost layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Addresses of the data port, unless empty.
    pub listen: Vec<SocketAddr>,
    /// Address of the admin port.
    pub admin_listen: Option<SocketAddr>,
    /// URL of the one upstream that replaces all upstreams and routes.
    pub upstream: Option<String>,
    /// Log levels, as `log.filter`.
    pub log_filter: Option<String>,
    /// Shape of log lines, as `log.format`.
    pub log_format: Option<String>,
}

/// Reads the configuration from its layers. `environment` is every variable, ours or not.
pub fn load(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
    overrides: &Overrides,
) -> Result<Config, Error> {
    let (merged, places) = layers::merged(file, environment, overrides)?;
    let notes = Notes::on(places);
    let config = read(&merged, &notes);
    notes.judge(config)
}

/// Reads where the admin port is, whatever else may be wrong: the process that is asked for there runs already.
pub fn load_admin_address(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<SocketAddr, Error> {
    let (merged, places) = layers::merged(file, environment, &Overrides::default())?;
    let notes = Notes::on(places);
    let config = read(&merged, &notes);
    notes.judge_only(&["admin", "admin.listen"], config.admin.listen)
}

/// The path of every key there is, with `[]` behind lists: `route[].cache.default_ttl`.
pub fn keys() -> BTreeSet<String> {
    let empty = || Value::from(vec![Value::from(Map::<String, Value>::new())]);
    let lists = [("upstream", empty()), ("route", empty())];
    let value =
        Value::from(lists.into_iter().map(|(key, list)| (key.to_owned(), list)).collect::<Map<_, _>>());
    let notes = Notes::default();
    read(&value, &notes);
    notes.keys()
}

impl Config {
    /// The same configuration with an upstream named `demo` at this address, and a route of the same name that
    /// sends everything to it.
    #[must_use]
    pub fn with_demo(mut self, address: SocketAddr) -> Self {
        let origin = upstream::Origin { https: false, host: address.ip().to_string(), port: address.port() };
        self.proxy.routes.push(routes::implied("demo", self.upstreams.len(), &self.defaults));
        self.upstreams.push(upstream::Settings::named("demo", vec![origin]));
        self
    }

    /// Every file that it was read from, or that is read when it takes effect.
    pub fn files(&self) -> Vec<PathBuf> {
        let file = match &self.source {
            Source::BuiltIn => None,
            Source::File(file) => Some(file),
        };
        let pair = |pair: &Option<(PathBuf, PathBuf)>| {
            pair.iter().flat_map(|(one, other)| [one.clone(), other.clone()]).collect::<Vec<_>>()
        };
        let of_upstreams = self.upstreams.iter().flat_map(|upstream| {
            upstream.tls.roots_file.iter().cloned().chain(pair(&upstream.tls.client_identity))
        });
        let of_ports = file.into_iter().chain(&self.admin.token_file).cloned().chain(pair(&self.server.tls));
        of_ports.chain(of_upstreams).collect()
    }

    /// The effective configuration in the file's own shape: every key with its value. It can be loaded again;
    /// only the admin token is left out, because it is a secret.
    pub fn to_toml(&self) -> String {
        written::toml(self)
    }
}

fn read(merged: &Value, notes: &Notes) -> Config {
    let memory = memory::available();
    let mut whole = Section::whole(merged, notes);
    let upstreams = whole.each("upstream", sections::upstream);
    let defaults = routes::defaults(&mut whole, &Defaults::default());
    let routes = whole.each("route", |section| routes::route(section, &defaults, &upstreams));
    let config = Config {
        server: whole.within("server", sections::server),
        admin: whole.within("admin", sections::admin),
        telemetry: whole.within("log", sections::log),
        store: whole.within("store", |section| sections::store(section, memory)),
        proxy: proxy::Settings { routes, ..routes::proxy(&mut whole, memory) },
        upstreams,
        watch: whole.within("reload", sections::reload),
        source: notes.file().map_or(Source::BuiltIn, |file| Source::File(file.to_owned())),
        defaults,
    };
    whole.finish();
    routes::contradictions(&config.upstreams, &config.proxy.routes, notes);
    addresses(&config, notes);
    with_implied_route(config, notes)
}

/// One upstream and no route means: everything goes there.
fn with_implied_route(mut config: Config, notes: &Notes) -> Config {
    if config.proxy.routes.is_empty() {
        match config.upstreams.len() {
            0 => {}
            1 => config.proxy.routes.push(routes::implied("default", 0, &config.defaults)),
            number => notes.contradiction(
                "route",
                format!("there are {number} upstreams, but no [[route]] says what goes where"),
            ),
        }
    }
    config
}

/// Writes down what is wrong with the addresses taken together.
fn addresses(config: &Config, notes: &Notes) {
    let Config { server, admin, .. } = config;
    if notes.wrong(&["server.listen", "admin.listen"]) {
        return;
    }
    for (index, address) in server.listen.iter().enumerate() {
        if collide(*address, admin.listen) {
            notes.contradiction("admin.listen", format!("{} is the data port's address too", admin.listen));
        }
        if server.listen[..index].iter().any(|other| collide(*address, *other)) {
            notes.contradiction("server.listen", format!("{address} is taken by another of the addresses"));
        }
    }
    if admin.token.is_some() && admin.token_file.is_some() {
        notes.contradiction("admin.token", "give either token or token_file, not both");
    }
}

/// Whether only one of two listeners could have its address.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let same_ip = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    // Port 0 asks for any free port.
    one.port() != 0 && one.port() == other.port() && same_ip && one.is_ipv4() == other.is_ipv4()
}
