//! Active checks: a request of our own to each origin, again and again.

use super::Error;
use super::pool::Pool;
use super::request::{Outgoing, RequestBody, Urgency};
use super::settings::Check;
use http::{HeaderValue, Method, header};
use std::future::poll_fn;
use std::sync::Arc;
use tokio::time::{sleep, timeout};

/// Checks one origin for as long as the task lives.
pub(super) async fn check(upstream: String, pool: Arc<Pool>, check: Check) {
    // Many instances that start together need not ask together.
    sleep(check.interval.mul_f64(fastrand::f64())).await;
    loop {
        let asked = timeout(check.timeout, ask(&pool, &check)).await;
        // What this process lacks is no verdict.
        let is_own_want = matches!(&asked, Ok(Err(error)) if error.is_own_want());
        let is_good = matches!(asked, Ok(Ok(true)));
        if !is_own_want && pool.health().checked(is_good, check.healthy_after, check.unhealthy_after) {
            let origin = pool.origin().authority();
            tracing::warn!(upstream, origin, is_healthy = is_good, "an origin's health has changed");
        }
        sleep(check.interval).await;
    }
}

/// Whether the origin gives an answer that is no error, on a connection of its own.
async fn ask(pool: &Arc<Pool>, check: &Check) -> Result<bool, Error> {
    let connection = pool.dial().await?;
    let outgoing = Outgoing {
        method: Method::GET,
        target: check.path.clone(),
        headers: Arc::default(),
        added: vec![(header::USER_AGENT, HeaderValue::from_static("forebay-check"))],
        host: check.host.clone(),
        upgrade: false,
        affinity: 0,
        urgency: Urgency::Background,
        written: None,
    };
    let mut asking = connection.ask(pool, &outgoing, RequestBody::Empty);
    let answered = poll_fn(|context| asking.poll_head(context, &outgoing.method, &mut |_| false)).await;
    let (head, ..) = answered.map_err(|failed| failed.error)?;
    Ok(head.status().is_success() || head.status().is_redirection())
}
