//! Who may change something, by what names the port may be called, and what no browser may send.

use super::Admin;
use super::problem::Problem;
use super::settings::Settings;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// Who may change something.
#[derive(Debug)]
pub enum Changes {
    /// Those who know the token.
    WithToken(Token),
    /// Everyone: the port can be reached from this machine alone.
    Local,
    /// Nobody: the port can be reached from outside, and there is no token to tell people apart.
    Closed,
}

/// The bearer token. It compares in constant time and does not show itself.
pub struct Token(Box<[u8]>);

impl Changes {
    /// What the settings amount to. Reads the token's file, if there is one.
    ///
    /// # Errors
    /// Where the file cannot be read, or has nothing in its first line.
    pub fn of(settings: &Settings) -> io::Result<Self> {
        Ok(match settings.read_token()? {
            Some(token) => Self::WithToken(Token(token.into_bytes().into())),
            None if settings.listen.ip().to_canonical().is_loopback() => Self::Local,
            None => Self::Closed,
        })
    }

    /// Whether a request with these fields may change something.
    pub(super) fn admit(&self, headers: &HeaderMap) -> Result<(), Problem> {
        match self {
            Self::Local => Ok(()),
            Self::Closed => Err(Problem::new(
                StatusCode::FORBIDDEN,
                "this port can be reached from other machines and no token is configured, so nothing can be \
                 changed through it: give admin.token_file (or FOREBAY__ADMIN__TOKEN), or listen on a \
                 loopback address",
            )),
            Self::WithToken(token) => match bearer(headers) {
                Some(given) if token.is(given) => Ok(()),
                Some(_) => Err(Problem::new(StatusCode::UNAUTHORIZED, "the token is another one")),
                None => Err(Problem::new(
                    StatusCode::UNAUTHORIZED,
                    "a change needs the field Authorization: Bearer followed by the token",
                )),
            },
        }
    }
}

impl Token {
    fn is(&self, given: &[u8]) -> bool {
        self.0.ct_eq(given).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(…)")
    }
}

/// The token of a request (RFC 6750 §2.1). The name of the scheme is told in any case (RFC 9110 §11.1).
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut fields = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(field), None) = (fields.next(), fields.next()) else { return None };
    let (scheme, token) = field.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

/// By what names the port may be called.
///
/// A page in an operator's browser may have come from a name that its owner then binds to the address of this port
/// ("DNS rebinding"): to the browser its requests do not cross origins, and it may read the answers. They name that name as the
/// host. A loopback address is reached by its number, or as `localhost`; other names are those that the configuration gives.
#[derive(Debug)]
pub enum Names {
    /// Any name: the port is meant to be reached from other machines, and nobody has said under which.
    Any,
    /// Addresses, `localhost`, and these.
    These(Vec<String>),
}

impl Names {
    /// What the settings amount to.
    pub fn of(settings: &Settings) -> Self {
        let is_local = settings.listen.ip().to_canonical().is_loopback();
        if is_local || !settings.hosts.is_empty() { Self::These(settings.hosts.clone()) } else { Self::Any }
    }

    /// Whether the request calls the port by such a name. What no browser sends, a request without a host, does it no harm.
    fn admit(&self, request: &Request) -> Result<(), Problem> {
        let Self::These(names) = self else { return Ok(()) };
        let mut hosts = request.headers().get_all(header::HOST).iter().map(HeaderValue::as_bytes);
        let target = request.uri().authority().map(|authority| authority.as_str().as_bytes());
        let is_known = |host: &[u8]| Authority::try_from(host).is_ok_and(|host| is_known(names, &host));
        if hosts.all(is_known) && target.is_none_or(is_known) {
            return Ok(());
        }
        Err(Problem::new(
            StatusCode::MISDIRECTED_REQUEST,
            "this port is called by its address, as localhost, or by one of admin.hosts; the Host of this request is \
             none of them",
        ))
    }
}

fn is_known(names: &[String], authority: &Authority) -> bool {
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if address.parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    // RFC 6761 §6.3: names under `localhost` are those of this machine, whatever a name server says.
    name == "localhost" || name.ends_with(".localhost") || names.contains(&name)
}

/// Refuses what a page in an operator's browser sends: it would act with the operator's place in the network. Browsers send `Origin` with every request
/// that crosses origins and with every one that is not GET or HEAD; other programs do not.
pub(super) async fn no_browsers(
    State(admin): State<Arc<Admin>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    admin.names.admit(&request)?;
    if request.headers().contains_key(header::ORIGIN) {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "requests with Origin are refused: this port is not for web pages",
        ));
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}
