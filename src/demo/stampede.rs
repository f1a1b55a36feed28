//! A stampede: many clients that ask for few pages at the same moment, over real sockets.
//!
//! It is run twice with the same load, straight at the demo upstream and through forebay, so that the two columns
//! of the [`Report`] can be compared.

use super::upstream;
use bytes::Bytes;
use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

/// How large a stampede is, and how long it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stampede {
    /// Clients, each with a connection of its own and one request.
    pub clients: usize,
    /// Different pages that they ask for.
    pub keys: usize,
    /// Longest wait for one answer.
    pub request_timeout: Duration,
    /// Longest duration of each of the two runs.
    pub run_timeout: Duration,
}

impl Default for Stampede {
    fn default() -> Self {
        Self {
            clients: 1000,
            keys: 10,
            request_timeout: Duration::from_secs(30),
            run_timeout: Duration::from_mins(1),
        }
    }
}

/// What came of a stampede.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What was asked.
    pub stampede: Stampede,
    /// The run straight at the upstream.
    pub straight: Run,
    /// The run through forebay.
    pub proxied: Run,
    /// What forebay counted meanwhile.
    pub cache: Cache,
}

/// What the clients of one run saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Run {
    /// Requests sent.
    pub requests: usize,
    /// Requests that reached the upstream, as the upstream counts them.
    pub upstream_fetches: u64,
    /// Right answers' latencies, ascending: from the release of all clients to the last byte.
    pub latencies: Vec<Duration>,
    /// Requests without an answer: no connection, broken off, or too late.
    pub errors: usize,
    /// Answers with another status than 200, or with a body that is not the whole page asked for.
    pub wrong: usize,
}

/// What forebay counted during the run through it, read from its metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cache {
    /// `forebay_cache_hits_total`.
    pub hits: u64,
    /// `forebay_coalesced_waits_total`.
    pub coalesced_waits: u64,
    /// `forebay_duplicate_fetches_total`.
    pub duplicate_fetches: u64,
}

/// Why a stampede could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum StampedeError {
    /// The upstream's own count of requests could not be read.
    #[error("the demo upstream at {0} does not say how many requests it has had")]
    NoCount(SocketAddr),
}

impl Stampede {
    /// Runs it, straight at `upstream` and then through `proxy`, which must forward to that same demo upstream and
    /// have nothing stored. `metrics` gives forebay's metrics as text. A progress bar is shown where standard
    /// error is a terminal.
    ///
    /// # Errors
    /// Only if the upstream cannot be asked for its count; failing requests are part of the report.
    pub async fn run(
        self,
        proxy: SocketAddr,
        upstream: SocketAddr,
        metrics: impl Fn() -> String,
    ) -> Result<Report, StampedeError> {
        let straight = self.run_counted(upstream, upstream, "straight to the upstream").await?;
        let before = Cache::read(&metrics());
        let proxied = self.run_counted(proxy, upstream, "through forebay").await?;
        let cache = Cache::read(&metrics()).since(before);
        Ok(Report { stampede: self, straight, proxied, cache })
    }

    /// Different pages that are asked for in fact: not more than there are clients.
    fn pages(self) -> u64 {
        self.keys.clamp(1, self.clients.max(1)) as u64
    }

    async fn run_counted(
        self,
        target: SocketAddr,
        upstream: SocketAddr,
        title: &'static str,
    ) -> Result<Run, StampedeError> {
        let before = count(upstream).await.ok_or(StampedeError::NoCount(upstream))?;
        let answers = self.release(target, title).await;
        let after = count(upstream).await.ok_or(StampedeError::NoCount(upstream))?;
        let mut run =
            Run { requests: self.clients, upstream_fetches: after.saturating_sub(before), ..Run::default() };
        for answer in answers {
            match answer {
                Answer::Right(latency) => run.latencies.push(latency),
                Answer::Wrong => run.wrong += 1,
                Answer::Missing => run.errors += 1,
            }
        }
        run.latencies.sort_unstable();
        Ok(run)
    }

