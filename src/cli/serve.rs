//! `forebay serve`: run until a signal says stop.

use super::notify::{READY, RELOAD_REFUSED, RELOADED, STOPPING, main_process, notify, reloading};
use super::upgrade::upgrade;
use super::{Exit, ServeArguments, VERSION, explained, load};
use crate::app::App;
use crate::config::{self, Config};
use crate::demo::{self, upstream::DELAY};
use crate::reload::{Cause, Host, Stage};
use crate::server::Sockets;
use crate::telemetry::{self, Format, LogFilter};
use std::fmt;
use std::io::{self, Write};
use std::pin::pin;
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Serves until SIGTERM or SIGINT, then drains; a second signal ends at once. SIGHUP loads the configuration again; SIGUSR2
/// starts the program file anew, which takes the sockets over.
pub fn serve(
    arguments: &ServeArguments,
    environment: &[(String, String)],
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Exit> {
    let config = match load(arguments.config.as_deref(), environment, &arguments.overrides()) {
        Ok(config) => config,
        Err(error) => {
            writeln!(err, "{}", explained(&error))?;
            return Ok(Exit::Usage);
        }
    };
    // The logs have a thread of their own, and the environment must not be changed with threads about.
    let names = environment.iter().find(|(name, _)| name == "LISTEN_FDNAMES");
    let sockets = match Sockets::take(names.map(|(_, names)| names.as_str())) {
        Ok(sockets) => sockets,
        Err(error) => {
            writeln!(err, "forebay: {}", explained(&error))?;
            return Ok(Exit::Unavailable);
        }
    };
    let log = match telemetry::init(&config.telemetry) {
        Ok(log) => log,
        Err(error) => {
            writeln!(err, "forebay: {}", explained(&error))?;
            return Ok(Exit::Usage);
        }
    };
    for stranger in config::strangers(environment) {
        tracing::warn!("{stranger}");
    }
    let voice = Voice::of(config.telemetry.format);
    let host = Arc::new(Process {
        arguments: arguments.clone(),
        environment: environment.to_vec(),
        log_filter: log.filter(),
    });
    let exit = runtime()?.block_on(run(sockets, config, host, voice, environment, out, err));
    if log.lines_dropped() > 0 {
        let count = log.lines_dropped();
        voice.complain(&format!("{count} log lines were dropped, because their reader was too slow"), err)?;
    }
    exit
}

/// How what is no event is told.
#[derive(Debug, Clone, Copy)]
enum Voice {
    /// As text beside the log.
    Text,
    /// As lines of the log: whoever reads JSON reads nothing else, and containers mix both streams.
    Log,
}

impl Voice {
    fn of(format: Format) -> Self {
        match format {
            Format::Human => Self::Text,
            Format::Json => Self::Log,
        }
    }

    fn complain(self, text: &str, err: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Text => writeln!(err, "forebay: {text}"),
            Self::Log => {
                tracing::error!("{text}");
                Ok(())
            }
        }
    }

    fn greet(self, app: &App, scheme: &str, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Text => greet(app, scheme, out),
            Self::Log => {
                let (listen, admin) = (addresses(app, scheme), app.admin);
                let demo = app.demo.as_ref().map(|demo| tracing::field::display(demo.address()));
                tracing::info!(version = VERSION, listen, %admin, demo_upstream = demo, "serving");
                Ok(())
            }
        }
    }
}

/// The runtime of everything but connections: those have workers of their own.
pub(super) fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// This process, as a reload of its configuration needs it.
struct Process {
    arguments: ServeArguments,
    environment: Vec<(String, String)>,
    log_filter: LogFilter,
}

impl fmt::Debug for Process {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The environment holds secrets.
        formatter.debug_struct("Process").field("arguments", &self.arguments).finish_non_exhaustive()
    }
}

impl Host for Process {
    fn load(&self) -> Result<Config, config::Error> {
        load(self.arguments.config.as_deref(), &self.environment, &self.arguments.overrides())
    }

    fn filter_log(&self, filter: &str) {
        if let Err(error) = self.log_filter.replace(filter) {
            tracing::error!(%error, filter, "the log goes on as before");
        }
    }

    fn tell(&self, stage: Stage) {
        match stage {
            Stage::Begun => notify(&self.environment, &reloading()),
            Stage::InEffect => notify(&self.environment, RELOADED),
            Stage::Refused => notify(&self.environment, RELOAD_REFUSED),
        }
    }
}

