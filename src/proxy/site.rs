//! What the configuration makes of the proxy: routes and upstreams, replaced as one when it is loaded again.

use super::cache_status::Told;
use super::route::Router;
use super::settings::Settings;
use crate::policy::forwarding::{self, Via};
use crate::telemetry::{
    BreakerNumbers, OriginNumbers, RouteMetrics, Telemetry, UpstreamMetrics, UpstreamNumbers,
};
use crate::upstream::{self, BreakerState, TlsError, Transport, Upstream};
use http::{HeaderMap, Response, header};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Routes and upstreams, as one configuration made them.
#[derive(Debug)]
pub struct Site {
    pub(super) settings: Settings,
    pub(super) router: Router,
    /// What stands for each route in cache keys and stamps: it depends on the route's name alone, so that what is stored
    /// stays reachable when routes are added or change places.
    pub(super) route_ids: Vec<u32>,
    pub(super) upstreams: Vec<Arc<Upstream>>,
    /// `None`: it does not name itself.
    pub(super) via: Option<Via>,
    /// Where each route is counted, and after the last one where requests are counted that have none.
    routes_counted: Vec<Arc<RouteMetrics>>,
    /// Where each upstream is counted.
    upstreams_counted: Vec<Arc<UpstreamMetrics>>,
    /// Over what upstreams are reached.
    transport: Transport,
    /// The table of a head that needs none.
    no_fields: Arc<HeaderMap>,
}

/// The certificates or keys for an upstream cannot be read or used.
#[derive(Debug, thiserror::Error)]
#[error("upstream {upstream:?}: certificates or keys cannot be used")]
pub struct UpstreamTlsError {
    /// The upstream's name.
    pub upstream: String,
    /// What is wrong with them.
    pub source: TlsError,
}

impl Site {
    /// A site of these routes and upstreams, which are counted here.
    ///
    /// # Errors
    /// [`UpstreamTlsError`] where the certificates for an upstream cannot be read or used.
    pub fn new(
        settings: Settings,
        upstreams: Vec<upstream::Settings>,
        telemetry: &Telemetry,
    ) -> Result<Arc<Self>, UpstreamTlsError> {
        Self::over(settings, upstreams, telemetry, &Transport::Tcp)
    }

    /// A site whose upstreams are reached over this transport.
    ///
    /// # Errors
    /// [`UpstreamTlsError`] where the certificates for an upstream cannot be read or used.
    pub fn over(
        settings: Settings,
        upstreams: Vec<upstream::Settings>,
        telemetry: &Telemetry,
        transport: &Transport,
    ) -> Result<Arc<Self>, UpstreamTlsError> {
        Self::after(&[], settings, upstreams, telemetry, transport.clone())
    }

    /// The site that is to replace this one. Upstreams that stay as they are keep their connections and what is known of
    /// their origins' health.
    ///
    /// # Errors
    /// [`UpstreamTlsError`] where the certificates for an upstream cannot be read or used.
    pub fn successor(
        &self,
        settings: Settings,
        upstreams: Vec<upstream::Settings>,
        telemetry: &Telemetry,
    ) -> Result<Arc<Self>, UpstreamTlsError> {
        Self::after(&self.upstreams, settings, upstreams, telemetry, self.transport.clone())
    }

    fn after(
        old: &[Arc<Upstream>],
        settings: Settings,
        upstreams: Vec<upstream::Settings>,
        telemetry: &Telemetry,
        transport: Transport,
    ) -> Result<Arc<Self>, UpstreamTlsError> {
        let after_namesake = |settings: upstream::Settings| {
            let old = old.iter().find(|old| old.settings().name == settings.name);
            let upstream = settings.name.clone();
            Upstream::after(old, settings, &transport).map_err(|source| UpstreamTlsError { upstream, source })
        };
        let upstreams = upstreams.into_iter().map(after_namesake).collect::<Result<Vec<_>, _>>()?;
        let routes_counted = settings.routes.iter().map(|route| telemetry.route_named(&route.name));
        let upstreams_counted =
            upstreams.iter().map(|upstream| telemetry.upstream_named(&upstream.settings().name));
        Ok(Arc::new(Self {
            router: Router::new(&settings.routes),
            route_ids: settings.routes.iter().map(|route| route_id(&route.name)).collect(),
            routes_counted: routes_counted.chain([Arc::clone(telemetry.unmatched())]).collect(),
            upstreams_counted: upstreams_counted.collect(),
            upstreams,
            via: Via::of(&settings.pseudonym).filter(|_| settings.forwarded.via),
            settings,
            transport,
            no_fields: Arc::default(),
        }))
    }