    /// Connects every client, then lets all of them ask at once.
    async fn release(self, target: SocketAddr, title: &'static str) -> Vec<Answer> {
        let deadline = Instant::now() + self.run_timeout;
        let progress = progress_bar(self.clients, title);
        let connections = self.connect(target, deadline).await;
        let mut answers = vec![Answer::Missing; self.clients - connections.len()];
        progress.inc(answers.len() as u64);

        let (gate, closed) = watch::channel(None);
        let mut asking = JoinSet::new();
        for (client, connection) in connections.into_iter().enumerate() {
            let mut gate = closed.clone();
            let number = client as u64 % self.pages();
            asking.spawn(async move {
                let Ok(Some(released)) = gate.wait_for(Option::is_some).await.map(|released| *released)
                else {
                    return Answer::Missing;
                };
                let deadline = deadline.min(released + self.request_timeout);
                let answer = timeout_at(deadline, ask(connection, target, number, released)).await;
                answer.unwrap_or(Answer::Missing)
            });
        }
        gate.send_replace(Some(Instant::now()));
        while let Some(answer) = asking.join_next().await {
            answers.push(answer.unwrap_or(Answer::Missing));
            progress.inc(1);
        }
        progress.finish_and_clear();
        answers
    }

    /// The connections that came about.
    async fn connect(self, target: SocketAddr, deadline: Instant) -> Vec<SendRequest<Empty<Bytes>>> {
        let places = Arc::new(Semaphore::new(CONNECTING_MAX));
        let mut connecting = JoinSet::new();
        for _ in 0..self.clients {
            let places = Arc::clone(&places);
            connecting.spawn(timeout_at(deadline, async move {
                let _place = places.acquire().await.ok()?;
                connect(target).await
            }));
        }
        let connected = connecting.join_all().await;
        connected.into_iter().filter_map(|connection| connection.ok().flatten()).collect()
    }
}

/// Connections being established at once: below the usual backlog of a listener, so that none is refused.
const CONNECTING_MAX: usize = 128;

/// The time the upstream has for saying its count.
const COUNT_TIMEOUT: Duration = Duration::from_secs(10);

/// How one request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// The whole right page, this long after the release.
    Right(Duration),
    /// Something else.
    Wrong,
    /// Nothing, or not all of it.
    Missing,
}

async fn connect(target: SocketAddr) -> Option<SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(target).await.ok()?;
    stream.set_nodelay(true).ok()?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    // It ends by itself when the sender is gone; a failure reaches the sender.
    drop(tokio::spawn(connection));
    Some(sender)
}

async fn get(
    mut connection: SendRequest<Empty<Bytes>>,
    target: SocketAddr,
    path: &str,
) -> Option<(StatusCode, Bytes)> {
    let request = Request::get(path).header(HOST, target.to_string()).body(Empty::new()).ok()?;
    let (head, body) = connection.send_request(request).await.ok()?.into_parts();
    Some((head.status, body.collect().await.ok()?.to_bytes()))
}

async fn ask(
    connection: SendRequest<Empty<Bytes>>,
    target: SocketAddr,
    number: u64,
    released: Instant,
) -> Answer {
    match get(connection, target, &format!("/page/{number}")).await {
        Some((StatusCode::OK, body)) if upstream::is_page(number, &body) => Answer::Right(released.elapsed()),
        Some(_) => Answer::Wrong,
        None => Answer::Missing,
    }
}

/// The upstream's own count of the requests it has had.
async fn count(upstream: SocketAddr) -> Option<u64> {
    let asked = async { get(connect(upstream).await?, upstream, "/counter").await };
    let (status, body) = timeout(COUNT_TIMEOUT, asked).await.ok()??;
    if status != StatusCode::OK {
        return None;
    }
    std::str::from_utf8(&body).ok()?.trim().parse().ok()
}

