//! The data plane: asks [`crate::policy`], moves bytes, and ends every request in exactly one
//! [`Outcome`].
//!
//! | file | what happens there |
//! |---|---|
//! | `receive` | refuse what is malformed, find the route, make the key |
//! | `upload` | the request's body, where it is part of the key and where it is not |
//! | `host` | which host a request is for |
//! | `path` | one reading of a path for routes, key and upstream |
//! | `plain` | the head of a request that needs no table |
//! | `collapse` | lead or follow a fetch that others share |
//! | `meeting` | who may wait for whose fetch, and where they meet |
//! | `fly` | the task of a shared fetch |
//! | `stand_in` | what a request gets whose fetch failed, or was for it alone |
//! | `alone` | a fetch for one request whose answers cannot be shared |
//! | `pass` | a request that the cache has nothing to do with |
//! | `tunnel` | what an upgraded connection becomes |
//! | `fetch` | one exchange, and what came of it |
//! | `attempts` | what is counted of what is sent upstream |
//! | `traffic` | which keys are being fetched, and for whom |
//! | `selecting` | by what fields responses under a key are selected |
//! | `back_off` | who leaves a key alone after a failed fetch |
//! | `suspicion` | whose fetches fail because of who they are |
//! | `fill` | a body on its way from the upstream to its readers |
//! | `deliver` | a stored response as one client gets it |
//! | `at_hand` | a plain request, as bytes: is its answer in the store? |
//! | `through` | a plain request that the cache has nothing to do with |
//! | `reply` | an answer, as bytes for its connection |
//! | `serving` | an answer while it is on its way |
//! | `answer` | the body of an answer, and the account of its request |
//! | `notes` | hit-for-miss and back-off |
//! | `uncacheable` | when hit-for-miss is noted, and where |
//! | `table` | what is remembered by key |
//! | `proofs` | where requests with credentials may wait |
//! | `purge` | invalidation on demand |
//! | `explain` | what would be done with a request, and why |

mod alone;
mod answer;
mod at_hand;
mod attempts;
mod back_off;
mod cache_status;
mod collapse;
mod deliver;
pub mod explain;
mod failure;
mod fetch;
mod fill;
mod fly;
mod host;
mod meeting;
mod notes;
mod outgoing;
mod pass;
mod path;
mod plain;
mod proofs;
mod purge;
mod receive;
mod reply;
mod route;
mod selecting;
mod serving;
mod settings;
mod site;
mod stand_in;
mod supervise;
mod suspicion;
mod table;
mod through;
mod traffic;
mod tunnel;
mod uncacheable;
mod upload;

pub use answer::{Body, BodyError};
pub use at_hand::Shortcut;
pub use plain::PlainGet;
pub use purge::{Purge, PurgeError, Purged, Target};
pub use receive::{Client, Flaw};
pub use reply::{Next, Reply};
pub use serving::{Later, Serving};
pub use settings::{
    Coalescing, DotSegments, EncodedSlashes, Forwarded, HostHeader, Network, OnAbandon, OnLimit, Paths,
    Route, Settings, Unmatched,
};
pub use site::{Site, UpstreamTlsError};
pub use through::{Begun, Passed, Through};
pub use tunnel::Held;

use crate::body::{Budget, Pages};
use crate::boxed::boxed;
use crate::clock::Clock;
use crate::outcome::{Answered, Forward, Outcome};
use crate::policy::{self, Asked, Fields, Key, Keyer, PassCause, Plan, Rules, invalidation};
use crate::store::{self, Departure, Housekeeping, Store, Stored, Variants};
use crate::telemetry::{BodyNumbers, EvictionCause, StoreNumbers, Telemetry};
use crate::upstream::Inbound;
use answer::{Account, Answer, Beginning};
use arc_swap::ArcSwap;
use attempts::Excess;
use back_off::Asker;
use collapse::Need;
use failure::Failure;
use http::{HeaderMap, Request, StatusCode};
use hyper::body::Incoming;
use meeting::Flights;
use notes::{Advice, Notes};
use pass::PassesRange;
use proofs::Proofs;
use receive::Received;
use selecting::Selectors;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;
use suspicion::Suspicions;
use traffic::Traffic;
use tunnel::Tunnels;
use upload::Upload;

/// The proxy: a site that may be replaced, and a cache that outlives it.
#[derive(Debug)]
pub struct Proxy {
    site: ArcSwap<Site>,
    cache: Arc<Cache>,
    telemetry: Arc<Telemetry>,
    clock: Clock,
    /// Upgraded connections, which outlive their requests.
    tunnels: Tunnels,
}

