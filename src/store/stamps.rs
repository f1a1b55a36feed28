//! Invalidation as lines in time.
//!
//! One counter, the *tick*, orders fetches and invalidations. A fetch draws its tick before its request is sent; an
//! invalidation draws its tick and writes it down as a *stamp* on a scope: one URI, a tag, a prefix, a route,
//! everything. A response is void if a stamp on one of its scopes has a later tick than its fetch. So an invalidation
//! costs one write however much is stored, it is effective at once, and it fences the fetches in flight.
//!
//! A hit pays one comparison: whoever has been checked against the latest stamp need not be checked again until there
//! is a newer one. Stamps are forgotten when a [sweep](super::Store::sweep) has proved that nothing older
//! than they are is left; should there be too many before that, the older half is folded into one stamp on everything.

use crate::policy::Key;
use crate::sync::{AtomicU64, Mutex, Ordering, RwLock};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::SystemTime;

/// What an invalidation is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All that is stored.
    Everything,
    /// All of one route, by its index.
    Route(u32),
    /// One URI, with all its variants.
    Uri(Key),
    /// Every URI of a host (`None`: of all hosts) whose path and query begin with these bytes.
    Prefix {
        /// Host in lower case, without port.
        host: Option<String>,
        /// The beginning of the path.
        path: String,
    },
    /// Every response that carries this tag, by the keyed hash of the tag.
    Tag(Key),
}

/// Whether invalidated responses may still be of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strength {
    /// They are not used again.
    Hard,
    /// They are stale from the line on: they may be validated, or served where stale responses may be.
    Soft,
}

/// The scopes that a response lies in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scopes<'a> {
    /// Index of its route.
    pub route: u32,
    /// The key of its URI.
    pub uri: Key,
    /// Host in lower case, without port.
    pub host: Cow<'a, str>,
    /// Path and query.
    pub target: Cow<'a, str>,
    /// Keyed hashes of its tags.
    pub tags: Cow<'a, [Key]>,
}

impl Scopes<'_> {
    /// The same scopes, whoever they are of.
    pub fn into_owned(self) -> Scopes<'static> {
        Scopes {
            route: self.route,
            uri: self.uri,
            host: self.host.into_owned().into(),
            target: self.target.into_owned().into(),
            tags: self.tags.into_owned().into(),
        }
    }
}

/// What the stamps say of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// No stamp on its scopes is later than its fetch.
    Valid,
    /// It has been stale since this time.
    StaleSince(SystemTime),
    /// It must not be used.
    Void,
}

/// All invalidations that may still matter.
#[derive(Debug)]
pub struct Stamps {
    tick: AtomicU64,
    /// The tick of the newest stamp, published after the stamp itself is in the table.
    latest: AtomicU64,
    /// Guards the stamps. Readers come only after a new stamp, to check once against it; never held across an await.
    table: RwLock<Table>,
    /// Guards the ticks of the fetches in flight, so that a sweep knows what may still land. Held for one insertion or removal.
    underway: Mutex<BTreeSet<u64>>,
    /// More stamps than this are folded.
    count_max: usize,
}

#[derive(Debug, Default)]
struct Table {
    everything: Lines,
    routes: HashMap<u32, Lines>,
    uris: HashMap<Key, Lines>,
    tags: HashMap<Key, Lines>,
    /// By length of the path, so that a lookup tries each length that occurs, once with the host and once without.
    prefixes: BTreeMap<usize, HashMap<(Option<String>, String), Lines>>,
    /// Stamps earlier than this tick may have been forgotten.
    forgotten: u64,
}

/// The newest line of each strength on one scope.
#[derive(Debug, Clone, Copy, Default)]
struct Lines {
    hard: u64,
    soft: Option<(u64, SystemTime)>,
}

impl Lines {
    fn newest(&self) -> u64 {
        self.hard.max(self.soft.map_or(0, |(tick, _)| tick))
    }