/// A bar on standard error, which draws nothing where that is not a terminal.
fn progress_bar(clients: usize, title: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:24} {bar:40} {pos}/{len} answers, {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::with_draw_target(Some(clients as u64), ProgressDrawTarget::stderr())
        .with_style(style)
        .with_message(title);
    if !bar.is_hidden() {
        // Time is seen to pass while the first answers are being waited for.
        bar.enable_steady_tick(Duration::from_millis(100));
    }
    bar
}

impl Cache {
    /// Reads the counters out of Prometheus's text format.
    fn read(metrics: &str) -> Self {
        Self {
            hits: family_sum(metrics, "forebay_cache_hits_total"),
            coalesced_waits: family_sum(metrics, "forebay_coalesced_waits_total"),
            duplicate_fetches: family_sum(metrics, "forebay_duplicate_fetches_total"),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            hits: self.hits.saturating_sub(before.hits),
            coalesced_waits: self.coalesced_waits.saturating_sub(before.coalesced_waits),
            duplicate_fetches: self.duplicate_fetches.saturating_sub(before.duplicate_fetches),
        }
    }
}

/// The sum of all series of a counter.
fn family_sum(metrics: &str, family: &str) -> u64 {
    metrics
        .lines()
        .filter(|line| line.strip_prefix(family).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

impl Run {
    /// The latency that this share of the right answers did not exceed (nearest rank); none without an answer.
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let rank = (self.latencies.len() * percent).div_ceil(100);
        self.latencies.get(rank.max(1) - 1).copied()
    }

    /// Whether every request got the whole right page.
    pub fn all_right(&self) -> bool {
        self.errors == 0 && self.wrong == 0 && self.latencies.len() == self.requests
    }
}

impl Report {
    /// Whether every answer of both runs was right, and forebay fetched each page once.
    pub fn all_right(&self) -> bool {
        self.straight.all_right()
            && self.proxied.all_right()
            && self.proxied.upstream_fetches == self.stampede.pages()
    }
}

impl fmt::Display for Report {
    /// A table for people.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let latency = |run: &Run, percent| {
            run.percentile(percent).map_or("-".into(), |latency| format!("{} ms", latency.as_millis()))
        };
        let (straight, proxied) = (&self.straight, &self.proxied);
        let rows: [(&str, String, String); 9] = [
            ("requests", straight.requests.to_string(), proxied.requests.to_string()),
            ("upstream fetches", straight.upstream_fetches.to_string(), proxied.upstream_fetches.to_string()),
            ("cache hits", "-".into(), self.cache.hits.to_string()),
            ("coalesced waits", "-".into(), self.cache.coalesced_waits.to_string()),
            ("duplicate fetches", "-".into(), self.cache.duplicate_fetches.to_string()),
            ("latency, median", latency(straight, 50), latency(proxied, 50)),
            ("latency, 99th percentile", latency(straight, 99), latency(proxied, 99)),
            ("errors", straight.errors.to_string(), proxied.errors.to_string()),
            ("wrong answers", straight.wrong.to_string(), proxied.wrong.to_string()),
        ];
        writeln!(formatter, "{:26}{:>14}{:>18}", "", "straight", "through forebay")?;
        for (name, straight, proxied) in rows {
            writeln!(formatter, "{name:26}{straight:>14}{proxied:>18}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::DemoUpstream;
    use std::net::Ipv4Addr;
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpSocket};

    const METRICS: &str = "\
# HELP forebay_cache_hits_total x
# TYPE forebay_cache_hits_total counter
forebay_cache_hits_total{route=\"a\"} 3
forebay_cache_hits_total{route=\"b c\"} 4
forebay_cache_hits_total_other{route=\"a\"} 90
forebay_coalesced_waits_total{result=\"shared\",route=\"a\"} 5
forebay_duplicate_fetches_total 6
";

    async fn demo() -> DemoUpstream {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        DemoUpstream::start(listener, Duration::from_millis(20)).unwrap()
    }

    /// A port that is taken, and at which nobody listens.
    fn unused() -> TcpSocket {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        socket
    }

    fn small() -> Stampede {
        Stampede { clients: 30, keys: 3, ..Stampede::default() }
    }

    #[tokio::test]
    async fn every_client_gets_its_page_and_the_upstream_counts_each() {
        let demo = demo().await;
        let report = small().run(demo.address(), demo.address(), || METRICS.into()).await.unwrap();
        for run in [&report.straight, &report.proxied] {
            assert!(run.all_right(), "{run:?}");
            assert_eq!(run.upstream_fetches, 30);
            assert!(run.percentile(50) >= Some(Duration::from_millis(20)));
        }
        assert_eq!(demo.requests(), 60);
        assert_eq!(report.cache, Cache::default(), "the counters did not move");
        assert!(!report.all_right(), "without a cache in between each page was fetched ten times");
        let table = report.to_string();
        assert!(table.contains("upstream fetches                      30                30\n"), "{table}");
    }

    #[test]
    fn a_report_is_right_only_if_every_answer_is_and_each_page_was_fetched_once() {
        let run = |upstream_fetches| Run {
            requests: 30,
            upstream_fetches,
            latencies: vec![Duration::from_millis(20); 30],
            ..Run::default()
        };
        let right = Report { stampede: small(), straight: run(30), proxied: run(3), cache: Cache::default() };
        assert!(right.all_right());
        let twice = Report { proxied: run(4), ..right.clone() };
        let wrong = Report { proxied: Run { wrong: 1, ..run(3) }, ..right.clone() };
        let lost = Report { straight: Run { errors: 1, ..run(30) }, ..right.clone() };
        let short = Report { proxied: Run { latencies: Vec::new(), ..run(3) }, ..right };
        for report in [twice, wrong, lost, short] {
            assert!(!report.all_right(), "{report:?}");
        }
    }

    #[test]
    fn fewer_clients_than_keys_ask_for_fewer_pages() {
        assert_eq!(Stampede { clients: 3, keys: 10, ..Stampede::default() }.pages(), 3);
        assert_eq!(Stampede { clients: 3, keys: 0, ..Stampede::default() }.pages(), 1);
    }

    #[tokio::test]
    async fn a_dead_proxy_is_reported_and_not_waited_for() {
        let demo = demo().await;
        let unused = unused();
        let address = unused.local_addr().unwrap();
        let report = small().run(address, demo.address(), String::new).await.unwrap();
        assert_eq!((report.proxied.errors, report.proxied.wrong), (30, 0));
        assert!(!report.all_right());
    }

    #[tokio::test]
    async fn a_proxy_that_never_answers_ends_at_the_time_limit() {
        let demo = demo().await;
        let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = silent.local_addr().unwrap();
        let holding = tokio::spawn(async move {
            let mut held = JoinSet::new();
            while let Ok((mut stream, _)) = silent.accept().await {
                held.spawn(async move { stream.read_to_end(&mut Vec::new()).await });
            }
        });
        let stampede = Stampede { request_timeout: Duration::from_millis(50), ..small() };
        let report = stampede.run(address, demo.address(), String::new).await.unwrap();
        assert_eq!(report.proxied.errors, 30);
        holding.abort();
    }

    #[tokio::test]
    async fn a_missing_upstream_is_an_error() {
        let unused = unused();
        let address = unused.local_addr().unwrap();
        let error = small().run(address, address, String::new).await.unwrap_err();
        assert!(error.to_string().contains(&address.to_string()));
    }

    #[test]
    fn counters_are_read_from_the_metrics() {
        let read = Cache::read(METRICS);
        assert_eq!(read, Cache { hits: 7, coalesced_waits: 5, duplicate_fetches: 6 });
        assert_eq!(read.since(Cache { hits: 1, ..Cache::default() }).hits, 6);
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let run = Run { latencies: (1..=100).map(Duration::from_millis).collect(), ..Run::default() };
        assert_eq!(run.percentile(50), Some(Duration::from_millis(50)));
        assert_eq!(run.percentile(99), Some(Duration::from_millis(99)));
        assert_eq!(Run::default().percentile(50), None);
    }
}
