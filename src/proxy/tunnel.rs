//! Tunnels: the connections of client and upstream, joined after an upgrade (RFC 9110 §7.8).

use super::Proxy;
use super::answer::{Account, Answer, Source};
use crate::outcome::{Answered, Forward, Outcome};
use crate::policy::forwarding;
use crate::telemetry::BodyEnd;
use crate::upstream;
use http::request::Parts;
use http::{HeaderValue, Response, Version, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use std::any::Any;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio_util::io::InspectWriter;

/// What a connection counts for, such as a place among all connections. Put into a request's extensions by whoever accepted
/// its connection, it is kept by the tunnel that the connection may become.
#[derive(Clone)]
pub struct Held {
    /// Only ever dropped.
    _held: Arc<dyn Any + Send + Sync>,
}

impl Held {
    /// Holds all of this until the last copy is dropped.
    pub fn new(held: Arc<dyn Any + Send + Sync>) -> Self {
        Self { _held: held }
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Held")
    }
}

/// An upgrade that a request asks for.
#[derive(Debug)]
pub(super) struct Upgrade {
    /// The protocol that it asks for.
    pub(super) protocol: HeaderValue,
    /// Our end of it.
    pub(super) ours: OnUpgrade,
    /// What its connection counts for.
    pub(super) held: Option<Held>,
}

impl Upgrade {
    /// Takes the upgrade that a request asks for out of it, if it may ask.
    pub(super) fn take(request: &mut Parts) -> Option<Self> {
        let protocol = forwarding::requested_upgrade(&request.headers)?;
        let ours = request.extensions.remove().filter(|_| request.version == Version::HTTP_11)?;
        Some(Self { protocol, ours, held: request.extensions.remove() })
    }
}

/// Where the account of a request goes that has become a tunnel: it is closed when the tunnel is.
pub(super) type Keeper = oneshot::Sender<Account>;

impl Proxy {
    /// Joins the two connections after the upstream has agreed to the upgrade.
    pub(super) fn tunnel(&self, upgrade: Option<Upgrade>, response: Response<upstream::Body>) -> Answer {
        let outcome = Outcome::of(Answered::Tunnel).forwarded(Forward::Bypass);
        let (head, mut body) = response.into_parts();
        let mut source = Source::Empty;
        if let Some(Upgrade { ours, held, protocol: _ }) = upgrade {
            let (keeper, kept) = oneshot::channel();
            source = Source::Tunnel(keeper);
            let open = self.telemetry.tunnelling();
            self.tunnels.spawn(async move {
                let theirs = body.tunnel();
                // The places of both connections are taken as long as the tunnel stands.
                let _held = (held, body, open);
                let Ok(account) = kept.await else { return };
                match (ours.await, theirs) {
                    (Ok(ours), Some(theirs)) => join(ours, theirs, account).await,
                    (Err(error), _) => tracing::debug!(%error, "an upgrade failed"),
                    (_, None) => tracing::debug!("an upgrade came before all of its request was sent"),
                }
            });
        }
        let mut response = Response::new(source);
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        Answer { response, outcome }
    }
}

/// Carries bytes both ways until both sides have ended.
async fn join(ours: Upgraded, mut theirs: impl AsyncRead + AsyncWrite + Unpin, mut account: Account) {
    let mut ours = InspectWriter::new(TokioIo::new(ours), |bytes: &[u8]| account.sent(bytes.len()));
    let ended = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await;
    drop(ours);
    account.end(match ended {
        Ok(_) => BodyEnd::Complete,
        Err(error) => {
            tracing::debug!(%error, "a tunnel broke off");
            BodyEnd::BrokenOff
        }
    });
}
