//! The set-up of `tracing`.

use super::lines::AccessLines;
use super::settings::{Format, Settings};
use std::fmt;
use std::io::{self, BufWriter, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use tracing::Subscriber;
use tracing::subscriber::SetGlobalDefaultError;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::{FormatEvent, FormatFields, MakeWriter, SubscriberBuilder};
use tracing_subscriber::{Registry, reload};

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The filter is not in the syntax of `EnvFilter`.
    #[error("the log filter {filter:?} is malformed")]
    Filter {
        /// The filter as configured.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// Logging has been set up before: there is one subscriber for each process.
    #[error("logging has already been set up")]
    Twice(#[from] SetGlobalDefaultError),
    /// There is no log any more.
    #[error("logging has ended")]
    Ended(#[from] reload::Error),
}

/// Log lines that may wait to be written. Where the reader of the log is slower than that, lines are dropped.
const LINES_WAITING_MAX: usize = 65_536;

/// How many bytes of lines are written at once, if so many wait.
const WRITTEN_BYTES: usize = 32 << 10;

/// How long the end of the process waits for a reader of the log that has fallen behind.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// How often it looks whether the reader has caught up.
const END_PAUSE: Duration = Duration::from_millis(5);

/// Writes out, when it is dropped, what still waits to be written.
#[must_use = "without it the last lines are lost"]
#[derive(Debug)]
pub struct LogGuard {
    lines: Arc<Lines>,
    dropped: ErrorCounter,
    filter: LogFilter,
    /// It waits for a second at most, and is dropped last.
    _writer: WorkerGuard,
}

/// How many lines there have been.
#[derive(Debug, Default)]
struct Lines {
    made: AtomicUsize,
    written: AtomicUsize,
}

/// Counts the lines that are handed to the thread that writes.
struct Made {
    writer: NonBlocking,
    lines: Arc<Lines>,
}

impl<'w> MakeWriter<'w> for Made {
    type Writer = NonBlocking;

    fn make_writer(&'w self) -> NonBlocking {
        self.lines.made.fetch_add(1, Ordering::Relaxed);
        self.writer.make_writer()
    }
}

/// Counts those that it has written, all that wait at once.
struct Written<W: io::Write> {
    writer: BufWriter<W>,
    gathered: usize,
    lines: Arc<Lines>,
}

impl<W: io::Write> Written<W> {
    fn new(writer: W, lines: &Arc<Lines>) -> Self {
        let writer = BufWriter::with_capacity(WRITTEN_BYTES, writer);
        Self { writer, gathered: 0, lines: Arc::clone(lines) }
    }

    /// Nothing more can be done for those that have been gathered.
    fn count(&mut self) {
        self.lines.written.fetch_add(std::mem::take(&mut self.gathered), Ordering::Relaxed);
    }
}

impl<W: io::Write> io::Write for Written<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        self.gathered += 1;
        self.writer.write_all(line).inspect_err(|_| self.count())
    }

    /// No more lines wait.
    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.writer.flush();
        self.count();
        flushed
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        let until = Instant::now() + END_TIMEOUT;
        let done = || self.lines.written.load(Ordering::Relaxed) + self.lines_dropped();
        while done() < self.lines.made.load(Ordering::Relaxed) && Instant::now() < until {
            std::thread::park_timeout(END_PAUSE);
        }
    }
}

/// The filter of the log, which may be replaced.
#[derive(Clone)]
pub struct LogFilter(Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>);

impl LogFilter {
    /// Lets this be logged from here on, in the syntax of `EnvFilter`.
    pub fn replace(&self, filter: &str) -> Result<(), InitError> {
        Ok(self.0(parse_filter(filter)?)?)
    }
}

impl fmt::Debug for LogFilter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("LogFilter(…)")
    }
}

impl LogGuard {
    /// Lines that were dropped because the reader of the log was too slow.
    pub fn lines_dropped(&self) -> usize {
        self.dropped.dropped_lines()
    }

    /// What is logged.
    pub fn filter(&self) -> LogFilter {
        self.filter.clone()
    }
}

/// Sends logs to standard error, in the shape and amount that the settings say. Standard output stays free for
/// what commands print. Colours appear on a terminal only, and not where `NO_COLOR` is set.
///
/// A thread of its own does the writing: a slow reader of the log must not become a slow proxy.
pub fn init(settings: &Settings) -> Result<LogGuard, InitError> {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let lines = Arc::<Lines>::default();
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(LINES_WAITING_MAX)
        .lossy(true)
        .thread_name("forebay-log")
        .finish(Written::new(std::io::stderr(), &lines));
    let dropped = writer.error_counter();
    let made = Made { writer, lines: Arc::clone(&lines) };
    let (subscriber, filter) = subscriber(settings, colour, made)?;
    tracing::subscriber::set_global_default(subscriber)?;
    Ok(LogGuard { lines, dropped, filter, _writer: guard })
}

