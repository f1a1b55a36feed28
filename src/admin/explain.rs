//! `GET /explain`: what the cache would do with a request, and why.

use super::Admin;
use super::problem::Problem;
use crate::proxy::explain::Explanation;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use std::sync::Arc;

pub(super) async fn explain(
    State(admin): State<Arc<Admin>>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Json<Explanation>, Problem> {
    let Query(parameters) = query.map_err(|rejection| bad(rejection.body_text()))?;
    let request = imagined(&parameters)?;
    Ok(Json(admin.proxy.explain(&request)))
}

/// Why these parameters of `/explain` describe no request, in words.
pub fn malformed_question(parameters: &[(String, String)]) -> Option<String> {
    imagined(parameters).err().map(Problem::into_detail)
}

/// The request that the parameters describe.
fn imagined(parameters: &[(String, String)]) -> Result<Request<Bytes>, Problem> {
    let (mut url, mut method, mut body) = (None, None, None);
    let mut request = Request::new(Bytes::new());
    for (name, value) in parameters {
        match name.as_str() {
            "url" if url.is_none() => url = Some(absolute(value)?),
            "method" if method.is_none() => {
                let token = Method::from_bytes(value.as_bytes());
                method = Some(token.map_err(|_| bad(format!("{value:?} is not a method")))?);
            }
            "header" => {
                let (name, value) = field(value)?;
                request.headers_mut().append(name, value);
            }
            "body" if body.is_none() => body = Some(Bytes::from(value.clone())),
            "url" | "method" | "body" => return Err(bad(format!("{name} is given twice"))),
            _ => {
                return Err(bad(format!(
                    "there is no parameter {name:?}; there are url, method, header, body"
                )));
            }
        }
    }
    *request.uri_mut() = url.ok_or_else(|| bad("give the parameter url: http://host/path"))?;
    *request.method_mut() = method.unwrap_or_default();
    *request.body_mut() = body.unwrap_or_default();
    Ok(request)
}

fn absolute(text: &str) -> Result<Uri, Problem> {
    let uri: Uri = text.parse().map_err(|_| bad(format!("{text:?} is not a URL")))?;
    match uri.scheme_str() {
        Some("http" | "https") => Ok(uri),
        Some(_) | None => Err(bad(format!("{text:?} is no URL with http:// or https://"))),
    }
}

/// A field as `Name: value`.
fn field(text: &str) -> Result<(HeaderName, HeaderValue), Problem> {
    let malformed = || bad(format!("{text:?} is not a field; expected Name: value"));
    let (name, value) = text.split_once(':').ok_or_else(malformed)?;
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| malformed())?;
    let value = HeaderValue::from_str(value.trim()).map_err(|_| malformed())?;
    Ok((name, value))
}

fn bad(detail: impl Into<std::borrow::Cow<'static, str>>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, detail)
}
