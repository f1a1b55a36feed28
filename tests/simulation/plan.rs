//! What a seed makes of a world.

use crate::nowhere;
use crate::turns::Turn;
use fastrand::Rng;
use forebay::policy::{Rules, Share};
use forebay::proxy::{self, Coalescing, OnAbandon, OnLimit, Purge, Route, Target};
use forebay::upstream;
use std::time::Duration;

/// A world, before anything has happened in it.
pub struct Plan {
    pub seed: u64,
    pub resources: Vec<Resource>,
    pub clients: Vec<Vec<Visit>>,
    pub purges: Vec<PlannedPurge>,
    pub reloads: Vec<PlannedReload>,
    pub proxy: proxy::Settings,
    pub upstream: upstream::Settings,
    pub store_bytes_max: u64,
    /// One in so many exchanges with the origin fails; 0: none.
    pub failure_rate: u32,
    /// Whether connections to the origin fail, too.
    pub refuses: bool,
    /// Whether the origin has nothing but an error for most requests with a cookie.
    pub spoils_cookies: bool,
    /// Whether it has nothing but an error for credentials, every four seconds for four seconds.
    pub spoils_credentials: bool,
}

/// Something to fetch.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is drawn for itself")]
pub struct Resource {
    pub path: String,
    pub route: usize,
    pub tag: &'static str,
    pub sharing: Sharing,
    pub varies: bool,
    /// Whether what is in another language than the first names one field more that selects.
    pub varies_more: bool,
    /// The language in which each answer is for one client, whatever the others are.
    pub private_in: Option<&'static str>,
    /// Seconds.
    pub lifetime: u64,
    pub stale_while_revalidate: u64,
    pub stale_if_error: u64,
    pub has_etag: bool,
    pub says_public: bool,
    pub bytes: usize,
    pub says_length: bool,
    /// Longest time until its head comes, in milliseconds.
    pub slowness: u64,
}