/// Whether a log filter is well formed, for `check` and for error messages that name the configuration key.
pub fn check_filter(filter: &str) -> Result<(), InitError> {
    parse_filter(filter).map(drop)
}

fn parse_filter(filter: &str) -> Result<EnvFilter, InitError> {
    EnvFilter::builder()
        .parse(filter)
        .map_err(|source| InitError::Filter { filter: filter.to_owned(), source })
}

fn subscriber<W>(
    settings: &Settings,
    colour: bool,
    writer: W,
) -> Result<(Box<dyn Subscriber + Send + Sync>, LogFilter), InitError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .with_env_filter(parse_filter(&settings.filter)?)
        .with_ansi(colour)
        .with_writer(writer);
    let format = settings.format;
    Ok(match format {
        Format::Human if colour => reloadable(builder.compact()),
        Format::Human => {
            reloadable(builder.compact().map_event_format(|others| AccessLines { format, others }))
        }
        Format::Json => {
            let builder = builder.json().flatten_event(true).with_current_span(false);
            reloadable(builder.map_event_format(|others| AccessLines { format, others }))
        }
    })
}

/// What a builder builds, with a filter that may be replaced.
fn reloadable<N, E, W>(
    builder: SubscriberBuilder<N, E, EnvFilter, W>,
) -> (Box<dyn Subscriber + Send + Sync>, LogFilter)
where
    N: for<'w> FormatFields<'w> + Send + Sync + 'static,
    E: FormatEvent<Registry, N> + Send + Sync + 'static,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = builder.with_filter_reloading();
    let filter = builder.reload_handle();
    (Box::new(builder.finish()), LogFilter(Arc::new(move |new| filter.reload(new))))
}

