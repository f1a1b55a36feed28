//! Active checks: a request of our own to each origin, again and again.

use super::pool::{Connection, Pool};
use super::request::{Outgoing, RequestBody, Urgency};
use super::settings::Check;
use http::{HeaderValue, Method, header};
use std::sync::Arc;
use tokio::time::{sleep, timeout};

/// Checks one origin for as long as the task lives.
pub(super) async fn check(upstream: String, pool: Arc<Pool>, check: Check) {
    // Many instances that start together need not ask together.
    sleep(check.interval.mul_f64(fastrand::f64())).await;
    loop {
        let is_good = matches!(timeout(check.timeout, ask(&pool, &check)).await, Ok(true));
        if pool.health().checked(is_good, check.healthy_after, check.unhealthy_after) {
            let origin = pool.origin().authority();
            tracing::warn!(upstream, origin, is_healthy = is_good, "an origin's health has changed");
        }
        sleep(check.interval).await;
    }
}

/// Whether the origin gives an answer that is no error, on a connection of its own.
async fn ask(pool: &Arc<Pool>, check: &Check) -> bool {
    let Ok(connection) = pool.dial().await else { return false };
    let outgoing = Outgoing {
        method: Method::GET,
        target: check.path.clone(),
        headers: Arc::default(),
        added: vec![(header::USER_AGENT, HeaderValue::from_static("forebay-check"))],
        host: check.host.clone(),
        upgrade: false,
        affinity: 0,
        urgency: Urgency::Background,
    };
    let answered = Connection::send(connection, pool, &outgoing, RequestBody::Empty).await;
    answered.is_ok_and(|(response, _)| response.status().is_success() || response.status().is_redirection())
}
