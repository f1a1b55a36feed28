//! The demo upstream: a small, deliberately slow web application.
//!
//! A page is the same whoever asks, but for one line that says which request made it. That line is how one sees
//! with bare eyes that a thousand answers came from one fetch.

use bytes::Bytes;
use http::header::{
    ACCEPT_LANGUAGE, ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, VARY,
};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Either, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};
use tokio_util::task::AbortOnDropHandle;

/// The time a page takes, if nobody says otherwise.
pub const DELAY: Duration = Duration::from_secs(1);

/// Pieces in which a streamed page is sent.
const PIECES: u32 = 10;

/// Lines of text in a page.
const LINES: usize = 40;

/// A running demo upstream. It stops when this is dropped.
#[derive(Debug)]
pub struct DemoUpstream {
    address: SocketAddr,
    pages: Pages,
    _accepting: AbortOnDropHandle<()>,
}

impl DemoUpstream {
    /// Serves pages that take `delay` each.
    ///
    /// # Errors
    /// The listener has no local address.
    pub fn start(listener: TcpListener, delay: Duration) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let pages = Pages { delay, requests: Arc::default() };
        let accepting = tokio::spawn(accept(listener, pages.clone()));
        Ok(Self { address, pages, _accepting: AbortOnDropHandle::new(accepting) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests received so far, apart from those for the index and the counter.
    pub fn requests(&self) -> u64 {
        self.pages.requests.load(Ordering::Relaxed)
    }
}

/// Whether this is the whole body of `/page/{number}`, whichever request made it.
pub fn is_page(number: u64, body: &[u8]) -> bool {
    let made_by = std::str::from_utf8(body)
        .ok()
        .and_then(|text| text.lines().nth(1)?.strip_prefix(MADE_BY)?.parse().ok());
    made_by.is_some_and(|request| page("page", number, request).as_bytes() == body)
}

const MADE_BY: &str = "rendered by upstream request #";

const INDEX: &str = "\
This is forebay's demo upstream. It is slow on purpose.

  /page/{n}         a page, fresh for a minute; POST, PUT and DELETE pretend to change it
  /stream/{n}       a page in ten pieces, fresh for a minute
  /vary/{n}         a page in English, German or French, by Accept-Language
  /stale/{n}        a page, fresh for two seconds and usable while it is refreshed for thirty more
  /uncacheable/{n}  a page that must not be stored
  /private          a page for one reader only
  /fail             an internal error
  /counter          how many requests have come here so far, this index and the counter apart

{n} is any number. The second line of a page says which request made it.
";

type Answer = Response<Either<Full<Bytes>, Pieces>>;

async fn accept(listener: TcpListener, pages: Pages) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, pages.clone()));
                }
                // Out of file descriptors, most likely: give the others time to end.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, pages: Pages) {
    let answer = service_fn(move |request| {
        let pages = pages.clone();
        async move { Ok::<_, Infallible>(pages.answer(&request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), answer);
    // A client that goes away is none of a demo's concerns.
    let _ = connection.await;
}

/// The application.
#[derive(Debug, Clone)]
struct Pages {
    delay: Duration,
    /// Only ever added to and read; no other memory depends on it, hence relaxed.
    requests: Arc<AtomicU64>,
}

/// What a path names.
enum Resource {
    Index,
    Counter,
    Page(u64),
    Stream(u64),
    Vary(u64),
    Stale(u64),
    Uncacheable(u64),
    Private,
    Fail,
    Unknown,
}

impl Resource {
    fn of(path: &str) -> Self {
        match path {
            "/" => return Self::Index,
            "/counter" => return Self::Counter,
            "/private" => return Self::Private,
            "/fail" => return Self::Fail,
            _ => {}
        }
        let Some((kind, number)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
            return Self::Unknown;
        };
        match (kind, number.parse()) {
            ("page", Ok(number)) => Self::Page(number),
            ("stream", Ok(number)) => Self::Stream(number),
            ("vary", Ok(number)) => Self::Vary(number),
            ("stale", Ok(number)) => Self::Stale(number),
            ("uncacheable", Ok(number)) => Self::Uncacheable(number),
            _ => Self::Unknown,
        }
    }
}

impl Pages {
    async fn answer<B>(&self, request: &Request<B>) -> Answer {
        let resource = Resource::of(request.uri().path());
        if let Some(answer) = self.uncounted(&resource) {
            return answer;
        }
        let made_by = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return changed(&resource, request.method());
        }
        match resource {
            Resource::Page(number) => {
                self.validated(request.headers(), "page", number, "max-age=60", made_by).await
            }
            Resource::Stale(number) => {
                let freshness = "max-age=2, stale-while-revalidate=30";
                self.validated(request.headers(), "stale", number, freshness, made_by).await
            }
            Resource::Stream(number) => self.streamed(number, made_by),
            Resource::Vary(number) => self.varied(request.headers(), number, made_by).await,
            Resource::Uncacheable(number) => {
                self.render().await;
                whole(StatusCode::OK, "no-store", page("uncacheable", number, made_by))
            }
            Resource::Private => {
                self.render().await;
                whole(
                    StatusCode::OK,
                    "private, max-age=60",
                    format!("for your eyes only\n{MADE_BY}{made_by}\n"),
                )
            }
            Resource::Fail => {
                self.render().await;
                let text = format!("this page always fails\n{MADE_BY}{made_by}\n");
                plain(StatusCode::INTERNAL_SERVER_ERROR, text)
            }
            Resource::Index | Resource::Counter | Resource::Unknown => {
                plain(StatusCode::NOT_FOUND, "there is no such page; / lists them\n")
            }
        }
    }

    /// What tells about the demo itself comes at once and does not count.
    fn uncounted(&self, resource: &Resource) -> Option<Answer> {
        match resource {
            Resource::Index => Some(whole(StatusCode::OK, "no-cache", INDEX)),
            Resource::Counter => {
                let count = format!("{}\n", self.requests.load(Ordering::Relaxed));
                Some(whole(StatusCode::OK, "no-store", count))
            }
            Resource::Page(_)
            | Resource::Stream(_)
            | Resource::Vary(_)
            | Resource::Stale(_)
            | Resource::Uncacheable(_)
            | Resource::Private
            | Resource::Fail
            | Resource::Unknown => None,
        }
    }

    /// The work that makes a page slow.
    async fn render(&self) {
        tokio::time::sleep(self.delay).await;
    }

    /// A page with a validator. The page that the client has is confirmed at once, without rendering it.
    async fn validated(
        &self,
        headers: &HeaderMap,
        kind: &str,
        number: u64,
        freshness: &'static str,
        made_by: u64,
    ) -> Answer {
        // Weak, because the line that says which request made it differs from one rendering to the next.
        let tag = format!("W/\"{kind}-{number}\"");
        let known = headers.get_all(IF_NONE_MATCH).iter().any(|field| names_tag(field, &tag));
        let mut answer = if known {
            let mut answer = Response::new(Either::Left(Full::default()));
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
            answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static(freshness));
            answer
        } else {
            self.render().await;
            whole(StatusCode::OK, freshness, page(kind, number, made_by))
        };
        answer
            .headers_mut()
            .insert(ETAG, HeaderValue::try_from(tag).expect("a tag of words and digits is a field"));
        answer
    }

    async fn varied(&self, headers: &HeaderMap, number: u64, made_by: u64) -> Answer {
        self.render().await;
        let language = headers.get(ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok()).unwrap_or("en");
        let greeting = match language.get(..2) {
            Some("de") => "Guten Tag",
            Some("fr") => "Bonjour",
            _ => "Good day",
        };
        let text = format!("vary {number}\n{MADE_BY}{made_by}\n{greeting}\n");
        let mut answer = whole(StatusCode::OK, "max-age=60", text);
        answer.headers_mut().insert(VARY, HeaderValue::from_name(ACCEPT_LANGUAGE));
        answer
    }

    /// A page whose head comes at once and whose pieces come one by one.
    fn streamed(&self, number: u64, made_by: u64) -> Answer {
        let pieces = (1..=PIECES).map(|piece| {
            Bytes::from(match piece {
                1 => format!("stream {number}\n{MADE_BY}{made_by}\npiece 1\n"),
                _ => format!("piece {piece}\n"),
            })
        });
        let pause = self.delay / PIECES;
        let body = Pieces { left: pieces.collect(), pause, next: Box::pin(tokio::time::sleep(pause)) };
        let mut answer = Response::new(Either::Right(body));
        let headers = answer.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
        headers.insert(CONTENT_TYPE, TEXT);
        answer
    }
}

