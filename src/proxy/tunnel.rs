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
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

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

/// The upgraded connections, and how they end with the process.
#[derive(Debug, Default)]
pub(super) struct Tunnels {
    open: TaskTracker,
    cut_off: CancellationToken,
}

/// Where the account of a request goes that has become a tunnel: it is closed when the tunnel is.
pub(super) type Keeper = oneshot::Sender<Account>;

impl Proxy {
    /// Waits until every upgraded connection has ended by itself, or for so long. Returns how many have not, and are cut off.
    pub async fn drain(&self, at_most: Duration) -> usize {
        self.tunnels.open.close();
        match timeout(at_most, self.tunnels.open.wait()).await {
            Ok(()) => 0,
            Err(_) => self.cut_off().await,
        }
    }

    /// Ends every upgraded connection, and waits until it has. Returns how many there were.
    pub async fn cut_off(&self) -> usize {
        let Tunnels { open, cut_off } = &self.tunnels;
        let count = open.len();
        open.close();
        self.telemetry.cut_off();
        cut_off.cancel();
        open.wait().await;
        count
    }

    /// Upgraded connections at this moment.
    pub fn tunnels(&self) -> usize {
        self.tunnels.open.len()
    }

    /// Joins the two connections after the upstream has agreed to the upgrade.
    pub(super) fn tunnel(&self, upgrade: Option<Upgrade>, response: Response<upstream::Body>) -> Answer {
        let outcome = Outcome::of(Answered::Tunnel).forwarded(Forward::Bypass);
        let (head, mut body) = response.into_parts();
        let mut source = Source::Empty;
        if let Some(Upgrade { ours, held, protocol: _ }) = upgrade {
            let (keeper, kept) = oneshot::channel();
            source = Source::Tunnel(keeper);
            let open = self.telemetry.tunnelling();
            let cut_off = self.tunnels.cut_off.clone();
            self.tunnels.open.spawn(async move {
                let theirs = body.tunnel();
                // The places of both connections are taken as long as the tunnel stands.
                let _held = (held, body, open);
                let Ok(account) = kept.await else { return };
                let Some(ours) = cut_off.run_until_cancelled(ours).await else { return };
                match (ours, theirs) {
                    (Ok(ours), Some(theirs)) => join(ours, theirs, account, &cut_off).await,
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

/// Carries bytes both ways until both sides have ended, one has broken, or the process ends.
async fn join(
    ours: Upgraded,
    mut theirs: impl AsyncRead + AsyncWrite + Unpin,
    mut account: Account,
    cut_off: &CancellationToken,
) {
    let mut ours = ClientSide { stream: TokioIo::new(ours), account: &mut account, is_broken: false };
    let joined = tokio::io::copy_bidirectional(&mut ours, &mut theirs);
    let ended = cut_off.run_until_cancelled(joined).await;
    let is_client_gone = ours.is_broken;
    account.end(match ended {
        Some(Ok(_)) => BodyEnd::Complete,
        Some(Err(error)) => {
            tracing::debug!(%error, is_client_gone, "a tunnel broke off");
            if is_client_gone { BodyEnd::ClientLeft } else { BodyEnd::BrokenOff }
        }
        None => BodyEnd::CutOff,
    });
}

/// The client's side of a tunnel. It counts what is written to it, and tells whether it is the side that broke.
struct ClientSide<'a> {
    stream: TokioIo<Upgraded>,
    account: &'a mut Account,
    is_broken: bool,
}

impl ClientSide<'_> {
    fn poll<T>(
        &mut self,
        poll: impl FnOnce(Pin<&mut TokioIo<Upgraded>>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let polled = poll(Pin::new(&mut self.stream));
        self.is_broken |= matches!(polled, Poll::Ready(Err(_)));
        polled
    }
}

impl AsyncRead for ClientSide<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_read(context, buffer))
    }
}

impl AsyncWrite for ClientSide<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.poll(|stream| stream.poll_write(context, bytes));
        if let Poll::Ready(Ok(count)) = written {
            self.account.sent(count);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_shutdown(context))
    }
}
