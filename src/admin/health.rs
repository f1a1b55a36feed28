//! Is the process alive, and should clients be sent to it?

use super::Admin;
use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use http::StatusCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Whether clients should be sent here: *starting*, then *ready*, then *draining*. A latch: it never goes back.
#[derive(Debug, Default)]
pub struct Readiness(AtomicU8);

const STARTING: u8 = 0;
const READY: u8 = 1;
const DRAINING: u8 = 2;

impl Readiness {
    /// All that is needed is there. Without effect once it drains.
    pub fn set_ready(&self) {
        self.0.fetch_max(READY, Ordering::AcqRel);
    }

    /// The process is about to stop.
    pub fn set_draining(&self) {
        self.0.fetch_max(DRAINING, Ordering::AcqRel);
    }

    /// Whether clients should be sent here.
    pub fn is_ready(&self) -> bool {
        self.0.load(Ordering::Acquire) == READY
    }

    fn word(&self) -> &'static str {
        match self.0.load(Ordering::Acquire) {
            STARTING => "starting",
            READY => "ready",
            _ => "draining",
        }
    }
}

pub(super) async fn livez() -> &'static str {
    "alive\n"
}

pub(super) async fn readyz(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    let word = admin.ready.word();
    let status = if word == "ready" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(serde_json::json!({ "status": word })))
}
