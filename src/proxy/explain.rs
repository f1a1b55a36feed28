//! What the cache would do with a request, and why, without doing it.
//!
//! An imagined request goes through the same questions as a real one: `receive`, the plan of [`policy`], the note and
//! the flight under its key. Nothing is fetched, stored, taken out or counted.

mod way;
mod words;

use super::back_off::Asker;
use super::meeting::Among;
use super::receive::{self, Client, Received, Rejection};
use super::{Proxy, must_pass};
use crate::body::Stage;
use crate::policy::{self, PassCause, Plan, date, invalidation};
use crate::store::{Stored, stamps};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Version, header};
use http_body_util::Full;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use words::{basis_word, delivery_words, fetch_words, pass_words, validation_word, validation_words};

/// What the cache would do with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Explanation {
    /// It would be refused at once.
    Refused {
        /// The status that would refuse it.
        status: u16,
        /// Why.
        why: String,
    },
    /// A route takes it.
    Received(Box<Explained>),
}

/// What there is for a request, and what would come of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// The route that takes it.
    pub route: String,
    /// The upstream of that route.
    pub upstream: String,
    /// By what it is the same as others.
    pub key: CacheKey,
    /// What would be done.
    pub plan: Verdict,
    /// The stored responses under the key, newest first, those that a purge has made void included.
    pub stored: Vec<Variant>,
    /// The place of the newest purge line through what is asked for, and through what is stored of it.
    pub purge_line: Option<u64>,
    /// The fetch in flight under the key.
    pub flight: Option<Flight>,
    /// What is remembered of the key.
    pub note: Option<Remembered>,
}

/// A cache key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheKey {
    /// What it is made of.
    pub words: String,
    /// The key itself. It is another one in every process.
    pub hash: String,
    /// The key of the URL with all its variants.
    pub uri_hash: String,
    /// Path and query as the upstream gets them.
    pub target: String,
}

/// What would be done. `stored` is a place in [`Explained::stored`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
#[expect(missing_docs, reason = "why says why, and fwd is the parameter of RFC 9211 §2.2")]
pub enum Verdict {
    /// Answer from this stored response.
    Deliver { stored: usize, why: String },
    /// Answer from this stored response, and refresh it in the background.
    DeliverAndRefresh { stored: usize, why: String },
    /// Ask the upstream whether this stored response still holds.
    Revalidate { stored: usize, fwd: String, why: String, fetch: Fetch },
    /// Fetch.
    Fetch { fwd: String, why: String, fetch: Fetch },
    /// Let it pass to the upstream, alone; nothing is stored.
    Pass { why: String },
    /// 504: the request forbids to fetch (RFC 9111 §5.2.1.7).
    Unsatisfiable { why: String },
}

/// How a request would come to its fetch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// The way.
    pub how: How,
    /// Why that way.
    pub why: String,
}

/// The ways to a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// Begin one that others share.
    Lead,
    /// Share the one in flight.
    Follow,
    /// Begin one in place of the one in flight.
    Replace,
    /// Fetch for itself.
    Alone,
    /// Do not fetch: share the last failure.
    BackOff,
    /// There is no place to wait.
    AtLimit,
}

/// One stored response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variant {
    /// What the purges say of it.
    pub standing: Standing,
    /// Its status.
    pub status: u16,
    /// Whether the request's selecting fields match (RFC 9111 §4.1).
    pub matches: bool,
    /// For which values of which fields it was selected; `null`: `Vary: *`, it matches no request.
    pub selecting: Option<Vec<SelectingField>>,
    /// Whether it is fresh (§4.2), and no purge has made it void.
    pub fresh: bool,
    /// How fresh.
    pub freshness: Freshness,
    /// By what it is asked again (RFC 9110 §8.8).
    pub validators: Validators,
    /// Its `Cache-Control`.
    pub cache_control: Option<String>,
    /// The tags and groups that purges may name.
    pub tags: Vec<String>,
    /// Its body.
    pub body: Body,
    /// The place of its fetch among all fetches and purges of the process.
    pub tick: u64,
}

/// What the purges say of a stored response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// None has hit it.
    Valid,
    /// A soft purge has made it stale at this time (RFC 3339).
    StaleSince(String),
    /// A purge has hit it: it is not used again.
    Void,
}

/// A field that selects among stored responses, as the original request had it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelectingField {
    /// Its name.
    pub name: String,
    /// Its value in normal form; `null`: it was absent. Credentials are not shown.
    pub value: Option<String>,
}

/// The arithmetic of freshness (RFC 9111 §4.2), in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freshness {
    /// `freshness_lifetime`.
    pub lifetime: u64,
    /// What that rests on.
    pub basis: String,
    /// `corrected_initial_age`, plus the time it has been here: `current_age`.
    pub age: u64,
    /// `corrected_initial_age`.
    pub corrected_initial_age: u64,
    /// Lifetime less age, negative when stale (RFC 9211 §2.4).
    pub ttl: i64,
    /// How long after its lifetime it may be served while it is refreshed.
    pub stale_while_revalidate: u64,
    /// How long after its lifetime it may stand in for a failing upstream.
    pub stale_if_error: u64,
    /// Which use needs a validation first: `optional`, `when-stale` or `always`.
    pub validation: String,
    /// When it was received (RFC 3339).
    pub received: String,
}