impl Resource {
    /// Whether a slow reader of it may be waited for, and be cut off.
    pub fn is_large(&self) -> bool {
        self.bytes > 1 << 20
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Everyone may have it.
    Shared,
    /// Each answer is for one client.
    Private,
    /// Now this, now that.
    Changing,
    /// Each use needs a validation.
    NoCache,
}

/// One request of a client.
#[derive(Debug, Clone)]
pub struct Visit {
    pub pause: Duration,
    pub resource: usize,
    pub method: Method,
    pub language: usize,
    /// What is asked, where it is a question.
    pub question: usize,
    pub authorization: bool,
    pub cookie: bool,
    /// The client leaves after this time, answered or not.
    pub patience: Option<Duration>,
    /// A pause before each piece of the body is read.
    pub slowness: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Range,
    /// It is not safe, and invalidates.
    Delete,
    /// It has a body, which is part of the key: QUERY on one route, POST on the other.
    Question,
}

#[derive(Clone)]
pub struct PlannedPurge {
    pub after: Duration,
    pub purge: Purge,
    pub sweeps: bool,
}

/// The same routes to the same origin by another configuration.
#[derive(Debug, Clone, Copy)]
pub struct PlannedReload {
    pub after: Duration,
    /// The routes change places.
    pub swaps_routes: bool,
    /// Another upstream stands before the one there is.
    pub moves_upstream: bool,
    /// How many idle connections are kept; where that changes, the upstream is replaced.
    pub idle_connections_max: usize,
}

pub const LANGUAGES: [&str; 3] = ["de", "fr", "it"];
/// Where each is spoken; not said of the first.
pub const REGIONS: [Option<&str>; 3] = [None, Some("west"), Some("south")];
pub const QUESTIONS: [&str; 2] = ["who?", "why?"];
const TAGS: [&str; 3] = ["red", "green", "blue"];

impl Plan {
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut resources: Vec<Resource> =
            (0..rng.usize(1..7)).map(|index| resource(&mut rng, index)).collect();
        let length = rng.u64(500..20_000);
        let is_heavy = resources.iter().any(Resource::is_large);
        let purges =
            (0..*pick(&mut rng, &[0, 0, 2, 10])).map(|_| purge(&mut rng, &resources, length)).collect();
        // In one world of three nothing goes wrong and nobody is in a hurry: there the counters are held to the one.
        let is_tame = rng.u8(..3) == 0;
        let failure_rate = if is_tame { 0 } else { *pick(&mut rng, &[0, 0, 20, 4]) };
        let mut coalescing = coalescing(&mut rng);
        if is_tame {
            coalescing.waiter_timeout = Duration::from_secs(30);
            coalescing.waiters_max = 1000;
        }
        let rules = Rules {
            share: if rng.u8(..4) == 0 { Share::Fresh } else { Share::Storable },
            ..Rules::default()
        };
        let mut clients = clients(&mut rng, resources.len(), length, is_heavy, is_tame);
        let spoils_credentials = spoil_credentials(seed, &mut resources, &mut clients, &mut coalescing);
        let route = |name: &str, prefix: &str| Route {
            name: name.into(),
            coalescing: coalescing.clone(),
            rules: Rules { body_methods: vec![question(name)], ..rules.clone() },
            ..Route::plain(None, prefix)
        };
        let proxy = proxy::Settings {
            routes: vec![route("a", "/a"), route("b", "/b")],
            inflight_bytes_max: *pick(&mut rng, &[1 << 20, 1 << 20, 3000]),
            waiters_max: if is_tame { 1000 } else { *pick(&mut rng, &[1000, 1000, 5]) },
            ..proxy::Settings::default()
        };
        let upstream = upstream::Settings {
            // In a turn that is nobody's.
            head_timeout: Duration::from_millis(3006),
            between_bytes_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(1),
            concurrency_max: if is_tame { 1000 } else { *pick(&mut rng, &[1000, 1000, 1000, 3]) },
            retries: rng.u32(..2),
            ..upstream::Settings::named("origin", vec![nowhere()])
        };
        let store_bytes_max = *pick(&mut rng, &[1 << 20, 1 << 20, 4000]);
        // Dice of their own, so that a world without them is the world that it was.
        let mut rng = Rng::with_seed(seed ^ 0x5EED);
        let refuses = failure_rate > 0 && rng.u8(..3) == 0;
        let retries = if refuses { 1 } else { upstream.retries };
        let upstream = upstream::Settings { retries, ..upstream };
        let reloads = (0..*pick(&mut rng, &[0, 2, 10])).map(|_| reload(&mut rng, length)).collect();
        let spoils_cookies = spoil_cookies(&mut rng, &mut clients);
        tell_languages_apart(&mut rng, &mut resources);
        Self {
            seed,
            resources,
            clients,
            purges,
            reloads,
            proxy,
            upstream,
            store_bytes_max,
            failure_rate,
            refuses,
            spoils_cookies,
            spoils_credentials,
        }
    }

    /// What a reload puts into effect.
    pub fn reloaded(&self, reload: PlannedReload) -> (proxy::Settings, Vec<upstream::Settings>) {
        let mut proxy = self.proxy.clone();
        let idle_connections_max = reload.idle_connections_max;
        let mut upstreams = vec![upstream::Settings { idle_connections_max, ..self.upstream.clone() }];
        if reload.swaps_routes {
            proxy.routes.reverse();
        }
        if reload.moves_upstream {
            upstreams.insert(0, upstream::Settings::named("idle", vec![nowhere()]));
            for route in &mut proxy.routes {
                route.upstream = 1;
            }
        }
        (proxy, upstreams)
    }

    pub fn coalescing(&self) -> &Coalescing {
        &self.proxy.routes[0].coalescing
    }

    /// Whether only what is fresh is shared with those who wait.
    pub fn has_strict_sharing(&self) -> bool {
        self.proxy.routes[0].rules.share == Share::Fresh
    }

    /// Whether requests queue for the upstream, and may be refused a place there.
    pub fn is_crowded(&self) -> bool {
        self.upstream.concurrency_max < 1000
    }

    /// No request takes longer than this to get a head: it waits, then validates, then fetches without condition.
    pub fn patience_max(&self) -> Duration {
        let upstream = &self.upstream;
        let attempt = upstream.connect_timeout + upstream.head_timeout;
        let exchange = upstream.queue_timeout + attempt * (upstream.retries + 1);
        self.coalescing().waiter_timeout + exchange * 2 + Duration::from_secs(1)
    }
}