/// An error with its causes, in one line each where they have more.
pub fn explained(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    // A cause that its effect has already told is not told twice.
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(cause.trim()) { text } else { format!("{text}: {}", cause.trim()) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Answered, Forward, Outcome};
    use crate::telemetry::{AccessRecord, BodyEnd, RequestLine, Telemetry};
    use http::{StatusCode, Version};
    use parking_lot::Mutex;
    use std::sync::Arc;
    use std::time::Duration;
    use tracing_subscriber::fmt::writer::BoxMakeWriter;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn request(target: &str) -> RequestLine<'_> {
        RequestLine {
            method: "GET",
            target,
            host: "example.com",
            protocol: Version::HTTP_11,
            client: "192.0.2.1:4711".parse().unwrap(),
        }
    }

    /// What this subscriber writes of what is logged meanwhile.
    fn written<S: Subscriber + Send + Sync + 'static>(
        subscriber: impl FnOnce(BoxMakeWriter) -> S,
        logging: impl FnOnce(),
    ) -> String {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = subscriber(BoxMakeWriter::new(move || writer.clone()));
        tracing::subscriber::with_default(subscriber, logging);
        let bytes = written.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn log(access_log: bool, record: &AccessRecord<'_>) {
        let telemetry = Telemetry::new(access_log);
        telemetry.finished(&telemetry.route_named("site"), record);
    }

    /// What an access-log line looks like under these settings.
    fn access_line(settings: &Settings, target: &str) -> String {
        let outcome = Outcome::of(Answered::Miss).forwarded(Forward::UriMiss).because("no-freshness");
        let record = AccessRecord {
            request: Some(request(target)),
            status: StatusCode::OK,
            outcome: &outcome,
            body_bytes: 1234,
            duration: Duration::from_millis(250),
            body_end: BodyEnd::Complete,
        };
        let ours = |writer| subscriber(settings, false, writer).unwrap().0;
        written(ours, || log(settings.access_log, &record))
    }

    #[test]
    fn the_access_log_is_to_the_letter_what_the_library_would_write() {
        let outcomes = [
            Outcome::of(Answered::Miss).forwarded(Forward::UriMiss).because("no-freshness"),
            Outcome { ttl_seconds: Some(-7), ..Outcome::of(Answered::Hit) },
            Outcome {
                forward_status: Some(StatusCode::OK),
                stored: true,
                ..Outcome::of(Answered::Collapsed)
            },
        ];
        let targets = ["/a?b=c", "/", "", "/\"\\'~ \n\u{1b}[31m\u{7f}", "/\u{e4}\u{200b}\u{1f980}"];
        let clients = ["192.0.2.1:80", "[2001:db8::1]:65535", "[::ffff:192.0.2.1]:1"];
        let durations = [0, 999, 1_000, 1_499, 1_500, 250_000_000, 1_234_567_890, u64::MAX];
        let logging = || {
            for (number, duration) in durations.into_iter().enumerate() {
                for target in targets {
                    let client = clients[number % clients.len()].parse().unwrap();
                    let record = AccessRecord {
                        request: Some(RequestLine { client, ..request(target) }),
                        status: StatusCode::NOT_FOUND,
                        outcome: &outcomes[number % outcomes.len()],
                        body_bytes: duration,
                        duration: Duration::from_nanos(duration),
                        body_end: BodyEnd::ClientLeft,
                    };
                    log(true, &record);
                }
            }
            tracing::warn!(number = 1, text = "a\"b", "something else");
        };
        for format in [Format::Human, Format::Json] {
            let ours =
                |writer| subscriber(&Settings { format, ..Settings::default() }, false, writer).unwrap().0;
            let plain = |writer| tracing_subscriber::fmt().with_ansi(false).with_writer(writer);
            let theirs = || match format {
                Format::Human => written(|writer| plain(writer).compact().finish(), logging),
                Format::Json => written(
                    |writer| plain(writer).json().flatten_event(true).with_current_span(false).finish(),
                    logging,
                ),
            };
            let start = if format == Format::Json { "{\"timestamp\":\"".len() } else { 0 };
            let times_and_rests = |lines: String| -> (Vec<String>, Vec<String>) {
                let cut = |line: &str| {
                    let (time, rest) = line[start..].split_at("2026-01-31T12:00:00.123456Z".len());
                    (time.to_owned(), rest.to_owned())
                };
                lines.lines().map(cut).unzip()
            };
            let [before, ours, after] = [theirs(), written(ours, logging), theirs()].map(times_and_rests);
            assert_eq!(ours.1.len(), durations.len() * targets.len() + 1);
            assert_eq!(ours.1, before.1);
            let times = [before.0, ours.0, after.0].concat();
            assert!(times.is_sorted() && times.iter().all(|time| time.ends_with('Z')), "{times:?}");
        }
    }

    #[test]
    fn a_json_line_carries_every_field() {
        let line = access_line(&Settings { format: Format::Json, ..Settings::default() }, "/a?b=c");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["target"], "forebay::access");
        for (name, expected) in [
            ("method", serde_json::json!("GET")),
            ("host", "example.com".into()),
            ("request_target", "/a?b=c".into()),
            ("status", 200.into()),
            ("outcome", "miss".into()),
            ("route", "site".into()),
            ("bytes", 1234.into()),
            ("duration_ms", 250.0.into()),
            ("body", "complete".into()),
            ("client", "192.0.2.1:4711".into()),
            ("protocol", "HTTP/1.1".into()),
            ("forward", "uri-miss".into()),
            ("stored", false.into()),
            ("collapsed", false.into()),
            ("detail", "no-freshness".into()),
        ] {
            assert_eq!(value[name], expected, "{name} in {line}");
        }
        assert!(value.get("forward_status").is_none(), "{line}");
    }

    #[test]
    fn a_client_cannot_forge_a_line() {
        for format in [Format::Human, Format::Json] {
            let line =
                access_line(&Settings { format, ..Settings::default() }, "/\n\u{1b}[31m2026 INFO forged");
            assert_eq!(line.lines().count(), 1, "{line}");
            assert!(!line.contains('\u{1b}'), "{line}");
        }
    }

    #[test]
    fn the_access_log_can_be_silenced() {
        assert!(access_line(&Settings::default(), "/").contains("forebay::access"));
        let by_filter = Settings { filter: "info,forebay::access=off".into(), ..Settings::default() };
        assert_eq!(access_line(&by_filter, "/"), "");
        let by_setting = Settings { access_log: false, ..Settings::default() };
        assert_eq!(access_line(&by_setting, "/"), "");
    }

    #[test]
    fn a_malformed_filter_is_refused() {
        assert!(check_filter("info,forebay::proxy=debug").is_ok());
        let error = check_filter("forebay=loud").unwrap_err();
        assert_eq!(error.to_string(), "the log filter \"forebay=loud\" is malformed");
    }
}
