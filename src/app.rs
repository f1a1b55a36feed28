//! A configuration brought to life: listeners, proxy, admin port, housekeeping, and an orderly end.

use crate::admin::{self, Admin, Changes, Names, Readiness, Reload};
use crate::certificates;
use crate::clock::Clock;
use crate::config::Config;
use crate::demo::DemoUpstream;
use crate::proxy::{Proxy, Site, UpstreamTlsError};
use crate::reload::{Cause, Host, Reloader, Running};
use crate::server::{self, ListenError, Port, Server, Sockets, Workers};
use crate::telemetry::Telemetry;
use crate::telemetry::labels::AT_START;
use crate::upstream::TlsError;
use crate::warnings;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How often what purges have made void is cleared away.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// A running forebay.
#[derive(Debug)]
pub struct App {
    /// Where clients connect.
    pub data: Vec<SocketAddr>,
    /// Where operators connect.
    pub admin: SocketAddr,
    /// The metrics.
    pub telemetry: Arc<Telemetry>,
    /// The data plane.
    pub proxy: Arc<Proxy>,
    /// The embedded upstream, where none is configured.
    pub demo: Option<DemoUpstream>,
    /// Loads the configuration again.
    pub reloader: Arc<Reloader>,
    /// Whether another process waited for this one to serve, and makes way for it.
    pub has_predecessor: bool,
    ready: Arc<Readiness>,
    server: Arc<Server>,
    /// Guards the sockets that are listened on, until they are closed. Held for a few system calls, never across an await.
    sockets: Mutex<Sockets>,
    admin_closing: CancellationToken,
    /// The admin port.
    operating: TaskTracker,
}

