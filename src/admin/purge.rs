//! `POST /purge`: draws a line in time, and tells what it did.

use super::problem::Problem;
use super::{Admin, BODY_BYTES_MAX};
use crate::policy::date;
use crate::proxy::{Purge, Target};
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request, State};
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Deserializer, Serialize};
use std::sync::Arc;

/// The body of a request. Exactly one of the targets is given.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Wanted {
    #[serde(deserialize_with = "given")]
    url: Option<String>,
    #[serde(deserialize_with = "given")]
    tag: Option<String>,
    #[serde(deserialize_with = "given")]
    prefix: Option<String>,
    #[serde(deserialize_with = "given")]
    host: Option<String>,
    #[serde(deserialize_with = "given")]
    route: Option<String>,
    #[serde(deserialize_with = "given")]
    everything: Option<bool>,
    soft: bool,
}

/// What is there, and not `null`.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(field: D) -> Result<Option<T>, D::Error> {
    T::deserialize(field).map(Some)
}

/// The body of an answer.
#[derive(Debug, Serialize)]
pub(super) struct Done {
    kind: &'static str,
    soft: bool,
    /// When the line was drawn (RFC 3339).
    at: String,
    /// Its place among all fetches and purges of the process.
    line: u64,
    /// How many stored responses it hit, where that is known.
    entries: Option<u64>,
}

pub(super) async fn purge(State(admin): State<Arc<Admin>>, request: Request) -> Result<Json<Done>, Problem> {
    // Before the body is read, or asked for.
    admin.changes.load().admit(request.headers())?;
    if !is_json(request.headers()) {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "expected Content-Type: application/json",
        ));
    }
    let body = Bytes::from_request(request, &()).await;
    let body = body.map_err(|rejection: BytesRejection| match rejection.status() {
        status @ StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(status, format!("the body is over the limit of {BODY_BYTES_MAX} bytes"))
        }
        status => Problem::new(status, rejection.body_text()),
    })?;
    let purge = parse(&body)?;
    let kind = kind(&purge.target);
    let soft = purge.soft;
    let purged = admin.proxy.purge(&purge).map_err(|error| unprocessable(error.to_string()))?;
    Ok(Json(Done { kind, soft, at: date::rfc3339(purged.at), line: purged.tick, entries: purged.entries }))
}

/// Whether the body is said to be JSON. No form of a web page can say so.
fn is_json(headers: &HeaderMap) -> bool {
    let essence = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.as_bytes().split(|byte| *byte == b';').next());
    essence.is_some_and(|essence| essence.trim_ascii().eq_ignore_ascii_case(b"application/json"))
}

fn parse(body: &[u8]) -> Result<Purge, Problem> {
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "the body is not a JSON object"));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let wanted: Wanted = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let status = match error.inner().classify() {
            serde_json::error::Category::Data => StatusCode::UNPROCESSABLE_ENTITY,
            serde_json::error::Category::Io
            | serde_json::error::Category::Syntax
            | serde_json::error::Category::Eof => StatusCode::BAD_REQUEST,
        };
        Problem::new(status, error.to_string())
    })?;
    json.end().map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    wanted.purge()
}

impl Wanted {
    fn purge(self) -> Result<Purge, Problem> {
        if self.host.is_some() && self.prefix.is_none() {
            return Err(unprocessable("host narrows a prefix down; there is none"));
        }
        if self.everything == Some(false) {
            return Err(unprocessable("everything can only be true"));
        }
        let host = self.host;
        let mut targets = [
            self.url.map(Target::Url),
            self.tag.map(Target::Tag),
            self.prefix.map(|path| Target::Prefix { host, path }),
            self.route.map(Target::Route),
            self.everything.map(|_| Target::Everything),
        ]
        .into_iter()
        .flatten();
        match (targets.next(), targets.next()) {
            (Some(Target::Tag(tag)), None) if tag.trim().is_empty() => Err(unprocessable("the tag is empty")),
            (Some(target), None) => Ok(Purge { target, soft: self.soft }),
            (None, _) => Err(unprocessable("give one of url, tag, prefix, route, everything")),
            (Some(_), Some(_)) => Err(unprocessable("give only one of url, tag, prefix, route, everything")),
        }
    }
}

/// The name of the field that named the target.
fn kind(target: &Target) -> &'static str {
    match target {
        Target::Url(_) => "url",
        Target::Tag(_) => "tag",
        Target::Prefix { .. } => "prefix",
        Target::Route(_) => "route",
        Target::Everything => "everything",
    }
}

fn unprocessable(detail: impl Into<std::borrow::Cow<'static, str>>) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
}
