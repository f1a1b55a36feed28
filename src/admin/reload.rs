//! `POST /reload`: loads the configuration again, and tells what came of it.

use super::Admin;
use super::problem::Problem;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

/// Loads the configuration again.
pub struct Reload(Box<dyn Fn() -> Reloading + Send + Sync>);

type Reloading = Pin<Box<dyn Future<Output = Result<Reloaded, ReloadError>> + Send>>;

/// A configuration that has taken effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reloaded {
    /// The keys that have changed and wait for a restart.
    pub restart_required: Vec<&'static str>,
    /// What is right in it, and still better looked at.
    pub warnings: Vec<String>,
}

/// Why a configuration has not taken effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReloadError {
    /// It is wrong, or what it names cannot be had. The one before it stays in effect.
    Refused {
        /// The whole story.
        detail: String,
        /// The mistakes one by one, where it could be read.
        mistakes: Vec<Mistake>,
    },
    /// The process is about to stop, or has not started yet.
    NotReady,
}

/// One mistake in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mistake {
    /// Where it was written: `file:line`, an environment variable, or a flag.
    pub place: Option<String>,
    /// The path of the key.
    pub key: String,
    /// What was expected, and what was found.
    pub wrong: String,
}

impl Reload {
    /// One that does this. What is done must go on where the returned future is dropped.
    pub fn new<F>(reload: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Reloaded, ReloadError>> + Send + 'static,
    {
        Self(Box::new(move || Box::pin(reload())))
    }
}

impl fmt::Debug for Reload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Reload(…)")
    }
}

pub(super) async fn reload(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Result<Response, Problem> {
    admin.changes.load().admit(&headers)?;
    match (admin.reload.0)().await {
        Ok(reloaded) => Ok(Json(reloaded).into_response()),
        Err(ReloadError::NotReady) => {
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "it is starting or about to stop"))
        }
        Err(ReloadError::Refused { detail, mistakes }) => {
            let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail);
            Ok(problem.with("mistakes", serde_json::json!(mistakes)).into_response())
        }
    }
}