/// The method whose requests are keyed by their body on this route.
pub fn question(route: &str) -> http::Method {
    if route == "a" { http::Method::from_bytes(b"QUERY").unwrap() } else { http::Method::POST }
}

pub fn pick<'a, T>(rng: &mut Rng, choices: &'a [T]) -> &'a T {
    &choices[rng.usize(..choices.len())]
}

fn resource(rng: &mut Rng, index: usize) -> Resource {
    let route = rng.usize(..2);
    Resource {
        path: format!("/{}/{}/{index}", ["a", "b"][route], rng.usize(..2)),
        route,
        tag: TAGS[rng.usize(..TAGS.len())],
        sharing: *pick(
            rng,
            &[
                Sharing::Shared,
                Sharing::Shared,
                Sharing::Shared,
                Sharing::Private,
                Sharing::Changing,
                Sharing::NoCache,
            ],
        ),
        varies: rng.u8(..3) == 0,
        varies_more: false,
        private_in: None,
        lifetime: *pick(rng, &[0, 1, 3, 60]),
        stale_while_revalidate: *pick(rng, &[0, 0, 2]),
        stale_if_error: *pick(rng, &[0, 0, 5]),
        has_etag: rng.bool(),
        says_public: rng.u8(..3) == 0,
        // The largest is wider than the window that streams what is not kept.
        bytes: if rng.u8(..100) == 0 { 3 << 20 } else { *pick(rng, &[0, 10, 500, 5000]) + 80 },
        says_length: rng.bool(),
        slowness: *pick(rng, &[5, 100, 1500]),
    }
}

fn clients(rng: &mut Rng, resources: usize, length: u64, is_heavy: bool, is_tame: bool) -> Vec<Vec<Visit>> {
    // Many small worlds find more than a few large ones; some have to be crowded.
    let count = *pick(rng, &[3, 3, 10, 10, 10, 30, 30, 30, 60, 250]).min(if is_heavy { &10 } else { &250 });
    let visits = if count > 60 { 1 } else { 4 };
    // Clients come in crowds.
    let crowds: Vec<u64> = (0..rng.usize(1..4)).map(|_| rng.u64(..length)).collect();
    let languages = rng.usize(1..4);
    let (has_credentials, has_cookies) = (rng.u8(..3) == 0, rng.u8(..3) == 0);
    let are_impatient = rng.bool() && !is_tame;
    (0..count)
        .map(|_| {
            (0..rng.usize(1..=visits))
                .map(|visit| {
                    let pause = match (visit, rng.u8(..3)) {
                        (0, 0) => rng.u64(..length),
                        (0, _) => *pick(rng, &crowds) + rng.u64(..20),
                        (_, 0) => 0,
                        (_, _) => rng.u64(..3000),
                    };
                    Visit {
                        pause: Duration::from_millis(pause),
                        resource: rng.usize(..resources),
                        method: *pick(rng, &METHODS),
                        language: rng.usize(..languages),
                        question: rng.usize(..QUESTIONS.len()),
                        authorization: has_credentials && rng.u8(..4) == 0,
                        cookie: has_cookies && rng.u8(..4) == 0,
                        patience: (are_impatient && rng.u8(..4) == 0)
                            .then(|| Turn::Leave.after(Duration::from_millis(rng.u64(..2000)))),
                        slowness: Duration::from_millis(*pick(rng, &[0, 0, 0, 50, 700])),
                    }
                })
                .collect()
        })
        .collect()
}

/// What differs between the languages of what varies.
fn tell_languages_apart(rng: &mut Rng, resources: &mut [Resource]) {
    for resource in &mut *resources {
        resource.varies_more = resource.varies && rng.u8(..3) == 0;
    }
    for resource in resources.iter_mut().filter(|resource| resource.varies) {
        resource.private_in = *pick(rng, &[None, None, Some(LANGUAGES[0]), Some(LANGUAGES[1])]);
    }
}

/// Whether the origin cannot bear cookies: then more clients have some.
fn spoil_cookies(rng: &mut Rng, clients: &mut [Vec<Visit>]) -> bool {
    let spoils_cookies = rng.u8(..6) == 0;
    if spoils_cookies {
        for visit in clients.iter_mut().flatten() {
            visit.cookie = rng.u8(..3) == 0;
        }
    }
    spoils_cookies
}

