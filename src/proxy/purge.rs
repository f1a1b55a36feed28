//! Invalidation on demand: lines drawn through time (see [`crate::store::stamps`]).

use super::Proxy;
use super::answer::Answer;
use super::host;
use super::receive::{Received, Rejection};
use super::settings::Route;
use crate::outcome::{Answered, Outcome};
use crate::policy::Identity;
use crate::store::stamps::{Scope, Strength};
use crate::telemetry::PurgeKind;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, StatusCode, Uri};
use std::time::SystemTime;

/// What is to be purged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purge {
    /// What is meant.
    pub target: Target,
    /// Soft: it is stale from now on, and may still be validated or stand in for a failing upstream.
    pub soft: bool,
}

/// What is meant by a purge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// One URL with all its variants: `http://host/path?query`.
    Url(String),
    /// Every response that carries this tag (`Surrogate-Key`, `Cache-Tag`, `xkey`, `Cache-Groups`).
    Tag(String),
    /// Every URL of a host (`None`: of all) whose path begins with these bytes, as clients ask for it. Where a route of any host leaves
    /// the host out of its key, what is stored is of all hosts, and so is the prefix.
    Prefix {
        /// The host, without port.
        host: Option<String>,
        /// The beginning of the path.
        path: String,
    },
    /// Everything of one route.
    Route(String),
    /// Everything.
    Everything,
}

/// What a purge did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purged {
    /// The place of the line among all fetches and purges of this process.
    pub tick: u64,
    /// When the line was drawn.
    pub at: SystemTime,
    /// How many stored responses it hit, where that is known without looking for them.
    pub entries: Option<u64>,
}

/// Why a purge was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PurgeError {
    /// The URL is not one of HTTP, or says who asks.
    #[error("the URL cannot be read; expected http://host/path")]
    Url,
    /// No route serves the URL.
    #[error("no route serves this URL")]
    NoRouteForUrl,
    /// There is no such route.
    #[error("there is no route of this name")]
    UnknownRoute,
    /// A path begins with a slash.
    #[error("a path prefix begins with a slash")]
    Path,
}

impl Received {
    /// Whether it is a PURGE, on a port where that means something.
    pub(super) fn is_purge(&self) -> bool {
        self.method.as_str() == "PURGE" && !self.site.settings.purge_allowed.is_empty()
    }
}

impl Proxy {
    /// Purges. When this returns, no request that arrives later is answered by a response whose fetch began before.
    ///
    /// # Errors
    /// [`PurgeError`] where the target means nothing; nothing is purged then.
    pub fn purge(&self, purge: &Purge) -> Result<Purged, PurgeError> {
        let (scope, kind, entries) = self.scope(&purge.target)?;
        let is_everything = scope == Scope::Everything;
        let strength = if purge.soft { Strength::Soft } else { Strength::Hard };
        let at = self.clock.now();
        if let (Scope::Uri(uri), Strength::Hard) = (&scope, strength) {
            self.cache.notes.forget_questions(uri);
        }
        let tick = self.cache.store.stamps().draw(scope, strength, at);
        if is_everything && !purge.soft {
            self.cache.store.clear();
        }
        self.telemetry.purged(kind);
        Ok(Purged { tick, at, entries })
    }

    /// Answers a PURGE request on the data port: purges its URL, if its client may.
    pub(super) fn purge_as_asked(&self, received: &Received) -> Answer {
        let address = received.client.address.ip();
        if !received.site.settings.purge_allowed.iter().any(|network| network.contains(address)) {
            return Rejection::Method.answer(received.version);
        }
        self.cache.store.stamps().draw(Scope::Uri(received.keyed.uri), Strength::Hard, self.clock.now());
        self.telemetry.purged(PurgeKind::Url);
        let outcome = Outcome::of(Answered::Purged);
        let mut answer = Answer::plain(StatusCode::OK, "200 OK: purged\n", outcome);
        received.site.told(None).of(&mut answer);
        answer
    }

    /// Housekeeping after purges: gives back the memory of what they made void, and forgets what they no longer need.
    pub async fn sweep(&self) {
        self.cache.store.sweep(self.clock.now(), async || tokio::task::yield_now().await).await;
    }

    fn scope(&self, target: &Target) -> Result<(Scope, PurgeKind, Option<u64>), PurgeError> {
        Ok(match target {
            Target::Url(url) => {
                let (scope, entries) = self.uri_scope(url)?;
                (scope, PurgeKind::Url, entries)
            }
            Target::Tag(tag) => (Scope::Tag(self.cache.tag(tag)), PurgeKind::Tag, None),
            Target::Prefix { path, .. } if !path.starts_with('/') => return Err(PurgeError::Path),
            Target::Prefix { host, path } => {
                let leaves_out = |route: &Route| route.host.is_none() && !route.key.host;
                let is_of_all = self.site.load().settings.routes.iter().any(leaves_out);
                let host = host.as_deref().filter(|_| !is_of_all);
                let host = host.map(|host| host::without_port(host).to_ascii_lowercase());
                (Scope::Prefix { host, path: path.clone() }, PurgeKind::Prefix, None)
            }
            Target::Route(name) => {
                let site = self.site.load();
                let index = site.route_named(name).ok_or(PurgeError::UnknownRoute)?;
                (Scope::Route(site.route_ids[index]), PurgeKind::Route, None)
            }
            Target::Everything => {
                (Scope::Everything, PurgeKind::All, self.cache.store.count(self.clock.now()))
            }
        })
    }

    /// The scope of a URL, and how many responses are stored for it, those to requests with a body included.
    fn uri_scope(&self, url: &str) -> Result<(Scope, Option<u64>), PurgeError> {
        let uri: Uri = url.parse().map_err(|_| PurgeError::Url)?;
        let authority = uri.authority().ok_or(PurgeError::Url)?;
        let scheme = uri.scheme_str().unwrap_or("http");
        if !matches!(scheme, "http" | "https") || authority.as_str().contains('@') {
            return Err(PurgeError::Url);
        }
        let default_port = if scheme == "https" { ":443" } else { ":80" };
        let host = authority.as_str().to_ascii_lowercase();
        let host = host.strip_suffix(default_port).unwrap_or(&host);
        let target = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let site = self.site.load();
        let (route, target) = site.locate(host, target).map_err(|_| PurgeError::NoRouteForUrl)?;
        let rules = &site.settings.routes[route];
        let keyed = |scheme| {
            let identity = Identity {
                route: site.route_ids[route],
                scheme,
                host,
                target: &rules.key.query.apply(&target),
                method: &Method::GET,
                headers: &HeaderMap::new(),
                body_digest: None,
            };
            self.cache.keyer.key(&identity, &rules.key)
        };
        // A URI is purged by whichever scheme its clients come.
        let [keyed, secure] = ["http", "https"].map(keyed);
        let is_plain = rules.key.headers.is_empty() && rules.key.cookies.is_empty();
        let questions = self.cache.notes.questions(&keyed.uri).filter(|_| is_plain);
        let entries = questions.map(|questions| {
            let now = self.clock.now();
            let keys = questions.iter().chain([&keyed.key, &secure.key]);
            keys.map(|key| self.cache.store.count_of(*key, now)).sum()
        });
        Ok((Scope::Uri(keyed.uri), entries))
    }
}
