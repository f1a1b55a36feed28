//! The addresses that an upstream's requests may go to: those of its origins, each name of which may have several.
//!
//! A name is resolved again and again. An address that is new gets requests from then on; one that is gone gets no more, and
//! what is in flight there ends in peace. As long as a name cannot be resolved its last addresses stay; an origin that never had
//! one is not fit.

use super::OriginNumbers;
use super::check;
use super::connect::{Connector, Transport};
use super::health::Health;
use super::pool::Pool;
use super::settings::{Origin, Settings};
use crate::descriptors;
use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

/// The addresses of one upstream.
#[derive(Debug)]
pub(super) struct Members {
    roster: Arc<Roster>,
    /// The tasks that resolve names; they end with the upstream, or when it retires. Taken to end them, never held across an
    /// await.
    resolving: Mutex<JoinSet<()>>,
}

/// An address that requests may go to.
#[derive(Debug)]
pub(super) struct Member {
    pool: Arc<Pool>,
    /// Which of the upstream's origins it belongs to.
    origin: usize,
    identity: u64,
    /// The task that checks it; it ends with the member, or when the upstream retires.
    check: Option<AbortOnDropHandle<()>>,
}

#[derive(Debug)]
struct Roster {
    settings: Settings,
    connectors: Vec<Connector>,
    /// How often the addresses of each origin were ejected.
    ejections: Vec<Arc<AtomicU64>>,
    /// How many members there are.
    count: Arc<AtomicUsize>,
    current: ArcSwap<Vec<Arc<Member>>>,
    /// Held while the addresses of one origin are replaced, so that two replacements do not undo each other. Never held
    /// across an await.
    replacing: Mutex<()>,
}

impl Member {
    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// What stands for the address in hashes, as long as it is one of the upstream's.
    pub(super) fn identity(&self) -> u64 {
        self.identity
    }

    /// Whether it is another address of the same name.
    pub(super) fn is_sibling_of(&self, other: &Self) -> bool {
        self.origin == other.origin && self.identity != other.identity
    }
}

impl Members {
    /// The members of an upstream, whose names are yet to be resolved.
    pub(super) fn new(settings: &Settings, transport: &Transport, tls: Option<&TlsConnector>) -> Self {
        let connectors = settings
            .origins
            .iter()
            .map(|origin| Connector::new(origin.clone(), transport.clone(), settings, tls))
            .collect();
        let roster = Arc::new(Roster {
            settings: settings.clone(),
            connectors,
            ejections: settings.origins.iter().map(|_| Arc::default()).collect(),
            count: Arc::new(AtomicUsize::new(settings.origins.len())),
            current: ArcSwap::default(),
            replacing: Mutex::new(()),
        });
        // Until a name is resolved each connection asks for it.
        let all = (0..settings.origins.len()).map(|origin| roster.member(origin, None)).collect();
        roster.current.store(Arc::new(all));
        Self { resolving: Mutex::new(resolving(&roster)), roster }
    }

    /// The members at this moment: one at least for each origin.
    pub(super) fn load(&self) -> Guard<Arc<Vec<Arc<Member>>>> {
        self.roster.current.load()
    }

    /// Ends what goes on by itself, and closes what is idle.
    pub(super) fn retire(&self) {
        self.resolving.lock().abort_all();
        for member in self.load().iter() {
            member.check.iter().for_each(AbortOnDropHandle::abort);
            member.pool.retire();
        }
    }

    /// What is known of each origin.
    pub(super) fn numbers(&self) -> Vec<OriginNumbers> {
        let members = self.load();
        let is_looked_up = |origin| self.roster.is_looked_up(origin);
        let of = |(index, origin): (usize, &Origin)| {
            let own = || members.iter().filter(move |member| member.origin == index);
            OriginNumbers {
                authority: self.roster.settings.label(origin),
                is_up: own().any(|member| member.pool.health().is_fit()),
                ejections: self.roster.ejections[index].load(Ordering::Relaxed),
                addresses: own()
                    .filter(|member| member.pool.address().is_some() || !is_looked_up(index))
                    .count(),
            }
        };
        self.roster.settings.origins.iter().enumerate().map(of).collect()
    }
}

impl Roster {
    /// Whether an origin has a name that is resolved again and again.
    fn is_looked_up(&self, origin: usize) -> bool {
        let connector = &self.connectors[origin];
        let is_name = connector.origin().host.parse::<IpAddr>().is_err();
        match connector.transport() {
            Transport::Tcp | Transport::Lookup(_) => is_name && self.settings.resolve_interval.is_some(),
            Transport::Memory(_) => false,
        }
    }

