//! The admin port: metrics, health, purge, explain, reload.
//!
//! | file | what happens there |
//! |---|---|
//! | `guard` | who may change something, by what names it may be called, and what no browser may send |
//! | `health` | `/livez`, `/readyz`, and the latch behind them |
//! | `purge` | `POST /purge` |
//! | `explain` | `GET /explain` |
//! | `reload` | `POST /reload` |
//! | `problem` | every refusal, in the form of RFC 9457 |
//! | `serve` | connections |
//!
//! Whoever reaches the port may read. What changes something is for those alone whom [`Changes`] admits.

mod explain;
mod guard;
mod health;
mod problem;
mod purge;
mod reload;
mod serve;
mod settings;

pub use explain::malformed_question;
pub use guard::{Changes, Names};
pub use health::Readiness;
pub use reload::{Mistake, Reload, ReloadError, Reloaded};
pub use serve::serve;
pub use settings::Settings;

use crate::proxy::Proxy;
use crate::telemetry::Telemetry;
use arc_swap::ArcSwap;
use axum::Router;
use axum::error_handling::HandleErrorLayer;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::IntoResponse;
use axum::routing::{self, MethodRouter};
use http::{Method, StatusCode, header};
use problem::Problem;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
use tower::timeout::TimeoutLayer;

/// The largest body of a request, in bytes.
const BODY_BYTES_MAX: usize = 64 << 10;

/// How long a request may take from its head to the head of its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The description of this interface, for machines.
const OPENAPI: &str = include_str!("openapi.json");

/// What the admin port shows and changes.
#[derive(Debug)]
pub struct Admin {
    /// What is purged and explained.
    pub proxy: Arc<Proxy>,
    /// What is counted.
    pub telemetry: Arc<Telemetry>,
    /// Whether clients should be sent here.
    pub ready: Arc<Readiness>,
    /// Who may change something.
    pub changes: Arc<ArcSwap<Changes>>,
    /// By what names it may be called.
    pub names: Names,
    /// How the configuration is loaded again.
    pub reload: Reload,
}

/// The admin port's answers.
pub fn router(admin: Admin) -> Router {
    let too_slow =
        |_| async { Problem::new(StatusCode::REQUEST_TIMEOUT, "the request took too long to arrive") };
    let admin = Arc::new(admin);
    endpoints()
        .into_iter()
        .fold(Router::new(), |router, endpoint| router.route(endpoint.path, endpoint.answer))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "there is no such path; GET / lists them"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path has no such method; see Allow")
        })
        .layer((
            axum::middleware::from_fn_with_state(Arc::clone(&admin), guard::no_browsers),
            HandleErrorLayer::new(too_slow),
            TimeoutLayer::new(REQUEST_TIMEOUT),
            DefaultBodyLimit::max(BODY_BYTES_MAX),
        ))
        .with_state(admin)
}

/// One path, with its one method.
struct Endpoint {
    method: Method,
    path: &'static str,
    summary: &'static str,
    answer: MethodRouter<Arc<Admin>>,
}

/// Every path there is.
fn endpoints() -> [Endpoint; 8] {
    let get = |path, summary, answer| Endpoint { method: Method::GET, path, summary, answer };
    let post = |path, summary, answer| Endpoint { method: Method::POST, path, summary, answer };
    [
        get("/", "this list", routing::get(index)),
        get("/metrics", "metrics, in Prometheus's text format", routing::get(metrics)),
        get("/livez", "200 while the process runs", routing::get(health::livez)),
        get("/readyz", "200 when clients should be sent here, else 503", routing::get(health::readyz)),
        get("/explain", "?url=…: what the cache would do, and why", routing::get(explain::explain)),
        post("/purge", "invalidate what is stored and in flight", routing::post(purge::purge)),
        post("/reload", "load the configuration again", routing::post(reload::reload)),
        get("/openapi.json", "this interface, for machines", routing::get(openapi)),
    ]
}

async fn index() -> impl IntoResponse {
    let mut text = format!("forebay {}\n\n", crate::telemetry::VERSION);
    for Endpoint { method, path, summary, .. } in endpoints() {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:<5}{path:<14} {summary}", method.as_str());
    }
    text
}

async fn metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], admin.telemetry.render())
}

async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}

#[cfg(test)]
mod tests;