    fn draw(&mut self, tick: u64, at: SystemTime, strength: Strength) {
        match strength {
            Strength::Hard => self.hard = tick,
            Strength::Soft => self.soft = Some((tick, at)),
        }
    }
}

/// The right to send a fetch whose answer may be stored: while it lives, no stamp newer than it is forgotten.
#[derive(Debug)]
pub struct Underway {
    stamps: std::sync::Arc<Stamps>,
    tick: u64,
}

impl Underway {
    /// The tick of the fetch.
    pub fn tick(&self) -> u64 {
        self.tick
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.stamps.underway.lock().remove(&self.tick);
    }
}

impl Stamps {
    /// No stamps, and room for this many before older ones are folded together.
    pub fn new(stamps_max: usize) -> Self {
        Self {
            tick: AtomicU64::new(1),
            latest: AtomicU64::new(0),
            table: RwLock::default(),
            underway: Mutex::default(),
            count_max: stamps_max,
        }
    }

    /// Draws the tick of a fetch that is about to be sent.
    pub fn begin(self: &std::sync::Arc<Self>) -> Underway {
        let mut underway = self.underway.lock();
        let tick = self.tick.fetch_add(1, Ordering::AcqRel);
        underway.insert(tick);
        drop(underway);
        Underway { stamps: std::sync::Arc::clone(self), tick }
    }

    /// Draws a line through a scope. When this returns, nothing whose fetch began before is found valid.
    pub fn draw(&self, scope: Scope, strength: Strength, at: SystemTime) -> u64 {
        let mut table = self.table.write();
        let tick = self.tick.fetch_add(1, Ordering::AcqRel);
        match scope {
            Scope::Everything => &mut table.everything,
            Scope::Route(route) => table.routes.entry(route).or_default(),
            Scope::Uri(key) => table.uris.entry(key).or_default(),
            Scope::Tag(key) => table.tags.entry(key).or_default(),
            Scope::Prefix { host, path } => {
                table.prefixes.entry(path.len()).or_default().entry((host, path)).or_default()
            }
        }
        .draw(tick, at, strength);
        if table.count() > self.count_max {
            table.fold();
        }
        self.latest.store(tick, Ordering::Release);
        tick
    }

    /// The tick of the newest stamp: whoever was judged valid at this tick need not be judged again while it stands.
    pub fn latest(&self) -> u64 {
        self.latest.load(Ordering::Acquire)
    }

    /// What the stamps say of a response in these scopes whose fetch drew `tick`. Stamps may have been forgotten that were
    /// against it if the fetch is no longer [`Underway`]: of a stored response, ask the store.
    pub fn judge(&self, scopes: &Scopes<'_>, tick: u64) -> Standing {
        self.table.read().judge(scopes, tick)
    }

    /// The same of a response that was once stored, and that no stamp up to tick `checked` was against. Where it was not
    /// checked against a stamp that is forgotten it is void: a sweep has taken it out, and nobody can tell why.
    pub(super) fn judge_stored(&self, scopes: &Scopes<'_>, tick: u64, checked: u64) -> Standing {
        let table = self.table.read();
        if tick.max(checked) + 1 < table.forgotten {
            return Standing::Void;
        }
        table.judge(scopes, tick)
    }

    /// The newest tick, of either strength, on the scopes of a request: it may not use a fetch that is older. Tags are
    /// unknown before a response; they are judged when it has come.
    pub fn newest_over(&self, scopes: &Scopes<'_>) -> u64 {
        if self.latest() == 0 {
            return 0;
        }
        let mut newest = 0;
        self.table.read().each_over(scopes, |lines| newest = newest.max(lines.newest()));
        newest
    }

    /// Whether a line of either strength may have been drawn through these scopes after `tick`. One that is forgotten may have been:
    /// what is neither stored nor in flight keeps no line from being forgotten.
    pub fn may_be_outdated(&self, scopes: &Scopes<'_>, tick: u64) -> bool {
        if self.latest() <= tick {
            return false;
        }
        let table = self.table.read();
        let mut newest = 0;
        table.each_over(scopes, |lines| newest = newest.max(lines.newest()));
        newest > tick || tick + 1 < table.forgotten
    }