/// What is stored, in flight, and remembered.
#[derive(Debug)]
struct Cache {
    keyer: Keyer,
    store: Store,
    flights: Flights,
    notes: Notes,
    selectors: Selectors,
    /// Where requests with credentials may wait.
    proofs: Proofs,
    suspicions: Suspicions,
    /// What is being fetched, joined by others or not.
    traffic: Arc<Traffic>,
    budget: Arc<Budget>,
}

impl Proxy {
    /// A proxy with an empty cache. The site counts with the same telemetry.
    pub fn new(
        site: Arc<Site>,
        store: &store::Settings,
        telemetry: Arc<Telemetry>,
        clock: Clock,
    ) -> Arc<Self> {
        let departures = Arc::clone(&telemetry);
        let (bytes_max, notes_max) = (store.bytes_max, store.notes_max);
        let (keyer, housekeeping) = match clock {
            Clock::System => (Keyer::new(), Housekeeping::Later),
            // There nobody tries to guess keys, and what happens is to happen again.
            Clock::Simulated { .. } => (Keyer::with_seed(1, 2), Housekeeping::AtOnce),
        };
        let store = Store::new(store, housekeeping, move |departure| {
            departures.evicted(match departure {
                Departure::Size => EvictionCause::Size,
                Departure::Expired => EvictionCause::Expired,
            });
        });
        let cache = Arc::new(Cache {
            keyer,
            flights: Flights::default(),
            traffic: Arc::default(),
            notes: Notes::new(notes_max, store.stamps()),
            selectors: Selectors::new(notes_max),
            proofs: Proofs::new(notes_max),
            suspicions: Suspicions::new(notes_max),
            store,
            budget: Budget::before(site.settings.inflight_bytes_max, Pages::new()),
        });
        let proxy =
            Arc::new(Self { site: ArcSwap::new(site), cache, telemetry, clock, tunnels: Tunnels::default() });
        proxy.is_observed(bytes_max);
        proxy
    }

    /// Says where its numbers are to be read, for as long as it lives.
    fn is_observed(self: &Arc<Self>, bytes_max: u64) {
        fn of<T, R>(proxy: &Arc<Proxy>, read: R) -> impl Fn() -> T + Send + use<T, R>
        where
            T: Default,
            R: Fn(&Proxy) -> T + Send,
        {
            let proxy = Arc::downgrade(proxy);
            move || proxy.upgrade().map(|proxy| read(&proxy)).unwrap_or_default()
        }
        self.telemetry.observe_store(of(self, move |proxy| {
            let store = &proxy.cache.store;
            store.settle();
            StoreNumbers { bytes: store.bytes(), bytes_max, entries: store.entry_count() }
        }));
        self.telemetry.observe_bodies(of(self, |proxy| {
            let budget = &proxy.cache.budget;
            BodyNumbers {
                inflight_bytes: budget.used() as u64,
                lingering_bytes: budget.lingering() as u64,
                withdrawn: budget.withdrawn() as u64,
            }
        }));
        self.telemetry.observe_upstreams(of(self, |proxy| proxy.site.load().upstream_numbers()));
    }

    /// The routes and upstreams that requests meet which arrive now.
    pub fn site(&self) -> Arc<Site> {
        self.site.load_full()
    }

    /// Lets requests that arrive from here on meet another site; those in flight end with the one that they began with.
    /// What is stored, in flight and remembered stays.
    pub fn replace_site(&self, site: &Arc<Site>) {
        self.cache.budget.resize(site.settings.inflight_bytes_max);
        let old = self.site.swap(Arc::clone(site));
        old.retire_upstreams(site);
    }

