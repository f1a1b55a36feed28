//! The configuration loaded again while the program runs: all of it takes effect, or none.
//!
//! Everything that can fail comes first and changes nothing. What is left then are assignments: requests, connections and
//! changes that arrive later meet what is new; those in flight end with what they began with.

use crate::admin::{self, Changes, Readiness, ReloadError, Reloaded};
use crate::certificates;
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::proxy::{Proxy, Site, UpstreamTlsError};
use crate::server::{self, Server};
use crate::telemetry::log::explained;
use crate::telemetry::{CertificateInUse, Telemetry};
use crate::upstream::TlsError;
use crate::warnings;
use crate::watch::{self, Looks, Watched};
use arc_swap::ArcSwap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::sync::watch::Sender;
use tokio_rustls::TlsAcceptor;

/// What a reload needs of the process around it.
pub trait Host: fmt::Debug + Send + Sync {
    /// Reads the configuration from its layers. It may block.
    fn load(&self) -> Result<Config, config::Error>;

    /// Lets this be logged from here on.
    fn filter_log(&self, filter: &str);

    /// Hears how far a reload is.
    fn tell(&self, stage: Stage);
}

/// How far a reload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It has begun.
    Begun,
    /// The new configuration is in effect.
    InEffect,
    /// The new configuration was refused; the one before it is in effect.
    Refused,
}

/// Why a configuration is loaded again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// SIGHUP.
    Signal,
    /// `POST /reload`.
    Request,
    /// A file of it has changed.
    File,
}

impl Cause {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::Request => "request",
            Self::File => "file",
        }
    }
}

/// What a configuration is put into effect upon.
#[derive(Debug)]
pub struct Running {
    /// The data plane.
    pub proxy: Arc<Proxy>,
    /// The data port.
    pub server: Arc<Server>,
    /// Who may change something through the admin port.
    pub changes: Arc<ArcSwap<Changes>>,
    /// What is counted.
    pub telemetry: Arc<Telemetry>,
    /// Whether clients should be sent here.
    pub ready: Arc<Readiness>,
    /// The embedded upstream, where there is one.
    pub demo: Option<SocketAddr>,
}

