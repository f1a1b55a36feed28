//! The clients: in crowds, in a hurry, or half asleep.

use crate::model::{Ask, Seen, World};
use crate::plan::{LANGUAGES, Method, QUESTIONS, REGIONS, Visit, question};
use crate::turns::Turn;
use bytes::{Bytes, BytesMut};
use forebay::server::Server;
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::time::{Instant, sleep, timeout};

/// One client's visits, one after the other.
pub async fn live(world: Arc<World>, server: Arc<Server>, number: usize, visits: Vec<Visit>) {
    let mut connection: Option<SendRequest<Full<Bytes>>> = None;
    for (index, visit) in visits.into_iter().enumerate() {
        world.comes(Turn::Ask, visit.pause).await;
        let kept = match connection.take() {
            Some(mut sender) => sender.ready().await.is_ok().then_some(sender),
            None => None,
        };
        let mut sender = match kept {
            Some(sender) => sender,
            None => connect(&server, number).await,
        };
        let ask = world.asks(format!("{number}.{index}"), visit.clone());
        let exchange = exchange(&world, &mut sender, &ask);
        let seen = match visit.patience {
            Some(patience) => timeout(patience, exchange).await.ok(),
            None => Some(exchange.await),
        };
        match seen {
            Some(seen) => {
                world.check(&ask, &seen);
                connection = Some(sender);
            }
            None => world.left(&ask),
        }
    }
}

/// A slow client rests after the first piece, and each time that it has taken so much more.
const SLOW_BYTES: usize = 32 << 10;

async fn connect(server: &Server, number: usize) -> SendRequest<Full<Bytes>> {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let port = u16::try_from(number + 1).unwrap();
    server.attach(theirs, SocketAddr::from(([10, 0, 0, 1], port)));
    let (sender, connection) = http1::handshake(TokioIo::new(ours)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn exchange(world: &World, sender: &mut SendRequest<Full<Bytes>>, ask: &Ask) -> Seen {
    let visit = &ask.visit;
    let asked = if visit.method == Method::Question { QUESTIONS[visit.question] } else { "" };
    let mut request = Request::new(Full::from(asked));
    *request.method_mut() = match visit.method {
        Method::Get | Method::Range => http::Method::GET,
        Method::Head => http::Method::HEAD,
        Method::Delete => http::Method::DELETE,
        Method::Question => question(&ask.path[1..2]),
    };
    *request.uri_mut() = ask.path.parse().unwrap();
    let headers = request.headers_mut();
    headers.insert("host", HeaderValue::from_static("site.example"));
    headers.insert("x-request", HeaderValue::try_from(&ask.id).unwrap());
    headers.insert("x-language", HeaderValue::from_static(LANGUAGES[visit.language]));
    if let Some(region) = REGIONS[visit.language] {
        headers.insert("x-region", HeaderValue::from_static(region));
    }
    if visit.method == Method::Range {
        headers.insert("range", HeaderValue::from_static("bytes=0-9"));
    }
    if visit.authorization {
        headers.insert("authorization", HeaderValue::from_static("Basic YTpi"));
    }
    if visit.cookie {
        headers.insert("cookie", HeaderValue::from_static("session=1"));
    }
    let response = match sender.send_request(request).await {
        Ok(response) => response,
        Err(error) => return Seen::Nothing(error.to_string()),
    };
    let received = Instant::now();
    world.heard(ask);
    let (head, mut incoming) = response.into_parts();
    let mut body = BytesMut::new();
    let mut is_whole = true;
    let mut rested_at = None;
    while let Some(frame) = incoming.frame().await {
        let Ok(frame) = frame else {
            is_whole = false;
            break;
        };
        body.extend_from_slice(&frame.into_data().unwrap_or_default());
        // A slow one is slow for what it takes, into however many pieces that is cut.
        if !visit.slowness.is_zero() && rested_at.is_none_or(|before| body.len() - before >= SLOW_BYTES) {
            rested_at = Some(body.len());
            sleep(visit.slowness).await;
        }
    }
    Seen::Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        received,
        body: body.freeze(),
        is_whole,
    }
}
