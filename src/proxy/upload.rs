//! The body of a request: buffered where it is part of the key, else on its way from the client to the upstream.

use super::Proxy;
use super::answer::Answer;
use super::failure::Failure;
use super::receive::Received;
use crate::outcome::{Answered, Outcome};
use crate::upstream::{BodyFault, BodyLimits, Inbound, InboundError, RequestBody};
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body_util::BodyExt;
use std::sync::{Arc, OnceLock};
use tokio::time::timeout;

/// The body of a client's request.
#[derive(Debug)]
pub(super) enum Upload {
    /// As it comes.
    Streamed(Inbound),
    /// Its beginning, and the rest as it comes.
    Begun(Bytes, Inbound),
    /// All of it.
    Buffered(Bytes),
}

impl Upload {
    /// The body as the upstream gets it. The cell is filled where it passes a limit.
    pub(super) fn send(self, limits: &BodyLimits) -> (RequestBody, Option<Arc<OnceLock<BodyFault>>>) {
        let (begun, incoming) = match self {
            Self::Buffered(bytes) => return (RequestBody::Buffered(bytes), None),
            Self::Begun(begun, incoming) => (begun, incoming),
            Self::Streamed(incoming) => (Bytes::new(), incoming),
        };
        let (body, fault) = RequestBody::streamed(begun, incoming, limits);
        (body, Some(fault))
    }
}

impl Received {
    /// Whether requests like this are the same only if their bodies are: by the route's choice, QUERY or POST.
    pub(super) fn is_keyed_by_body(&self) -> bool {
        self.upgrade.is_none() && self.route().is_keyed_by_body(&self.method)
    }
}

impl Proxy {
    /// Reads the body and makes it part of the key. One that is too large to be buffered is left to pass through.
    ///
    /// # Errors
    /// The answer to a client that breaks its upload off, or is too slow with it.
    pub(super) async fn identify(
        &self,
        mut received: Received,
        body: Inbound,
    ) -> Result<(Received, Upload), Answer> {
        let coalescing = &received.route().coalescing;
        let reading = buffer(body, coalescing.request_body_bytes_max);
        let status = match timeout(coalescing.waiter_timeout, reading).await {
            Ok(Ok(Upload::Buffered(bytes))) => {
                received.identify(&self.cache.keyer, bytes.clone());
                // It may have taken its time.
                received.now = self.clock.now();
                return Ok((received, Upload::Buffered(bytes)));
            }
            Ok(Ok(upload)) => return Ok((received, upload)),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a client broke its upload off");
                StatusCode::BAD_REQUEST
            }
            Err(_) => StatusCode::REQUEST_TIMEOUT,
        };
        let outcome = Outcome::of(Answered::Rejected).because("request-body");
        let mut answer =
            Failure::ours(status, "http_request_error").answer(outcome, &received.site.told(None));
        answer.outcome = outcome;
        Err(answer)
    }
}

async fn buffer(mut body: Inbound, bytes_max: usize) -> Result<Upload, InboundError> {
    if http_body::Body::size_hint(&body).lower() > bytes_max as u64 {
        return Ok(Upload::Streamed(body));
    }
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        // Trailers are dropped, as they are wherever a body passes through.
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
            if bytes.len() > bytes_max {
                return Ok(Upload::Begun(bytes.freeze(), body));
            }
        }
    }
    Ok(Upload::Buffered(bytes.freeze()))
}