    /// Answers one request: at once where the store may answer, else later. One that has gone [`Through`] is taken up where it is.
    ///
    /// Cancel-safe: dropped, the request is one whose client left. What others wait for goes on.
    pub fn serve(
        self: &Arc<Self>,
        request: Request<Incoming>,
        client: Client,
        begun: Option<Begun>,
    ) -> Serving {
        let (mut account, stage) = if let Some(Begun { account, stage }) = begun {
            (account, Some(stage))
        } else {
            let beginning = Beginning::of(&self.telemetry, &request, client.address);
            (Account::open(&self.telemetry, self.site.load_full(), beginning), None)
        };
        let (mut head, body) = request.into_parts();
        let looked = supervise::caught(&self.telemetry, "request", || {
            let (site, keyer, now) = (account.site(), &self.cache.keyer, self.clock.now());
            match receive::receive(site, keyer, (&mut head, &body), client, now) {
                Err(rejection) => Looked::Answered(rejection.answer(head.version)),
                Ok(received) => {
                    account.assign(received.route);
                    match stage {
                        None => self.look(received, body),
                        Some(stage) => {
                            let upload = Upload::Streamed(Inbound::new(body, received.version));
                            Looked::Asking(Box::pin(Arc::clone(self).go_on(received, upload, stage)))
                        }
                    }
                }
            }
        });
        match looked {
            Some(Looked::Answered(answer)) => Serving::Now(Some(account.settle(answer))),
            Some(Looked::Asking(asking)) => Serving::Later(Later { asking, account: Some(account) }),
            None => {
                let answer = internal_error(account.site());
                Serving::Now(Some(account.settle(answer)))
            }
        }
    }

    /// May the store answer? If not, who asks the upstream, and for whom?
    fn look(self: &Arc<Self>, received: Received, body: Incoming) -> Looked {
        if received.is_purge() {
            return Looked::Answered(self.purge_as_asked(&received));
        }
        if received.is_keyed_by_body() {
            let (proxy, body) = (Arc::clone(self), Inbound::new(body, received.version));
            return Looked::Asking(Box::pin(async move {
                let (received, upload) = match proxy.identify(received, body).await {
                    Ok(identified) => identified,
                    Err(answer) => return answer,
                };
                let decided = proxy.decide(&received);
                match proxy.from_store(&received, &decided) {
                    Some(answer) => answer,
                    None => proxy.from_upstream(received, upload, decided).await,
                }
            }));
        }
        let decided = self.decide(&received);
        if let Some(answer) = self.from_store(&received, &decided) {
            return Looked::Answered(answer);
        }
        let (proxy, upload) = (Arc::clone(self), Upload::Streamed(Inbound::new(body, received.version)));
        Looked::Asking(boxed(|| proxy.from_upstream(received, upload, decided)))
    }

    fn decide(&self, received: &Received) -> Decided {
        if let Some(cause) = must_pass(received) {
            return Decided { plan: Plan::Pass(cause), variants: None };
        }
        self.plan(&received.asked(), received.keyed.key, received.now, &received.route().rules)
    }

    fn plan<F: Fields>(&self, asked: &Asked<'_, F>, key: Key, now: SystemTime, rules: &Rules) -> Decided {
        let variants = if rules.enabled { self.cache.store.lookup(key, now) } else { None };
        let stored = variants.as_ref().map_or(&[][..], |variants| variants.responses());
        let luck = if rules.early_refresh.is_some() { 1.0 - fastrand::f64() } else { 1.0 };
        let plan = policy::plan(asked, stored, now, luck, rules);
        Decided { plan, variants }
    }

    /// The answer of the store, where it may give one.
    fn from_store(self: &Arc<Self>, received: &Received, decided: &Decided) -> Option<Answer> {
        let stored = match decided.plan {
            Plan::Deliver { stored } => &decided.stored()[stored],
            Plan::DeliverAndRefresh { stored } => {
                let stored = &decided.stored()[stored];
                self.refresh(received, stored, decided.stored());
                stored
            }
            Plan::Unsatisfiable => return Some(unsatisfiable(received)),
            Plan::Revalidate { .. } | Plan::Fetch(_) | Plan::Pass(_) => return None,
        };
        let is_fresh = stored.metadata().is_fresh(received.now);
        let outcome = Outcome::of(if is_fresh { Answered::Hit } else { Answered::Stale });
        deliver::deliver(received, stored, outcome, received.now).ok()
    }