async fn run(
    sockets: Sockets,
    config: Config,
    host: Arc<Process>,
    voice: Voice,
    environment: &[(String, String)],
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Exit> {
    match demo::raise_file_limit() {
        Ok(limit) => tracing::info!(limit, "open files"),
        Err(error) => tracing::warn!(%error, "cannot raise the limit on open files"),
    }
    let mut signals = Signals::new()?;
    let scheme = if config.server.tls.is_some() { "https" } else { "http" };
    let app = match App::start_on(sockets, config, host, DELAY).await {
        Ok(app) => app,
        Err(error) => {
            voice.complain(&explained(&error), err)?;
            return Ok(Exit::Unavailable);
        }
    };
    // Where nobody reads our output, nobody needs to be greeted; clients are served all the same.
    let _ = voice.greet(&app, scheme, out);
    if !app.has_predecessor {
        notify(environment, READY);
    }
    let end = signals.until_end(&app).await;
    let (name, cut_off) = tokio::select! {
        cut_off = drained(&app, end, environment) => {
            tracing::info!(cut_off, "stopped");
            return Ok(Exit::Success);
        }
        name = signals.stop() => (name, app.cut_off().await),
    };
    tracing::warn!(signal = name, cut_off, "stopped at once");
    Ok(Exit::Failure)
}

/// Ends the work in flight, and returns how many connections had to be cut off.
async fn drained(app: &App, end: End, environment: &[(String, String)]) -> usize {
    match end {
        End::Stopped(name) => {
            tracing::info!(signal = name, "draining");
            notify(environment, STOPPING);
            app.drain().await
        }
        End::Replaced(successor) => {
            tracing::info!(successor, "draining: a new process serves");
            notify(environment, &main_process(successor));
            app.make_way().await
        }
    }
}

/// Why this process ends.
enum End {
    /// By this signal.
    Stopped(&'static str),
    /// A process with this id serves in its place.
    Replaced(u32),
}

/// What the process listens to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    upgrade: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            upgrade: signal(SignalKind::user_defined2())?,
        })
    }

    /// Waits until this process is told to stop, or a successor serves.
    async fn until_end(&mut self, app: &App) -> End {
        loop {
            let mut upgraded = pin!(async {
                self.upgrade.recv().await;
                tracing::info!("upgrading");
                upgrade(app).await
            });
            let upgraded = loop {
                tokio::select! {
                    name = either(&mut self.terminate, &mut self.interrupt) => return End::Stopped(name),
                    _ = self.hangup.recv() => {
                        let reloader = Arc::clone(&app.reloader);
                        // What comes of it is logged and counted; signals are heard meanwhile.
                        tokio::spawn(async move { reloader.reload(Cause::Signal).await });
                    }
                    upgraded = &mut upgraded => break upgraded,
                }
            };
            match upgraded {
                Ok(successor) => return End::Replaced(successor),
                Err(error) => {
                    tracing::error!(error = explained(&error), "no new process serves; this one goes on");
                }
            }
        }
    }

    /// Waits for SIGTERM or SIGINT.
    async fn stop(&mut self) -> &'static str {
        either(&mut self.terminate, &mut self.interrupt).await
    }
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

fn addresses(app: &App, scheme: &str) -> String {
    let addresses: Vec<String> = app.data.iter().map(|address| format!("{scheme}://{address}")).collect();
    addresses.join(", ")
}

/// What a newcomer needs to see coalescing within a minute.
fn greet(app: &App, scheme: &str, out: &mut dyn Write) -> io::Result<()> {
    let admin = app.admin;
    writeln!(out, "forebay {VERSION} listens on {} (admin: http://{admin})", addresses(app, scheme))?;
    if let (Some(demo), Some(data)) = (&app.demo, app.data.first()) {
        writeln!(
            out,
            "\n\
            No upstream is configured, so an embedded demo upstream on http://{demo} stands behind it. It takes a\n\
            second for each page. In another terminal:\n\n  \
              seq 50 | xargs -P50 -I{{}} curl -s http://{data}/page/1     50 clients, one upstream request\n  \
              curl -si http://{data}/page/1                            a hit: see Age and Cache-Status\n  \
              curl -si http://{data}/uncacheable/1                     never stored, never shared\n  \
              curl -sN http://{data}/stream/1                          streamed while it arrives\n  \
              curl -si http://{data}/fail                              an error: shared with who waits, never stored\n  \
              curl -s http://{admin}/metrics | grep ^forebay_          what was counted\n\n\
            forebay demo      a stampede of a thousand clients, and what it came to\n\
            forebay --upstream http://127.0.0.1:3000      your own upstream; forebay --help tells the rest",
            demo = demo.address(),
        )?;
    }
    out.flush()
}
