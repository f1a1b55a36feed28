//! Refusals as problem details (RFC 9457).

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use std::borrow::Cow;

/// Why a request to the admin port was refused.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    detail: Cow<'static, str>,
    /// A member beside those of the RFC (§3.2).
    extension: Option<(&'static str, serde_json::Value)>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, detail: detail.into(), extension: None }
    }

    /// What is wrong, in words.
    pub(super) fn into_detail(self) -> String {
        self.detail.into_owned()
    }

    /// The same with one more member.
    pub(super) fn with(self, name: &'static str, value: serde_json::Value) -> Self {
        Self { extension: Some((name, value)), ..self }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        // §4.2.1: with the type "about:blank" the title is that of the status.
        let mut problem = serde_json::json!({
            "type": "about:blank",
            "title": self.status.canonical_reason(),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let Some((name, value)) = self.extension {
            problem[name] = value;
        }
        let mut response = (self.status, Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            // RFC 9110 §15.5.2: a 401 says how to authenticate.
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"forebay\""));
        }
        response
    }
}
