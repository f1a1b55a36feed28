//! Plain requests that need no tables: neither the request's head nor the answer's becomes one.
//!
//! Answers that lie at hand, fresh stored responses, are written out as bytes while the request is still being read. What the cache has
//! nothing to do with goes [`through`](super::through).
//!
//! What may be answered so, and with what, is decided where it is decided for all requests: [`Site::locate`](super::Site),
//! [`Keyer::key`](crate::policy::Keyer::key), [`Proxy::plan`]. Only the form differs.

use super::answer::{Account, Beginning};
use super::cache_status::Told;
use super::plain::PlainGet;
use super::receive::Client;
use super::reply::{Content, HEAD_BYTES, Reply, push};
use super::site::Site;
use super::through::Through;
use super::{Decided, Proxy, host, supervise};
use crate::outcome::{Answered, Outcome};
use crate::policy::{self, Asked, Identity, Key, Plan};
use crate::store::{Line, Stored};
use http::{Method, StatusCode, header};
use std::sync::Arc;
use std::time::SystemTime;

/// What a plain request comes to that needs no tables.
#[derive(Debug)]
pub enum Shortcut {
    /// Its whole answer, from the store.
    AtHand(Box<Reply>),
    /// It goes upstream for its client alone.
    Through(Through),
}

/// A plain request that has a route.
#[derive(Debug)]
pub(super) struct Plain<'a> {
    pub(super) request: &'a PlainGet<'a>,
    pub(super) client: Client,
    pub(super) site: &'a Arc<Site>,
    pub(super) route: usize,
    /// Path and query as they go upstream when it goes alone,
    pub(super) target: &'a str,
    /// and when the fetch is shared.
    pub(super) shared_target: &'a str,
    pub(super) key: Key,
    /// The key for people, where the site names it to clients.
    pub(super) key_text: Option<String>,
    pub(super) now: SystemTime,
}

impl Proxy {
    /// What a plain request comes to, if that needs no tables: it is answered from what is fresh in the store, or passed on. `None`: it is
    /// to be served as every other, and nothing has been counted.
    pub fn shortcut(self: &Arc<Self>, request: &PlainGet<'_>, client: Client) -> Option<Shortcut> {
        let beginning = Beginning::plain(&self.telemetry, request, client.address);
        supervise::caught(&self.telemetry, "request", || self.look_at_plain(request, client, beginning))
            .flatten()
    }

    fn look_at_plain(
        self: &Arc<Self>,
        request: &PlainGet<'_>,
        client: Client,
        beginning: Beginning,
    ) -> Option<Shortcut> {
        let (site, now) = (self.site.load_full(), self.clock.now());
        let host = host::named(request, client).ok()?;
        let asked = Asked { method: &Method::GET, headers: request };
        if request.target().len() > site.settings.target_bytes_max {
            return None;
        }
        let (index, target) = site.locate(&host, request.target()).ok()?;
        let route = &site.settings.routes[index];
        if route.is_keyed_by_body(asked.method) {
            return None;
        }
        let shared_target = route.key.query.apply(&target);
        let identity = Identity {
            route: site.route_ids[index],
            scheme: client.scheme(),
            host: &host,
            target: &shared_target,
            method: asked.method,
            headers: asked.headers,
            body_digest: None,
        };
        let key = self.cache.keyer.key(&identity, &route.key).key;
        let decided = self.plan(&asked, key, now, &route.rules);
        let key_text = site.settings.cache_status_key.then(|| policy::key::text(&identity, &route.key));
        let plain = Plain {
            request,
            client,
            route: index,
            target: &target,
            shared_target: &shared_target,
            key,
            key_text,
            now,
            site: &site,
        };
        match decided.plan {
            Plan::Deliver { stored } => self.hit(&plain, beginning, decided, stored).map(Shortcut::AtHand),
            Plan::Pass(cause) => self.pass_through(&plain, beginning, cause).map(Shortcut::Through),
            Plan::Fetch(forward) if decided.stored().is_empty() => {
                self.go_through_alone(&plain, beginning, forward).map(Shortcut::Through)
            }
            Plan::Fetch(_)
            | Plan::DeliverAndRefresh { .. }
            | Plan::Revalidate { .. }
            | Plan::Unsatisfiable => None,
        }
    }

    fn hit(
        &self,
        plain: &Plain<'_>,
        beginning: Beginning,
        decided: Decided,
        stored: usize,
    ) -> Option<Box<Reply>> {
        let Plain { site, route, key_text, now, .. } = plain;
        let now = *now;
        let stored = decided.variants?.take(stored)?;
        let (large, length) = match stored.body().small() {
            Some(small) => (None, small.len() as u64),
            None => Content::large(&stored).map(|(large, length)| (Some(large), length))?,
        };
        if !stored.metadata().is_fresh(now) || !has_length(stored.status()) {
            return None;
        }
        let ttl_seconds = Some(stored.metadata().ttl_seconds(now));
        let outcome = Outcome { ttl_seconds, ..Outcome::of(Answered::Hit) };
        let head = head(&stored, &site.told(key_text.as_deref()), &outcome, length, now);
        let mut account = Account::open(&self.telemetry, Arc::clone(site), beginning);
        account.assign(*route);
        account.answered(stored.status(), outcome);
        let content = large.unwrap_or(Content::Stored(stored));
        Some(Box::new(Reply::new(head, content, account)))
    }
}

/// RFC 9110 §8.6: whether an answer with this status says how long it is.
fn has_length(status: StatusCode) -> bool {
    !status.is_informational() && status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED
}

/// The head of a hit.
fn head(stored: &Stored, told: &Told<'_>, outcome: &Outcome, length: u64, now: SystemTime) -> Vec<u8> {
    let status = stored.status();
    let mut head = Vec::with_capacity(HEAD_BYTES);
    head.extend_from_slice(b"HTTP/1.1 ");
    head.extend_from_slice(status.as_str().as_bytes());
    head.push(b' ');
    head.extend_from_slice(status.canonical_reason().unwrap_or("<none>").as_bytes());
    head.extend_from_slice(b"\r\n");
    let mut has_length = false;
    for Line { name, start, value } in stored.lines() {
        has_length |= *name == header::CONTENT_LENGTH;
        if *name != header::AGE && !told.replaces(name.as_str()) {
            push(&mut head, start, value);
        }
    }
    let mut digits = itoa::Buffer::new();
    if !has_length {
        push(&mut head, b"content-length: ", digits.format(length).as_bytes());
    }
    push(&mut head, b"age: ", digits.format(stored.metadata().age(now).as_secs()).as_bytes());
    told.write(outcome, &mut head);
    head.extend_from_slice(b"\r\n");
    head
}
