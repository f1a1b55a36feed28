//! A configuration brought to life: listeners, proxy, admin port, housekeeping, and an orderly end.

use crate::admin::{self, Admin, Changes, Names, Readiness, Reload};
use crate::clock::Clock;
use crate::config::Config;
use crate::demo::DemoUpstream;
use crate::proxy::{Proxy, Site, UpstreamTlsError};
use crate::reload::{Cause, Host, Reloader, Running};
use crate::server::{self, Server};
use crate::telemetry::Telemetry;
use crate::telemetry::labels::AT_START;
use crate::upstream::TlsError;
use arc_swap::ArcSwap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

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
    ready: Arc<Readiness>,
    server: Arc<Server>,
}

/// Why a configuration that is right in itself could not be brought to life.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// Certificate or key of the data port cannot be used.
    #[error("server.tls: certificate and key cannot be used")]
    Tls(#[from] TlsError),
    /// Those for an upstream cannot be used.
    #[error(transparent)]
    UpstreamTls(#[from] UpstreamTlsError),
    /// The admin token cannot be read.
    #[error("the admin token cannot be read")]
    Token(#[source] io::Error),
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
        let (config, demo) = with_upstream(config, demo_delay).await?;
        let telemetry = Telemetry::new(config.telemetry.access_log);
        let tls = match &config.server.tls {
            Some((chain, key)) => Some(server::acceptor(chain, key)?),
            None => None,
        };
        let site = Site::new(config.proxy.clone(), config.upstreams.clone(), &telemetry)?;
        let proxy = Proxy::new(site, &config.store, Arc::clone(&telemetry), Clock::System);
        let listeners =
            config.server.listen.iter().map(|address| bind(*address)).collect::<Result<Vec<_>, _>>()?;
        let admin_listener = bind(config.admin.listen)?;
        let data = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let admin = admin_listener.local_addr().unwrap_or(config.admin.listen);
        let ready = Arc::new(Readiness::default());
        let changes = Changes::of(&config.admin).map_err(StartError::Token)?;
        let names = Names::of(&config.admin);
        if matches!(changes, Changes::Closed) {
            tracing::warn!(%admin, "the admin port can be reached from outside and has no token, so purges are refused");
        }
        let changes = Arc::new(ArcSwap::from_pointee(changes));
        let server = Arc::new(Server::start(listeners, tls, &config.server, &proxy, &telemetry));
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
        tokio::spawn(async move {
            // The admin port stays open to the end, so that a drain can be watched.
            if let Err(error) = admin::serve(admin_listener, router, std::future::pending()).await {
                tracing::error!(%error, "the admin port failed");
            }
        });
        tokio::spawn(Arc::clone(&reloader).watch());
        tokio::spawn(sweep(Arc::clone(&proxy)));
        telemetry.configured(Clock::System.now(), AT_START, &[]);
        ready.set_ready();
        Ok(Self { data, admin, telemetry, proxy, demo, reloader, ready, server })
    }

    /// Not ready at once, then (after the configured pause) no new connections, then an end for each connection after what
    /// it is doing. Returns how many connections had to be cut off.
    pub async fn drain(&self) -> usize {
        self.ready.set_draining();
        let settings = self.server.settings();
        tokio::time::sleep(settings.drain_delay).await;
        let tunnels = self.proxy.drain(settings.drain_timeout);
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

fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    server::bind(address).map_err(|source| StartError::Listen { address, source })
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