/// Whether the origin cannot bear credentials now and then: then most clients have some, who wait for each other where what comes has
/// proved to be for everyone, and ask for the same, one after the other. It has dice of its own.
fn spoil_credentials(
    seed: u64,
    resources: &mut [Resource],
    clients: &mut [Vec<Visit>],
    coalescing: &mut Coalescing,
) -> bool {
    let mut rng = Rng::with_seed(seed ^ 0xDEAD);
    let spoils_credentials = rng.u8(..6) == 0;
    if spoils_credentials {
        let second = Duration::from_secs(1);
        coalescing.join_with_authorization &= rng.u8(..3) == 0;
        coalescing.join_with_cookies |= rng.u8(..3) > 0;
        coalescing.error_backoff = *pick(&mut rng, &[coalescing.error_backoff, (second, second)]);
        for resource in resources {
            resource.says_public |= rng.u8(..4) > 0;
            resource.sharing = *pick(&mut rng, &[resource.sharing, Sharing::Shared]);
        }
        for visit in clients.iter_mut().flatten() {
            visit.authorization = rng.u8(..8) > 0;
            visit.cookie = rng.u8(..3) == 0;
            visit.resource *= rng.usize(..2);
        }
        for visit in clients.iter_mut().flat_map(|itinerary| itinerary.iter_mut().skip(1)) {
            visit.pause /= 10;
        }
    }
    spoils_credentials
}

const METHODS: [Method; 16] = {
    let mut methods = [Method::Get; 16];
    methods[0] = Method::Head;
    methods[1] = Method::Range;
    methods[2] = Method::Delete;
    methods[3] = Method::Question;
    methods[4] = Method::Question;
    methods
};

fn purge(rng: &mut Rng, resources: &[Resource], length: u64) -> PlannedPurge {
    let resource = pick(rng, resources);
    let target = match rng.u8(..9) {
        0..=2 => Target::Url(format!("http://site.example{}", resource.path)),
        3..=4 => Target::Tag(resource.tag.into()),
        5..=6 => Target::Prefix {
            host: rng.bool().then(|| "site.example".into()),
            path: resource.path[..rng.usize(1..=resource.path.len())].into(),
        },
        7 => Target::Route(["a", "b"][resource.route].into()),
        _ => Target::Everything,
    };
    PlannedPurge {
        after: Turn::Line.after(Duration::from_millis(rng.u64(..length + 3000))),
        purge: Purge { target, soft: rng.u8(..3) == 0 },
        sweeps: rng.bool(),
    }
}

fn reload(rng: &mut Rng, length: u64) -> PlannedReload {
    PlannedReload {
        after: Turn::Reload.after(Duration::from_millis(rng.u64(..length + 3000))),
        swaps_routes: rng.bool(),
        moves_upstream: rng.bool(),
        idle_connections_max: *pick(rng, &[0, 1, 256]),
    }
}

fn coalescing(rng: &mut Rng) -> Coalescing {
    Coalescing {
        waiter_timeout: *pick(
            rng,
            &[Duration::from_secs(30), Duration::from_secs(30), Duration::from_millis(500)],
        ),
        waiters_max: *pick(rng, &[1000, 1000, 3]),
        on_limit: *pick(rng, &[OnLimit::GoAlone, OnLimit::Refuse]),
        hit_for_miss_ttl: Duration::from_secs(*pick(rng, &[0, 1, 10])),
        error_backoff: *pick(
            rng,
            &[(Duration::ZERO, Duration::ZERO), (Duration::from_millis(100), Duration::from_secs(1))],
        ),
        reader_stall_timeout: *pick(rng, &[Duration::from_secs(10), Duration::from_millis(500)]),
        on_abandon: *pick(rng, &[OnAbandon::Finish, OnAbandon::Cancel]),
        body_bytes_max: *pick(rng, &[1 << 20, 1 << 20, 1000]),
        join_with_authorization: rng.bool(),
        join_with_cookies: rng.bool(),
        ..Coalescing::default()
    }
}