    /// The name of an origin cannot be resolved. Returns whether none of its addresses is known from before: then it is not fit.
    fn unknown(&self, origin: usize) -> bool {
        let current = self.current.load();
        let mut nameless = current
            .iter()
            .filter(|member| member.origin == origin && member.pool.address().is_none())
            .peekable();
        let is_unknown = nameless.peek().is_some();
        nameless.for_each(|member| member.pool.health().unresolved());
        is_unknown
    }

    fn member(&self, origin: usize, address: Option<SocketAddr>) -> Arc<Member> {
        let connector = &self.connectors[origin];
        let connector = address.map_or_else(|| connector.clone(), |address| connector.at(address));
        let authority = connector.origin().authority();
        let ejections = Arc::clone(&self.ejections[origin]);
        let health = Health::new(self.settings.ejection, ejections, Arc::clone(&self.count));
        let pool = Arc::new(Pool::new(connector, &self.settings, health));
        let mut hasher = siphasher::sip::SipHasher13::new();
        (origin, authority, address).hash(&mut hasher);
        // Outside of a runtime a configuration is looked at, not served.
        let check = self.settings.check.clone().zip(Handle::try_current().ok()).map(|(check, runtime)| {
            let name = self.settings.name.clone();
            AbortOnDropHandle::new(runtime.spawn(check::check(name, Arc::clone(&pool), check)))
        });
        Arc::new(Member { pool, origin, identity: hasher.finish(), check })
    }

    /// Replaces the addresses of one origin. Those that stay keep their connections and their health.
    fn replace(&self, origin: usize, addresses: &[SocketAddr]) {
        let _replacing = self.replacing.lock();
        let before = self.current.load_full();
        let own = || before.iter().filter(|member| member.origin == origin);
        let is_same = own().count() == addresses.len()
            && own().all(|member| member.pool.address().is_some_and(|address| addresses.contains(&address)));
        if is_same {
            return;
        }
        let stays =
            |address: &SocketAddr| own().find(|member| member.pool.address() == Some(*address)).cloned();
        let renewed = addresses
            .iter()
            .map(|address| stays(address).unwrap_or_else(|| self.member(origin, Some(*address))));
        let others = |earlier: bool| {
            before.iter().filter(move |member| (member.origin < origin) == earlier && member.origin != origin)
        };
        let after: Vec<_> = others(true).cloned().chain(renewed).chain(others(false).cloned()).collect();
        self.count.store(after.len(), Ordering::Relaxed);
        self.current.store(Arc::new(after));
        let (upstream, origin) = (self.settings.name.as_str(), self.connectors[origin].origin().authority());
        tracing::info!(upstream, origin, ?addresses, "an upstream's name has got new addresses");
    }
}

/// Resolves the names of all origins that have one, for as long as the tasks live.
fn resolving(roster: &Arc<Roster>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let (Some(interval), Ok(runtime)) = (roster.settings.resolve_interval, Handle::try_current()) else {
        return tasks;
    };
    for index in (0..roster.connectors.len()).filter(|origin| roster.is_looked_up(*origin)) {
        tasks.spawn_on(resolve(Arc::clone(roster), index, interval), &runtime);
    }
    tasks
}

async fn resolve(roster: Arc<Roster>, index: usize, interval: Duration) {
    let connector = roster.connectors[index].clone();
    let origin = connector.origin();
    let mut is_known = true;
    loop {
        match connector.transport().addresses(origin).await {
            Ok(mut addresses) if !addresses.is_empty() => {
                is_known = true;
                addresses.sort_unstable();
                addresses.dedup();
                roster.replace(index, &addresses);
            }
            Err(error) if descriptors::is_none_left(&error) => {
                // It says nothing of the name.
                let (upstream, host) = (roster.settings.name.as_str(), origin.host.as_str());
                tracing::warn!(upstream, host, %error, "there is no file descriptor to resolve an upstream's name with");
            }
            found => {
                let error = found.err().map(tracing::field::display);
                let has_none = roster.unknown(index);
                // Once, and not again until it has been known.
                if std::mem::replace(&mut is_known, false) {
                    let (upstream, host) = (roster.settings.name.as_str(), origin.host.as_str());
                    let consequence = if has_none {
                        "it has no address, and counts as down"
                    } else {
                        "its last addresses stay"
                    };
                    tracing::warn!(
                        upstream,
                        host,
                        error,
                        consequence,
                        "an upstream's name cannot be resolved"
                    );
                }
            }
        }
        // Instances that were started together need not ask together.
        tokio::time::sleep(interval.mul_f64(1.0 - fastrand::f64() / 10.0)).await;
    }
}