/// The answer to an unsafe method: pages pretend to change, the rest refuses.
fn changed(resource: &Resource, method: &Method) -> Answer {
    let changes = matches!(*method, Method::POST | Method::PUT | Method::DELETE);
    if changes && matches!(resource, Resource::Page(_)) {
        let mut answer = Response::new(Either::Left(Full::default()));
        *answer.status_mut() = StatusCode::NO_CONTENT;
        return answer;
    }
    let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "this page can only be read\n");
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    answer
}

/// The text of a page: the same for the same number, but for its second line.
fn page(kind: &str, number: u64, made_by: u64) -> String {
    let lines = format!("{kind} {number}: water that waits behind a wall is a forebay\n").repeat(LINES);
    format!("{kind} {number}\n{MADE_BY}{made_by}\n\n{lines}end of {kind} {number}\n")
}

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Either::Left(Full::new(text.into())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, TEXT);
    answer
}

fn whole(status: StatusCode, cache_control: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut answer = plain(status, text);
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static(cache_control));
    answer
}

/// Whether an `If-None-Match` field names this weak tag, by the weak comparison of RFC 9110 §8.8.3.2.
fn names_tag(field: &HeaderValue, tag: &str) -> bool {
    let opaque = |tag: &str| tag.strip_prefix("W/").unwrap_or(tag).to_owned();
    field.to_str().is_ok_and(|list| {
        list.split(',').map(str::trim).any(|named| named == "*" || opaque(named) == opaque(tag))
    })
}