    /// The answer that the store could not give. Each way is boxed, so that the others do not make room for the largest.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async function has room twice for what it is given, and that is large"
    )]
    fn from_upstream(
        self: Arc<Self>,
        received: Received,
        upload: Upload,
        decided: Decided,
    ) -> impl Future<Output = Answer> + Send {
        async move {
            let stored = decided.stored();
            let key = &received.keyed.key;
            let need = |forward, stale: Option<Stored>| Need {
                forward,
                selecting: self.cache.selecting(key, stored, stale.as_ref(), &[]),
                waits: self.may_wait(&received, stale.as_ref()),
                stale,
                answered: Vec::new(),
            };
            let need = match decided.plan {
                Plan::Pass(cause) => return boxed(|| self.pass(received, upload, cause, None, None)).await,
                Plan::Fetch(forward) => match self.passes_range(&received, stored) {
                    Some(range) => {
                        let need = need(forward, None);
                        if let Err(failure) =
                            self.cache.due(&range.among.key, &Asker::of(&received, range.waits), received.now)
                        {
                            return self.stand_in_unasked(&received, &need, &failure, "back-off");
                        }
                        return boxed(|| self.pass(received, upload, PassCause::Range, Some(range), None))
                            .await;
                    }
                    None => need(forward, None),
                },
                Plan::Revalidate { stored: index, forward } => need(forward, Some(stored[index].clone())),
                // What the store has can no longer be read from its beginning.
                Plan::Deliver { .. } | Plan::DeliverAndRefresh { .. } => need(Forward::UriMiss, None),
                Plan::Unsatisfiable => return unsatisfiable(&received),
            };
            match boxed(|| self.collapse(&received, need)).await {
                Ok(answer) => answer,
                Err(range) => {
                    boxed(|| self.pass(received, upload, PassCause::Range, Some(range), None)).await
                }
            }
        }
    }

    /// Whether a range that is not stored is asked of the upstream, instead of the whole: by setting, and where the key
    /// is known to answer what cannot be shared, so that the whole would be fetched in vain.
    fn passes_range(&self, received: &Received, stored: &[Stored]) -> Option<PassesRange> {
        if !received.has_range() {
            return None;
        }
        let selecting = self.cache.selecting(&received.keyed.key, stored, None, &[]);
        let among = self.among(received, &selecting);
        let waits = self.may_wait(received, None);
        match self.cache.advice(&among.key, &Asker::of(received, waits), received.now) {
            Advice::Coalesce(_) if received.route().coalescing.pass_ranges => {
                Some(PassesRange { among, excess: None, waits })
            }
            Advice::GoAlone(_) => {
                Some(PassesRange { among, excess: waits.then_some(Excess::in_vain(None)), waits })
            }
            Advice::Coalesce(_) | Advice::GiveUp(_) => None,
        }
    }
}

/// What a first look at a request came to.
enum Looked {
    Answered(Answer),
    /// It takes the upstream, or the request's body.
    Asking(Pin<Box<dyn Future<Output = Answer> + Send>>),
}

/// What policy says of a request, and of what.
struct Decided {
    plan: Plan,
    variants: Option<Variants>,
}

impl Decided {
    fn stored(&self) -> &[Stored] {
        self.variants.as_ref().map_or(&[], |variants| variants.responses())
    }
}

fn internal_error(site: &Site) -> Answer {
    Failure::internal().answer(Outcome::of(Answered::Error), &site.told(None))
}

/// What the head alone says of a request that no cache has to do with.
fn must_pass(received: &Received) -> Option<PassCause> {
    if received.upgrade.is_some() {
        Some(PassCause::Upgrade)
    } else if received.has_body && received.buffered.is_none() {
        Some(PassCause::RequestBody)
    } else {
        None
    }
}

/// RFC 9111 §5.2.1.7.
fn unsatisfiable(received: &Received) -> Answer {
    let outcome = Outcome::of(Answered::Rejected).because("only-if-cached");
    let text = "504 Gateway Timeout: nothing usable is stored, and the request forbids to fetch\n";
    let mut answer = Answer::plain(StatusCode::GATEWAY_TIMEOUT, text, outcome);
    received.site.told(None).of(&mut answer);
    answer
}

impl Cache {
    /// The keyed hashes of a response's tags: those of `Surrogate-Key`, `Cache-Tag` and `xkey`, and its cache groups, which
    /// are known both as plain tags and, for invalidation by responses, within their host (RFC 9875 §2.1).
    fn tags(&self, host: &str, headers: &HeaderMap) -> Vec<Key> {
        let tags = invalidation::tags(headers).into_iter().map(|tag| self.tag(&tag));
        let groups = invalidation::groups(headers);
        let groups = groups.iter().flat_map(|group| [self.tag(group), self.group(host, group)]);
        tags.chain(groups).collect()
    }

    fn tag(&self, tag: &str) -> Key {
        self.keyer.word("tag", tag)
    }

    fn group(&self, host: &str, group: &str) -> Key {
        self.keyer.word("group", &format!("{host}\n{group}"))
    }
}
