//! The origin: slow, unreliable, and of an excellent memory.

use crate::model::{Fault, Sending, World};
use crate::turns::Turn;
use bytes::Bytes;
use forebay::upstream::Transport;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::Id;

type Body = BoxBody<Bytes, io::Error>;

/// Connections to the origin of this world.
pub fn transport(world: &Arc<World>) -> Transport {
    let world = Arc::clone(world);
    Transport::Memory(Arc::new(move |_| {
        let world = Arc::clone(&world);
        Box::pin(async move {
            if world.refuses_connection() {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (ours, theirs) = tokio::io::duplex(64 << 10);
            // Who connects has a request to send: this is its task.
            let connected_by = Mutex::new(tokio::task::try_id());
            let service =
                service_fn(move |request| answer(Arc::clone(&world), connected_by.lock().take(), request));
            let mut http = hyper::server::conn::http1::Builder::new();
            // It would read the machine's clock, which is not that of the world.
            http.auto_date_header(false);
            tokio::spawn(http.serve_connection(TokioIo::new(ours), service));
            Ok(theirs)
        })
    }))
}

async fn answer(
    world: Arc<World>,
    connected_by: Option<Id>,
    mut request: Request<Incoming>,
) -> io::Result<Response<Body>> {
    let headers = request.headers().clone();
    let field = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    if request.method() == http::Method::DELETE {
        world.comes(Turn::Line, Duration::from_millis(10)).await;
        world.deleted(request.uri().path());
        let empty = Empty::new().map_err(|never| match never {}).boxed();
        return Ok(Response::builder().header("cache-control", "no-store").body(empty).unwrap());
    }
    let asked = request.body_mut().collect().await.map_err(io::Error::other)?.to_bytes();
    let fetch = world.fetch_arrived(
        &request.method().clone(),
        request.uri().path(),
        &field("x-request").unwrap(),
        &field("x-language").unwrap(),
        field("authorization").is_some(),
        field("cookie").is_some(),
        field("if-none-match").as_deref(),
        std::str::from_utf8(&asked).unwrap(),
        field("range").is_some(),
        connected_by,
    );
    let script = &fetch.script;
    fetch.takes_its_time().await;
    match script.fault {
        Some(Fault::Reset) => {
            fetch.failed();
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::ServerError) => {
            fetch.failed();
            let empty = Empty::new().map_err(|never| match never {}).boxed();
            let mut response = Response::new(empty);
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            return Ok(response);
        }
        // Even the head may not come.
        Some(Fault::CutBody) => fetch.failed(),
        Some(Fault::StuckBody) | None => {}
    }
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed());
    set(response.headers_mut(), &script.headers);
    if script.is_confirmation {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else if request.method() == http::Method::HEAD {
        let length = HeaderValue::from(script.body.len());
        response.headers_mut().insert("content-length", length);
    } else {
        if script.says_length {
            let length = HeaderValue::from(script.body.len());
            response.headers_mut().insert("content-length", length);
        }
        *response.body_mut() = body(script.body.clone(), script.fault, script.pause, fetch.sending());
    }
    fetch.answered();
    Ok(response)
}

fn set(headers: &mut HeaderMap, fields: &[(&'static str, String)]) {
    for (name, value) in fields {
        headers.append(*name, HeaderValue::try_from(value).unwrap());
    }
}

/// The body in four pieces, with pauses; the last of them may never come.
fn body(whole: Bytes, fault: Option<Fault>, pause: Duration, sending: Sending) -> Body {
    let piece = whole.len().div_ceil(4);
    let pieces = stream::unfold((whole, sending), move |(mut rest, sending)| async move {
        if rest.is_empty() {
            return None;
        }
        if !pause.is_zero() {
            sending.world().comes(Turn::Piece, pause).await;
        }
        let next = rest.split_to(piece.min(rest.len()));
        if rest.is_empty() {
            match fault {
                Some(Fault::CutBody) => {
                    return Some((Err(io::ErrorKind::ConnectionReset.into()), (rest, sending)));
                }
                Some(Fault::StuckBody) => std::future::pending().await,
                Some(Fault::Reset | Fault::Silence | Fault::ServerError) | None => {}
            }
        }
        sending.sends(next.len());
        Some((Ok(Frame::data(next)), (rest, sending)))
    });
    BodyExt::boxed(StreamBody::new(pieces))
}