    /// Stamps remembered one by one.
    pub fn count(&self) -> usize {
        self.table.read().count()
    }

    /// The earliest tick that a fetch in flight may have; every fetch that drew an earlier one has ended.
    pub(super) fn horizon(&self) -> u64 {
        let underway = self.underway.lock();
        underway.first().copied().unwrap_or_else(|| self.tick.load(Ordering::Acquire))
    }

    /// Whether a stamp of this tick, and all before it, have been forgotten.
    pub(super) fn is_forgotten(&self, tick: u64) -> bool {
        tick < self.table.read().forgotten
    }

    /// Forgets the stamps before `horizon`: nothing older than they are is left, stored or in flight.
    pub(super) fn forget_before(&self, horizon: u64) {
        let mut table = self.table.write();
        table.retain(|lines| lines.newest() >= horizon);
        table.forgotten = table.forgotten.max(horizon);
    }
}

impl Table {
    fn count(&self) -> usize {
        let prefixes: usize = self.prefixes.values().map(HashMap::len).sum();
        self.routes.len() + self.uris.len() + self.tags.len() + prefixes
    }

    fn judge(&self, scopes: &Scopes<'_>, tick: u64) -> Standing {
        let mut soft: Option<(u64, SystemTime)> = None;
        let mut void = false;
        self.each_over(scopes, |lines| {
            void |= lines.hard > tick;
            if let Some(line) = lines.soft.filter(|(line, _)| *line > tick) {
                soft = Some(soft.map_or(line, |other| if other.0 < line.0 { other } else { line }));
            }
        });
        match (void, soft) {
            (true, _) => Standing::Void,
            (false, Some((_, at))) => Standing::StaleSince(at),
            (false, None) => Standing::Valid,
        }
    }

    fn each_over(&self, scopes: &Scopes<'_>, mut see: impl FnMut(&Lines)) {
        see(&self.everything);
        if let Some(lines) = self.routes.get(&scopes.route) {
            see(lines);
        }
        if let Some(lines) = self.uris.get(&scopes.uri) {
            see(lines);
        }
        for lines in scopes.tags.iter().filter_map(|tag| self.tags.get(tag)) {
            see(lines);
        }
        for (length, prefixes) in self.prefixes.range(..=scopes.target.len()) {
            let Some(path) = scopes.target.get(..*length) else { continue };
            for host in [None, Some(scopes.host.to_string())] {
                if let Some(lines) = prefixes.get(&(host, path.to_owned())) {
                    see(lines);
                }
            }
        }
    }

    fn retain(&mut self, keep: impl Fn(&Lines) -> bool) {
        self.routes.retain(|_, lines| keep(lines));
        self.uris.retain(|_, lines| keep(lines));
        self.tags.retain(|_, lines| keep(lines));
        for prefixes in self.prefixes.values_mut() {
            prefixes.retain(|_, lines| keep(lines));
        }
        self.prefixes.retain(|_, prefixes| !prefixes.is_empty());
    }

    /// Replaces the older half of the stamps by one hard stamp on everything, as late as the latest of them. That
    /// invalidates more than was asked for, never less.
    fn fold(&mut self) {
        let mut ticks: Vec<u64> = Vec::with_capacity(self.count());
        ticks.extend(self.routes.values().map(Lines::newest));
        ticks.extend(self.uris.values().map(Lines::newest));
        ticks.extend(self.tags.values().map(Lines::newest));
        ticks.extend(self.prefixes.values().flat_map(HashMap::values).map(Lines::newest));
        let middle = ticks.len() / 2;
        let (_, &mut median, _) = ticks.select_nth_unstable(middle);
        self.everything.hard = self.everything.hard.max(median);
        self.retain(|lines| lines.newest() > median);
    }
}