    /// Where the requests of a route are counted, or those that have none.
    pub(super) fn route_counted(&self, route: Option<usize>) -> &Arc<RouteMetrics> {
        &self.routes_counted[route.unwrap_or(self.settings.routes.len())]
    }

    /// The upstream that a route goes to.
    pub(super) fn upstream_of(&self, route: usize) -> &Upstream {
        &self.upstreams[self.settings.routes[route].upstream]
    }

    /// The name of the upstream that a route goes to.
    pub(super) fn upstream_name(&self, route: usize) -> &str {
        &self.upstream_of(route).settings().name
    }

    /// Where the requests to an upstream are counted.
    pub(super) fn upstream_counted(&self, upstream: usize) -> &Arc<UpstreamMetrics> {
        &self.upstreams_counted[upstream]
    }

    /// Ends what the upstreams do by themselves that this other site does not have.
    pub(super) fn retire_upstreams(&self, new: &Self) {
        let stays = |old: &&Arc<Upstream>| new.upstreams.iter().any(|new| Arc::ptr_eq(old, new));
        self.upstreams.iter().filter(|old| !stays(old)).for_each(|old| old.retire());
    }

    /// What the upstreams have counted.
    pub(super) fn upstream_numbers(&self) -> Vec<UpstreamNumbers> {
        let of = |upstream: &Arc<Upstream>| told(upstream.settings().name.clone(), upstream.numbers());
        self.upstreams.iter().map(of).collect()
    }

    /// The index of the route with this name.
    pub(super) fn route_named(&self, name: &str) -> Option<usize> {
        self.settings.routes.iter().position(|route| route.name == name)
    }

    /// Takes from a response what was meant for the connection, and adds what a proxy must (RFC 9110 §7.6).
    pub(super) fn received_from_upstream<B>(&self, response: &mut Response<B>) {
        let version = response.version();
        forwarding::remove_hop_by_hop(response.headers_mut());
        if let Some(via) = &self.via {
            response.headers_mut().append(header::VIA, via.received_in(version).clone());
        }
    }

    /// An empty table, for heads that are written out.
    pub(super) fn nothing(&self) -> Arc<HeaderMap> {
        Arc::clone(&self.no_fields)
    }

    /// How this site tells its clients of the cache.
    pub(super) fn told<'a>(&'a self, key: Option<&'a str>) -> Told<'a> {
        Told { pseudonym: &self.settings.pseudonym, x_cache: self.settings.x_cache, key }
    }
}

/// What an upstream has counted, as the metrics have it.
fn told(name: String, numbers: upstream::Numbers) -> UpstreamNumbers {
    let origin = |origin: upstream::OriginNumbers| OriginNumbers {
        authority: origin.authority,
        is_up: origin.is_up,
        ejections: origin.ejections,
        addresses: origin.addresses as u64,
    };
    let breaker = |breaker: upstream::BreakerNumbers| BreakerNumbers {
        states: BreakerState::ALL
            .into_iter()
            .zip(breaker.transitions)
            .map(|(state, transitions)| (state.as_str(), state == breaker.state, transitions))
            .collect(),
        probes: breaker.probes,
    };
    UpstreamNumbers {
        name,
        retries: numbers.retries,
        retries_refused: numbers.retries_refused,
        concurrency_limit: numbers.concurrency_limit as u64,
        queued: numbers.queued as u64,
        refused: vec![
            ("busy", numbers.refused_busy),
            ("gave_way", numbers.gave_way),
            ("open", numbers.refused_open),
            ("no_descriptor", numbers.unable),
        ],
        breaker: numbers.breaker.map(breaker),
        origins: numbers.origins.into_iter().map(origin).collect(),
    }
}

fn route_id(name: &str) -> u32 {
    // Names come from the configuration, not from clients, so the hash need not be keyed.
    let mut hasher = siphasher::sip::SipHasher13::new();
    name.hash(&mut hasher);
    (hasher.finish() >> 32) as u32
}
