//! Who may change something, and what no browser may send.

use super::problem::Problem;
use super::settings::Settings;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use std::fmt;
use std::io;
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

/// Refuses what a page in an operator's browser sends: it would act with the operator's place in the network, and,
/// where its name has been bound to this address, even read the answer. Browsers send `Origin` with every request
/// that crosses origins and with every one that is not GET or HEAD; other programs do not.
pub(super) async fn no_browsers(request: Request, next: Next) -> Result<Response, Problem> {
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