/// Why a configuration that is right in itself could not be brought to life.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Certificate or key of the data port cannot be used.
    #[error("server.tls: certificate and key cannot be used")]
    Tls(#[from] TlsError),
    /// Those for an upstream cannot be used.
    #[error(transparent)]
    UpstreamTls(#[from] UpstreamTlsError),
    /// The admin token cannot be read.
    #[error("the admin token cannot be read")]
    Token(#[source] io::Error),
    /// The worker threads could not be started.
    #[error("the worker threads cannot be started")]
    Workers(#[source] io::Error),
    /// The demo upstream could not be started.
    #[error("the demo upstream cannot be started")]
    Demo(#[source] io::Error),
}

impl App {
    /// Starts everything. Where the configuration names no upstream, an embedded one takes `demo_delay` for each page. The
    /// host is asked for the configuration when it is to be loaded again.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub async fn start(
        config: Config,
        host: Arc<dyn Host>,
        demo_delay: Duration,
    ) -> Result<Self, StartError> {
        Self::start_on(Sockets::default(), config, host, demo_delay).await
    }

    /// Reads what a start with this configuration would read beside it, certificates, keys and the token. Within a runtime; what
    /// is begun in it ends with it.
    ///
    /// # Errors
    /// [`StartError`]: why the start would fail.
    pub fn rehearse(config: &Config) -> Result<(), StartError> {
        if let Some((chain, key)) = &config.server.tls {
            server::acceptor(chain, key)?;
        }
        Site::new(config.proxy.clone(), config.upstreams.clone(), &Telemetry::new(false))?;
        Changes::of(&config.admin).map_err(StartError::Token).map(drop)
    }

    /// Starts everything on sockets that were passed, where there are such, and tells a predecessor when it serves.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub async fn start_on(
        mut sockets: Sockets,
        config: Config,
        host: Arc<dyn Host>,
        demo_delay: Duration,
    ) -> Result<Self, StartError> {
        let (config, demo) = with_upstream(config, demo_delay).await?;
        let telemetry = Telemetry::new(config.telemetry.access_log);
        let tls = match &config.server.tls {
            Some((chain, key)) => Some(server::acceptor(chain, key)?),
            None => None,
        };
        telemetry.certified(&certificates::in_use(&config));
        warnings::log(&warnings::of(&config, Clock::System.now()));
        let site = Site::new(config.proxy.clone(), config.upstreams.clone(), &telemetry)?;
        let proxy = Proxy::new(site, &config.store, Arc::clone(&telemetry), Clock::System);
        let listeners = sockets.listen(Port::Data, &config.server.listen)?;
        let admin_listeners = sockets.listen(Port::Admin, &[config.admin.listen])?;
        let data = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let admin = admin_listeners.first().and_then(|listener| listener.local_addr().ok());
        let admin = admin.unwrap_or(config.admin.listen);
        let ready = Arc::new(Readiness::default());
        let changes = Changes::of(&config.admin).map_err(StartError::Token)?;
        let names = Names::of(&config.admin);
        let changes = Arc::new(ArcSwap::from_pointee(changes));
        let workers = Workers::start(config.server.threads).map_err(StartError::Workers)?;
        let server = Arc::new(Server::start(listeners, workers, tls, &config.server, &proxy, &telemetry));
        let running = Running {
            proxy: Arc::clone(&proxy),
            server: Arc::clone(&server),
            changes: Arc::clone(&changes),
            telemetry: Arc::clone(&telemetry),
            ready: Arc::clone(&ready),
            demo: demo.as_ref().map(DemoUpstream::address),
        };
        let reloader = Reloader::new(host, running, config);
        let router = admin::router(Admin {
            proxy: Arc::clone(&proxy),
            telemetry: Arc::clone(&telemetry),
            ready: Arc::clone(&ready),
            changes,
            names,
            reload: on_request(&reloader),
        });
        tokio::spawn(Arc::clone(&reloader).watch());
        tokio::spawn(sweep(Arc::clone(&proxy)));
        telemetry.configured(Clock::System.now(), AT_START, &[]);
        ready.set_ready();
        // Only now: a predecessor, which has been ready all the time, answers on the same socket.
        let (admin_closing, operating) = (CancellationToken::new(), TaskTracker::new());
        for listener in admin_listeners {
            operating.spawn(operate(listener, router.clone(), admin_closing.clone()));
        }
        Ok(Self {
            data,
            admin,
            telemetry,
            proxy,
            demo,
            reloader,
            has_predecessor: sockets.ready(),
            ready,
            server,
            sockets: Mutex::new(sockets),
            admin_closing,
            operating,
        })
    }

    /// Not ready at once, then (after the configured pause) no new connections, then an end for each connection after what
    /// it is doing. Returns how many connections had to be cut off.
    pub async fn drain(&self) -> usize {
        self.ready.set_draining();
        tokio::time::sleep(self.server.settings().drain_delay).await;
        self.end().await
    }

    /// A successor serves on the same sockets: they are left to it at once, the admin port too, and each connection ends
    /// after what it is doing. Returns how many connections had to be cut off.
    pub async fn make_way(&self) -> usize {
        self.admin_closing.cancel();
        self.operating.close();
        tokio::join!(self.end(), self.operating.wait()).0
    }

    /// Ends whatever is under way at once, and returns how many connections that were, when all of it has been told.
    pub async fn cut_off(&self) -> usize {
        let (connections, tunnels) = tokio::join!(self.server.cut_off(), self.proxy.cut_off());
        connections + tunnels
    }

    /// What a successor needs to take over: see [`Sockets::pass_on`].
    ///
    /// # Errors
    /// What the operating system says.
    pub fn pass_on(&self) -> io::Result<(UnixStream, Vec<(&'static str, OwnedFd)>)> {
        self.sockets.lock().pass_on()
    }

    /// How long a successor may take until it serves.
    pub fn upgrade_timeout(&self) -> Duration {
        self.server.settings().upgrade_timeout
    }

    async fn end(&self) -> usize {
        drop(std::mem::take(&mut *self.sockets.lock()));
        let tunnels = self.proxy.drain(self.server.settings().drain_timeout);
        let (connections, tunnels) = tokio::join!(self.server.drain(), tunnels);
        connections + tunnels
    }
}

async fn with_upstream(
    config: Config,
    delay: Duration,
) -> Result<(Config, Option<DemoUpstream>), StartError> {
    if !config.upstreams.is_empty() {
        return Ok((config, None));
    }
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(StartError::Demo)?;
    let demo = DemoUpstream::start(listener, delay).map_err(StartError::Demo)?;
    Ok((config.with_demo(demo.address()), Some(demo)))
}

/// Serves the admin port. It stays open to the end, so that a drain can be watched, unless a successor has it.
async fn operate(listener: TcpListener, router: axum::Router, closing: CancellationToken) {
    if let Err(error) = admin::serve(listener, router, closing.cancelled_owned()).await {
        tracing::error!(%error, "the admin port failed");
    }
}

/// What `POST /reload` does.
fn on_request(reloader: &Arc<Reloader>) -> Reload {
    let reloader = Arc::clone(reloader);
    Reload::new(move || {
        let reloader = Arc::clone(&reloader);
        async move { reloader.reload(Cause::Request).await }
    })
}

async fn sweep(proxy: Arc<Proxy>) {
    let mut interval = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        interval.tick().await;
        proxy.sweep().await;
    }
}