/// Loads the configuration again.
#[derive(Debug)]
pub struct Reloader {
    host: Arc<dyn Host>,
    running: Running,
    /// Guards the configuration in effect. Held, across awaits, for a whole reload, so that one follows the other; no
    /// request ever waits for it.
    config: Mutex<Arc<Config>>,
    watched: Sender<Watched>,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Wrong(#[from] config::Error),
    #[error("it names no upstream; the demo upstream stands in for one only at start")]
    NoUpstream,
    #[error("server.tls: certificate and key cannot be used")]
    ServerTls(#[source] TlsError),
    #[error(transparent)]
    UpstreamTls(#[from] UpstreamTlsError),
    #[error("admin.token_file: the token cannot be read")]
    Token(#[source] io::Error),
}

/// A configuration that can be put into effect.
struct Prepared {
    config: Config,
    restart_required: Vec<&'static str>,
    tls: Option<TlsAcceptor>,
    changes: Changes,
    site: Arc<Site>,
    certificates: Vec<CertificateInUse>,
    warnings: Vec<String>,
}

impl Reloader {
    /// One for what runs under this configuration.
    pub fn new(host: Arc<dyn Host>, running: Running, config: Config) -> Arc<Self> {
        let watched = Watched { settings: config.watch, looks: Looks::at(config.files()) };
        let (watched, _) = tokio::sync::watch::channel(watched);
        Arc::new(Self { host, running, config: Mutex::new(Arc::new(config)), watched })
    }

    /// Loads the configuration again. Once begun, it goes on where the returned future is dropped.
    ///
    /// # Errors
    /// [`ReloadError`]; nothing has changed then.
    pub async fn reload(self: &Arc<Self>, cause: Cause) -> Result<Reloaded, ReloadError> {
        let reloader = Arc::clone(self);
        let reload = tokio::spawn(async move { reloader.reload_in_turn(cause).await });
        reload.await.unwrap_or_else(|_| {
            self.running.telemetry.panicked("reload");
            let detail = "a defect of forebay".to_owned();
            self.running.telemetry.configuration_refused(cause.as_str(), &detail);
            self.host.tell(Stage::Refused);
            Err(ReloadError::Refused { detail, mistakes: Vec::new() })
        })
    }

    /// Reloads whenever a file of the configuration changes, as long as the configuration says so.
    pub async fn watch(self: Arc<Self>) {
        let reload = || {
            let reloader = Arc::clone(&self);
            // What comes of it is logged and counted.
            async move { drop(reloader.reload(Cause::File).await) }
        };
        watch::watch(self.watched.subscribe(), reload).await;
    }

    async fn reload_in_turn(&self, cause: Cause) -> Result<Reloaded, ReloadError> {
        let mut config = self.config.lock().await;
        if !self.running.ready.is_ready() {
            return Err(ReloadError::NotReady);
        }
        self.host.tell(Stage::Begun);
        let (host, current) = (Arc::clone(&self.host), Arc::clone(&config));
        let (site, telemetry) = (self.running.proxy.site(), Arc::clone(&self.running.telemetry));
        let demo = self.running.demo;
        let prepare = move || {
            let read_before = Looks::at(current.files());
            let (prepared, files) = prepare(&*host, &current, demo, &site, &telemetry);
            (prepared, read_before.before(Looks::at(files.clone())).of(&files))
        };
        let prepared = tokio::task::spawn_blocking(prepare).await;
        let (prepared, looks) = prepared.expect("whoever has asked for a reload is told of a panic");
        let (reloaded, stage) = match prepared {
            Ok(prepared) => {
                *config = Arc::new(prepared.config.clone());
                (Ok(self.put_into_effect(prepared, cause)), Stage::InEffect)
            }
            Err(refusal) => {
                self.running.telemetry.configuration_refused(cause.as_str(), &explained(&refusal));
                (Err(refusal.into()), Stage::Refused)
            }
        };
        self.watched.send_replace(Watched { settings: config.watch, looks });
        self.host.tell(stage);
        reloaded
    }

    fn put_into_effect(&self, prepared: Prepared, cause: Cause) -> Reloaded {
        let Prepared { config, restart_required, tls, changes, site, certificates, warnings } = prepared;
        let Running { proxy, server, telemetry, .. } = &self.running;
        self.host.filter_log(&config.telemetry.filter);
        telemetry.log_access(config.telemetry.access_log);
        proxy.replace_site(&site);
        server.reconfigure(tls, &config.server);
        self.running.changes.store(Arc::new(changes));
        telemetry.configured(Clock::System.now(), cause.as_str(), &restart_required);
        telemetry.certified(&certificates);
        warnings::log(&warnings);
        Reloaded { restart_required, warnings }
    }
}

/// Does all that can fail. It is returned, too, which files belong to the answer.
fn prepare(
    host: &dyn Host,
    current: &Config,
    demo: Option<SocketAddr>,
    site: &Site,
    telemetry: &Telemetry,
) -> (Result<Prepared, Refusal>, Vec<PathBuf>) {
    let mut config = match host.load() {
        Ok(config) => config,
        Err(error) => {
            // A file that it names and that is not there may yet come.
            let files = current.files().into_iter().chain(error.files()).collect();
            return (Err(error.into()), files);
        }
    };
    let files = config.files();
    config = match demo {
        // An empty file is one that is being written, or a mistake; it must not end in a demonstration.
        None if config.upstreams.is_empty() => return (Err(Refusal::NoUpstream), files),
        Some(address) if config.upstreams.is_empty() => config.with_demo(address),
        None | Some(_) => config,
    };
    let restart_required = config.keep_fixed(current);
    let usable = || {
        let tls = config.server.tls.as_ref().map(|(chain, key)| server::acceptor(chain, key)).transpose();
        let tls = tls.map_err(Refusal::ServerTls)?;
        let changes = Changes::of(&config.admin).map_err(Refusal::Token)?;
        let site = site.successor(config.proxy.clone(), config.upstreams.clone(), telemetry);
        Ok((tls, changes, site?))
    };
    match usable() {
        Ok((tls, changes, site)) => {
            let certificates = certificates::in_use(&config);
            let warnings = warnings::of(&config, Clock::System.now());
            (Ok(Prepared { config, restart_required, tls, changes, site, certificates, warnings }), files)
        }
        // The one that stays in effect has files, too.
        Err(refusal) => (Err(refusal), current.files().into_iter().chain(files).collect()),
    }
}

impl From<Refusal> for ReloadError {
    fn from(refusal: Refusal) -> Self {
        let detail = explained(&refusal);
        let one =
            |key: &str| vec![admin::Mistake { place: None, key: key.to_owned(), wrong: detail.clone() }];
        let mistakes = match &refusal {
            Refusal::Wrong(error) => error.mistakes().iter().map(mistake).collect(),
            Refusal::NoUpstream => one("upstream"),
            Refusal::ServerTls(_) => one("server.tls"),
            Refusal::UpstreamTls(_) => one("upstream.tls"),
            Refusal::Token(_) => one("admin.token_file"),
        };
        Self::Refused { detail, mistakes }
    }
}

fn mistake(mistake: &config::Mistake) -> admin::Mistake {
    let place = match &mistake.place {
        config::Place::Nowhere => None,
        place => Some(place.to_string()),
    };
    admin::Mistake { place, key: mistake.key.clone(), wrong: mistake.wrong.to_string() }
}