/// The validators of a stored response, verbatim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validators {
    /// `ETag`.
    pub etag: Option<String>,
    /// `Last-Modified`.
    pub last_modified: Option<String>,
}

/// The body of a stored response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    /// `filling`, `whole`, `gone` or `broken`.
    pub stage: String,
    /// Bytes of it that are here.
    pub bytes: u64,
}

/// A fetch in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flight {
    /// Its place among all fetches and purges of the process.
    pub tick: u64,
    /// Requests that wait for its head, beside the one that began it.
    pub waiters: usize,
}

/// What is remembered of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// `hit-for-miss` or `back-off`.
    pub kind: String,
    /// For how long, in milliseconds.
    pub remaining_ms: u64,
}

impl Proxy {
    /// What would be done with this request, and why. Its URI is absolute. Nothing is changed by asking.
    pub fn explain(&self, request: &Request<Bytes>) -> Explanation {
        match self.imagine(request) {
            Err(rejection) => refused(rejection),
            Ok(received) => Explanation::Received(Box::new(self.explain_received(&received))),
        }
    }

    /// The request as it would be taken in.
    fn imagine(&self, request: &Request<Bytes>) -> Result<Received, Rejection> {
        let (site, keyer) = (self.site.load_full(), &self.cache.keyer);
        let is_tls = request.uri().scheme_str() == Some("https");
        let client = Client { address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), is_tls };
        let (mut head, body) = imagined(request).into_parts();
        let mut received = receive::receive(&site, keyer, (&mut head, &body), client, self.clock.now())?;
        let body = request.body();
        if received.is_keyed_by_body() && body.len() <= received.route().coalescing.request_body_bytes_max {
            received.identify(keyer, body.clone());
        }
        Ok(received)
    }

    fn explain_received(&self, received: &Received) -> Explained {
        let found = self.cache.store.look(received.keyed.key);
        let usable: Vec<Stored> = found
            .iter()
            .filter(|(standing, _)| *standing != stamps::Standing::Void)
            .map(|(_, stored)| stored.clone())
            .collect();
        // With the most luck no response is refreshed before its time.
        let plan = policy::plan(&received.asked(), &usable, received.now, 1.0, &received.route().rules);
        let stale = asked_about(&plan, &usable);
        let selecting = self.cache.selecting(&received.keyed.key, &usable, stale, &[]);
        let among = self.among(received, &selecting);
        let key = among.key;
        let stamps = self.cache.store.stamps();
        // Tags are not known before there is a response.
        let lines = found.iter().map(|(_, stored)| stamps.newest_over(&stored.scopes()));
        let newest = lines.fold(self.since(received), u64::max);
        let route = received.route();
        let asker = Asker::of(received, self.may_wait(received, stale));
        Explained {
            route: route.name.clone(),
            upstream: received.site.upstreams[route.upstream].settings().name.clone(),
            key: CacheKey {
                words: received.key_in_words(),
                hash: received.keyed.key.to_string(),
                uri_hash: received.keyed.uri.to_string(),
                target: received.shared_target.to_string(),
            },
            plan: self.verdict(received, &plan, (&found, &usable), &among),
            stored: found.iter().map(|(standing, stored)| variant(received, *standing, stored)).collect(),
            purge_line: (newest > 0).then_some(newest),
            flight: self
                .cache
                .flights
                .look(&self.would_meet(received, &among))
                .map(|seen| Flight { tick: seen.tick, waiters: seen.waiters }),
            note: self.cache.remembered(&key, &asker, received.now).map(|(kind, remaining)| Remembered {
                kind: kind.to_owned(),
                remaining_ms: u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }

    fn verdict(
        &self,
        received: &Received,
        plan: &Plan,
        (found, usable): (&[(stamps::Standing, Stored)], &[Stored]),
        among: &Among,
    ) -> Verdict {
        if let Some(cause) = must_pass(received) {
            return Verdict::Pass { why: pass_words(cause).to_owned() };
        }
        let now = received.now;
        let place = |index: usize| place_among(found, &usable[index]);
        match *plan {
            Plan::Deliver { stored } => Verdict::Deliver {
                stored: place(stored),
                why: delivery_words(usable[stored].metadata(), now, &received.route().rules),
            },
            Plan::DeliverAndRefresh { stored } => {
                let unrefreshed = self.unrefreshed(received, &usable[stored], among);
                let why = delivery_words(usable[stored].metadata(), now, &received.route().rules);
                let stored = place(stored);
                match unrefreshed {
                    None => Verdict::DeliverAndRefresh { stored, why },
                    Some(cause) => Verdict::Deliver { stored, why: format!("{why}; not refreshed: {cause}") },
                }
            }
            Plan::Revalidate { stored, forward } => Verdict::Revalidate {
                stored: place(stored),
                fwd: forward.as_str().to_owned(),
                why: validation_words(&usable[stored], now),
                fetch: self.way(received, Some(&usable[stored]), among),
            },
            Plan::Fetch(_) if self.passes_range(received, usable).is_some() => {
                Verdict::Pass { why: pass_words(PassCause::Range).to_owned() }
            }
            Plan::Fetch(forward) => Verdict::Fetch {
                fwd: forward.as_str().to_owned(),
                why: {
                    let words = fetch_words(forward, found.len() > usable.len());
                    let is_empty = received.buffered.as_ref().is_some_and(|(body, _)| body.is_empty());
                    let about = if is_empty { " for a request without a body" } else { "" };
                    format!("{words}{about}")
                },
                fetch: self.way(received, None, among),
            },
            Plan::Pass(cause) => Verdict::Pass { why: pass_words(cause).to_owned() },
            Plan::Unsatisfiable => Verdict::Unsatisfiable {
                why: "nothing usable is stored, and the request says only-if-cached".to_owned(),
            },
        }
    }
}

/// The request as the server would hand it over.
fn imagined(request: &Request<Bytes>) -> Request<Full<Bytes>> {
    let mut imagined = Request::new(Full::new(request.body().clone()));
    *imagined.method_mut() = request.method().clone();
    *imagined.uri_mut() = request.uri().clone();
    *imagined.version_mut() = Version::HTTP_11;
    *imagined.headers_mut() = request.headers().clone();
    // An upgrade counts only on a connection that can be upgraded, as the data port's can.
    let upgrade = hyper::upgrade::on(&mut imagined);
    imagined.extensions_mut().insert(upgrade);
    // Who asks by a URL means its host.
    let host = request.uri().authority().and_then(|host| HeaderValue::try_from(host.as_str()).ok());
    if let Some(host) = host.filter(|_| !request.headers().contains_key(header::HOST)) {
        imagined.headers_mut().insert(header::HOST, host);
    }
    imagined
}

fn refused(rejection: Rejection) -> Explanation {
    let (status, text, _) = rejection.status_and_text();
    Explanation::Refused { status: status.as_u16(), why: text.trim_end().to_owned() }
}

/// The stored response that would be asked about.
fn asked_about<'a>(plan: &Plan, stored: &'a [Stored]) -> Option<&'a Stored> {
    match plan {
        Plan::Revalidate { stored: place, .. } | Plan::DeliverAndRefresh { stored: place } => {
            stored.get(*place)
        }
        Plan::Deliver { .. } | Plan::Fetch(_) | Plan::Pass(_) | Plan::Unsatisfiable => None,
    }
}