/// A body whose pieces come one by one, a pause before each.
struct Pieces {
    left: VecDeque<Bytes>,
    pause: Duration,
    next: Pin<Box<Sleep>>,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        ready!(self.next.as_mut().poll(context));
        let next = Instant::now() + self.pause;
        self.next.as_mut().reset(next);
        Poll::Ready(self.left.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    fn pages() -> Pages {
        Pages { delay: Duration::from_secs(1), requests: Arc::default() }
    }

    async fn ask(pages: &Pages, request: http::request::Builder) -> (http::response::Parts, String) {
        let answer = pages.answer(&request.body(()).unwrap()).await;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_is_slow_cacheable_and_says_who_made_it() {
        let pages = pages();
        let started = Instant::now();
        let (head, body) = ask(&pages, Request::get("/page/7")).await;
        assert_eq!(started.elapsed(), Duration::from_secs(1));
        assert_eq!(head.status, StatusCode::OK);
        assert_eq!(head.headers[CACHE_CONTROL], "max-age=60");
        assert!(body.starts_with("page 7\nrendered by upstream request #1\n"), "{body}");
        let (_, again) = ask(&pages, Request::get("/page/7")).await;
        assert!(is_page(7, body.as_bytes()) && is_page(7, again.as_bytes()));
        assert_ne!(body, again, "the line that says who made it differs");
    }

    #[test]
    fn a_wrong_or_cut_page_is_noticed() {
        let body = page("page", 7, 3);
        assert!(is_page(7, body.as_bytes()));
        assert!(!is_page(8, body.as_bytes()), "another page");
        assert!(!is_page(7, &body.as_bytes()[..body.len() - 1]), "cut");
        assert!(!is_page(7, b""), "empty");
        assert!(!is_page(7, format!("{body}x").as_bytes()), "too long");
    }

    #[tokio::test(start_paused = true)]
    async fn a_known_page_is_confirmed_at_once() {
        let pages = pages();
        let (head, _) = ask(&pages, Request::get("/page/7")).await;
        let tag = head.headers[ETAG].to_str().unwrap();
        for known in [tag, "*", &format!("\"other\", {tag}"), tag.strip_prefix("W/").unwrap()] {
            let started = Instant::now();
            let (head, body) = ask(&pages, Request::get("/page/7").header(IF_NONE_MATCH, known)).await;
            assert_eq!((head.status, body.as_str()), (StatusCode::NOT_MODIFIED, ""), "{known}");
            assert_eq!(started.elapsed(), Duration::ZERO);
            assert_eq!(head.headers[ETAG], tag);
        }
        let (head, _) = ask(&pages, Request::get("/page/8").header(IF_NONE_MATCH, tag)).await;
        assert_eq!(head.status, StatusCode::OK);
    }

    #[tokio::test(start_paused = true)]
    async fn every_path_says_what_may_be_stored() {
        #[track_caller]
        fn check(answer: &(http::response::Parts, String), status: u16, cache_control: Option<&str>) {
            assert_eq!(answer.0.status.as_u16(), status);
            let found = answer.0.headers.get(CACHE_CONTROL).map(|value| value.to_str().unwrap());
            assert_eq!(found, cache_control);
        }
        let pages = pages();
        check(&ask(&pages, Request::get("/")).await, 200, Some("no-cache"));
        check(&ask(&pages, Request::get("/uncacheable/1")).await, 200, Some("no-store"));
        check(&ask(&pages, Request::get("/private")).await, 200, Some("private, max-age=60"));
        check(
            &ask(&pages, Request::get("/stale/1")).await,
            200,
            Some("max-age=2, stale-while-revalidate=30"),
        );
        check(&ask(&pages, Request::get("/stream/1")).await, 200, Some("max-age=60"));
        check(&ask(&pages, Request::get("/fail")).await, 500, None);
        check(&ask(&pages, Request::get("/page/seven")).await, 404, None);
        check(&ask(&pages, Request::post("/page/7")).await, 204, None);
        check(&ask(&pages, Request::post("/private")).await, 405, None);
        let (_, counter) = ask(&pages, Request::get("/counter")).await;
        assert_eq!(counter, "8\n", "neither the index nor the counter count");
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_varies_by_language() {
        let pages = pages();
        for (language, greeting) in [("de-CH, en", "Guten Tag"), ("fr", "Bonjour"), ("x", "Good day")] {
            let (head, body) = ask(&pages, Request::get("/vary/1").header(ACCEPT_LANGUAGE, language)).await;
            assert_eq!(head.headers[VARY], "accept-language");
            assert!(body.ends_with(&format!("\n{greeting}\n")), "{body}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_comes_in_ten_pieces_over_the_delay() {
        let answer = pages().answer(&Request::get("/stream/3").body(()).unwrap()).await;
        let started = Instant::now();
        let mut body = answer.into_body();
        for piece in 1..=PIECES {
            let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert!(frame.ends_with(format!("piece {piece}\n").as_bytes()));
            assert_eq!(started.elapsed(), Duration::from_millis(100) * piece);
        }
        assert!(body.frame().await.is_none());
    }
}