fn place_among(found: &[(stamps::Standing, Stored)], wanted: &Stored) -> usize {
    found.iter().position(|(_, stored)| stored.body().is_same(wanted.body())).unwrap_or_default()
}

fn variant(received: &Received, standing: stamps::Standing, stored: &Stored) -> Variant {
    let metadata = stored.metadata();
    let (selection, freshness, now) = (&metadata.selection, &metadata.freshness, received.now);
    let selecting = selection.fields().map(|(name, value)| SelectingField {
        name: name.to_string(),
        value: value.map(|value| shown(name, value)),
    });
    let headers = stored.headers();
    let validators = metadata.validators(&headers);
    let mut tags = invalidation::tags(&headers);
    tags.extend(invalidation::groups(&headers));
    Variant {
        standing: match standing {
            stamps::Standing::Valid => Standing::Valid,
            stamps::Standing::StaleSince(at) => Standing::StaleSince(date::rfc3339(at)),
            stamps::Standing::Void => Standing::Void,
        },
        status: stored.status().as_u16(),
        matches: selection.matches(&*received.headers),
        selecting: (!selection.is_star()).then(|| selecting.collect()),
        fresh: metadata.is_fresh(now) && standing != stamps::Standing::Void,
        freshness: Freshness {
            lifetime: freshness.lifetime().as_secs(),
            basis: basis_word(freshness.basis).to_owned(),
            age: metadata.age(now).as_secs(),
            corrected_initial_age: freshness.corrected_initial_age().as_secs(),
            ttl: metadata.ttl_seconds(now),
            stale_while_revalidate: freshness.stale_while_revalidate().as_secs(),
            stale_if_error: freshness.stale_if_error().as_secs(),
            validation: validation_word(freshness.validation).to_owned(),
            received: date::rfc3339(freshness.response_time()),
        },
        validators: Validators {
            etag: validators.etag.map(text),
            last_modified: validators.last_modified.map(text),
        },
        cache_control: headers.get(header::CACHE_CONTROL).map(text),
        tags,
        body: Body {
            stage: match stored.body().stage() {
                Stage::Filling => "filling",
                Stage::Whole(_) => "whole",
                Stage::Gone => "gone",
                Stage::Broken => "broken",
            }
            .to_owned(),
            bytes: stored.body().bytes_held(),
        },
        tick: stored.tick(),
    }
}

/// A selecting value, unless it is some client's secret.
fn shown(name: &HeaderName, value: &[u8]) -> String {
    if [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION].contains(name) {
        "(not shown)".to_owned()
    } else {
        String::from_utf8_lossy(value).into_owned()
    }
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

#[cfg(test)]
mod tests;
