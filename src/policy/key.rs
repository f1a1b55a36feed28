//! Which requests are the same (RFC 9111 §2).
//!
//! A key is a keyed 128-bit hash: its secret is drawn at start, so that no client can make keys collide or
//! flood one shard of a table. Every part is written with its length, so that parts cannot run together.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};

use http::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LOCATION, CONTENT_TYPE, COOKIE,
};
use http::{HeaderMap, HeaderName, Method};
use siphasher::sip128::{Hasher128, SipHasher13};

use super::{Fields, has_unkeyed_cookie, vary};

/// The cache key of a request, or the name of something that can be invalidated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(u128);

/// The keys of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keyed {
    /// All that the route makes part of the key.
    pub key: Key,
    /// Host and target only: all variants, schemes and methods of one URL, as an invalidation names it.
    pub uri: Key,
}

/// Makes keys, with a secret of its own.
#[derive(Clone)]
pub struct Keyer {
    secret: (u64, u64),
}

/// What a request is identified by.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a, F = HeaderMap> {
    /// The route's number: routes never share stored responses.
    pub route: u32,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// The host in lower case, without the default port.
    pub host: &'a str,
    /// Path and query as they are sent upstream, byte for byte.
    pub target: &'a str,
    /// GET and HEAD share a key.
    pub method: &'a Method,
    /// The client's fields.
    pub headers: &'a F,
    /// A digest of the request body, where the body is part of the key.
    pub body_digest: Option<u128>,
}

/// What beyond route, scheme and target is part of a route's keys.
#[derive(Debug, Clone, PartialEq)]
pub struct KeySpec {
    /// Whether the host is.
    pub host: bool,
    /// How much of the query is.
    pub query: Query,
    /// The request fields that are.
    pub headers: Vec<HeaderName>,
    /// The cookies that are.
    pub cookies: Vec<String>,
}

/// How much of the query is sent upstream and is part of the key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Query {
    /// All of it, byte for byte.
    #[default]
    All,
    /// Nothing.
    None,
    /// All of it, its parameters sorted by name. Parameters of the same name stay in their order.
    Sorted,
    /// Only the parameters with these names.
    Only(BTreeSet<String>),
    /// All but the parameters with these names; one that ends in `*` stands for all names that begin so.
    Without(Vec<String>),
}

/// What a request says of its content, and what is therefore, where the content is part of the key, a part of it as well.
const CONTENT_FIELDS: [HeaderName; 4] = [CONTENT_TYPE, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LOCATION];

impl Default for KeySpec {
    fn default() -> Self {
        Self { host: true, query: Query::All, headers: Vec::new(), cookies: Vec::new() }
    }
}

/// What a request has that tells who sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// `Authorization`.
    pub authorization: bool,
    /// Cookies that are no part of the key.
    pub cookies: bool,
}

impl Credentials {
    /// Those among these fields, where these cookies are part of the key.
    pub fn of(headers: &impl Fields, keyed_cookies: &[String]) -> Self {
        Self {
            authorization: headers.has(&AUTHORIZATION),
            cookies: headers.has(&COOKIE) && has_unkeyed_cookie(headers, keyed_cookies),
        }
    }

    /// Whether there are any.
    pub fn tell_who(self) -> bool {
        self.authorization || self.cookies
    }
}

impl Keyer {
    /// A keyer with a secret that nobody knows.
    #[expect(clippy::new_without_default, reason = "two of them do not agree, so none is the default")]
    pub fn new() -> Self {
        // The standard library seeds each state from the operating system's random numbers.
        Self::with_seed(RandomState::new().hash_one(0), RandomState::new().hash_one(1))
    }

    /// A keyer that makes the same keys as every other with this seed, for tests and simulations.
    pub fn with_seed(first: u64, second: u64) -> Self {
        Self { secret: (first, second) }
    }

    /// The keys of a request. `what.target` is the target after [`Query::apply`].
    pub fn key<F: Fields>(&self, what: &Identity<'_, F>, spec: &KeySpec) -> Keyed {
        let mut parts = self.parts("uri");
        parts.number(u64::from(what.route));
        parts.optional(spec.host.then_some(what.host.as_bytes()));
        parts.bytes(what.target.as_bytes());
        let uri = parts.finish();
        parts.bytes(what.scheme.as_bytes());
        if let Some(digest) = what.body_digest {
            parts.bytes(what.method.as_str().as_bytes());
            parts.bytes(&digest.to_le_bytes());
            for name in &CONTENT_FIELDS {
                parts.lines(what.headers, name);
            }
        } else if *what.method != Method::GET && *what.method != Method::HEAD {
            parts.bytes(what.method.as_str().as_bytes());
        }
        for name in &spec.headers {
            parts.optional(vary::normal_value(name, what.headers).as_deref());
        }
        for name in &spec.cookies {
            parts.optional(cookie(what.headers, name).as_deref());
        }
        if has_odd_cookie(what.headers, &spec.cookies) {
            parts.lines(what.headers, &COOKIE);
        }
        Keyed { key: parts.finish(), uri }
    }

    /// A digest of a request body, to be a part of its key.
    pub fn digest(&self, body: &[u8]) -> u128 {
        let mut parts = self.parts("body");
        parts.bytes(body);
        parts.finish().0
    }

    /// The key of one variant under a key: by the values of the selecting fields, once it is known which these are. Where
    /// nothing selects, it is the key itself.
    pub fn variant(&self, key: Key, names: &[HeaderName], headers: &impl Fields) -> Key {
        if names.is_empty() {
            return key;
        }
        let mut parts = self.parts("variant");
        parts.bytes(&key.0.to_le_bytes());
        for name in names {
            parts.bytes(name.as_str().as_bytes());
            parts.optional(vary::normal_value(name, headers).as_deref());
        }
        parts.finish()
    }

    /// The key of what a client may get under a key because of who it is. `None`: nothing tells who it is.
    pub fn personal(&self, key: Key, headers: &impl Fields, credentials: Credentials) -> Option<Key> {
        credentials.tell_who().then(|| {
            let mut parts = self.parts("personal");
            parts.bytes(&key.0.to_le_bytes());
            parts.lines(headers, &AUTHORIZATION);
            parts.lines(headers, &COOKIE);
            parts.finish()
        })
    }

    /// The key of all requests under a key that tell who they are, whoever that is.
    pub fn identified(&self, key: Key) -> Key {
        self.beside("identified", key)
    }

    /// The key of requests under a key that do not tell who they are, and want nothing to do with those that do.
    pub fn anonymous(&self, key: Key) -> Key {
        self.beside("anonymous", key)
    }

    fn beside(&self, kind: &str, key: Key) -> Key {
        let mut parts = self.parts(kind);
        parts.bytes(&key.0.to_le_bytes());
        parts.finish()
    }

    /// The key of a word of some kind, such as a tag or a path prefix.
    pub fn word(&self, kind: &str, word: &str) -> Key {
        let mut parts = self.parts("word");
        parts.bytes(kind.as_bytes());
        parts.bytes(word.as_bytes());
        parts.finish()
    }

    fn parts(&self, kind: &str) -> Parts {
        let mut parts = Parts(SipHasher13::new_with_keys(self.secret.0, self.secret.1));
        parts.bytes(kind.as_bytes());
        parts
    }
}

impl fmt::Debug for Keyer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The secret is no part of what may be logged.
        formatter.debug_struct("Keyer").finish_non_exhaustive()
    }
}

impl Key {
    /// The number itself.
    pub const fn as_u128(self) -> u128 {
        self.0
    }

    /// Its low half, which is as well mixed as the whole.
    #[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
    pub const fn low(self) -> u64 {
        self.0 as u64
    }

    /// A number by which keys are spread over shards or pages: of other bits than those by which a hash table tells its places.
    pub const fn spread(self) -> usize {
        (self.low() >> 32) as usize
    }
}

impl Hash for Key {
    /// Writes the low half: it is a hash already, and needs no other.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.low());
    }
}

/// For maps by [`Key`], which is a keyed hash already: to hash it again would be in vain.
pub type KeyHashing = BuildHasherDefault<KeyHasher>;

/// See [`KeyHashing`].
#[derive(Debug, Default)]
pub struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

impl Query {
    /// The target without what the rule leaves out: what goes upstream and into the key.
    pub fn apply<'a>(&self, path_and_query: &'a str) -> Cow<'a, str> {
        if *self == Self::All {
            return Cow::Borrowed(path_and_query);
        }
        let Some((path, query)) = path_and_query.split_once('?') else {
            return Cow::Borrowed(path_and_query);
        };
        let keep: Vec<&str> = match self {
            Self::All => return Cow::Borrowed(path_and_query),
            Self::None => return Cow::Borrowed(path),
            Self::Sorted => {
                let mut parameters: Vec<_> = query.split('&').filter(|text| !text.is_empty()).collect();
                parameters.sort_by_key(|parameter| name_of(parameter));
                parameters
            }
            Self::Only(names) => query.split('&').filter(|text| names.contains(name_of(text))).collect(),
            Self::Without(names) => query
                .split('&')
                .filter(|text| !text.is_empty() && !names.iter().any(|pattern| is_named(text, pattern)))
                .collect(),
        };
        if keep.is_empty() {
            return Cow::Borrowed(path);
        }
        Cow::Owned(format!("{path}?{}", keep.join("&")))
    }
}

/// The key for people: what it is made of.
pub fn text<F: Fields>(what: &Identity<'_, F>, spec: &KeySpec) -> String {
    let mut text = String::new();
    if let Some(digest) = what.body_digest {
        let _ = write!(text, "{} {digest:032x} ", what.method);
        for value in CONTENT_FIELDS.iter().flat_map(|name| what.headers.lines(name)) {
            let _ = write!(text, "{} ", String::from_utf8_lossy(value));
        }
    }
    let host = if spec.host { what.host } else { "*" };
    let _ = write!(text, "{}://{host}{}", what.scheme, what.target);
    let shown = |value: Option<Vec<u8>>| {
        value.map_or("-".into(), |value| format!("{:?}", String::from_utf8_lossy(&value)))
    };
    for name in &spec.headers {
        let _ = write!(text, " {name}={}", shown(vary::normal_value(name, what.headers)));
    }
    for name in &spec.cookies {
        let _ = write!(text, " cookie:{name}={}", shown(cookie(what.headers, name)));
    }
    if has_odd_cookie(what.headers, &spec.cookies) {
        for line in what.headers.lines(&COOKIE) {
            let _ = write!(text, " cookies={:?}", String::from_utf8_lossy(line));
        }
    }
    text
}

/// The parts of a key, on their way into the hash.
struct Parts(SipHasher13);

impl Parts {
    fn number(&mut self, number: u64) {
        self.0.write_u64(number);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.write(bytes);
    }

    /// All lines of a field, in their order: which of several counts is for the upstream to say.
    fn lines(&mut self, headers: &impl Fields, name: &HeaderName) {
        self.number(headers.lines(name).count() as u64);
        headers.lines(name).for_each(|line| self.bytes(line));
    }

    /// A part that may be absent, which is a value of its own: no length is so great.
    fn optional(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            Some(bytes) => self.bytes(bytes),
            None => self.number(u64::MAX),
        }
    }

    fn finish(&self) -> Key {
        Key(self.0.finish128().as_u128())
    }
}

/// All values of a cookie, in the order in which they came.
fn cookie(headers: &impl Fields, name: &str) -> Option<Vec<u8>> {
    let pairs = headers.lines(&COOKIE).flat_map(cookie_pairs);
    let values: Vec<&[u8]> = pairs.filter_map(|pair| cookie_value(pair, name)).collect();
    (!values.is_empty()).then(|| values.join(&b';'))
}

/// The pairs of a line of `Cookie` (RFC 6265 §5.4).
pub(super) fn cookie_pairs(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| *byte == b';').map(<[u8]>::trim_ascii)
}

/// The value that a pair gives to the cookie of this name, if it is that one's.
pub(super) fn cookie_value<'a>(pair: &'a [u8], name: &str) -> Option<&'a [u8]> {
    pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}

/// Whether there is what an upstream may read as one of these cookies, though it is none: with blanks about its name, without a
/// value, or behind a comma.
fn has_odd_cookie(headers: &impl Fields, names: &[String]) -> bool {
    // Mostly no cookie is part of the key: then those that come need not be read.
    if names.is_empty() {
        return false;
    }
    let is_named = |part: &[u8], name: &str| {
        let named = part.split(|byte| *byte == b'=').next().unwrap_or(part);
        named.trim_ascii() == name.as_bytes()
    };
    let is_odd = |pair: &[u8], name: &String| {
        let first = usize::from(cookie_value(pair, name).is_some());
        pair.split(|byte| *byte == b',').skip(first).any(|part| is_named(part, name))
    };
    headers.lines(&COOKIE).flat_map(cookie_pairs).any(|pair| names.iter().any(|name| is_odd(pair, name)))
}

fn name_of(parameter: &str) -> &str {
    parameter.split_once('=').map_or(parameter, |(name, _)| name)
}

fn is_named(parameter: &str, pattern: &str) -> bool {
    let name = name_of(parameter);
    pattern.strip_suffix('*').map_or(name == pattern, |prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::fields;
    use super::*;

    fn identity(headers: &HeaderMap) -> Identity<'_> {
        Identity {
            route: 0,
            scheme: "http",
            host: "a.example",
            target: "/x?y",
            method: &Method::GET,
            headers,
            body_digest: None,
        }
    }

    fn keyer() -> Keyer {
        Keyer::with_seed(1, 2)
    }

    #[test]
    fn rfc9111_2_every_part_of_the_target_is_part_of_the_key() {
        let none = HeaderMap::new();
        let spec = KeySpec::default();
        let base = keyer().key(&identity(&none), &spec);
        let others = [
            Identity { route: 1, ..identity(&none) },
            Identity { host: "b.example", ..identity(&none) },
            Identity { target: "/x", ..identity(&none) },
            Identity { target: "/x?Y", ..identity(&none) },
            Identity { target: "/%78?y", ..identity(&none) },
            Identity { host: "a.exampl", target: "e/x?y", ..identity(&none) },
        ];
        for other in others {
            let other = keyer().key(&other, &spec);
            assert!(other.key != base.key && other.uri != base.uri);
        }
        let https = keyer().key(&Identity { scheme: "https", ..identity(&none) }, &spec);
        assert!(https.key != base.key && https.uri == base.uri);
        assert_ne!(Keyer::with_seed(1, 3).key(&identity(&none), &spec), base);
        assert_ne!(Keyer::new().key(&identity(&none), &spec), base);
    }

    #[test]
    fn get_and_head_share_a_key_and_bodies_have_their_own() {
        let none = HeaderMap::new();
        let plain = fields("Content-Type: a/b");
        let of = |method: &Method, body_digest, headers| {
            keyer().key(&Identity { method, body_digest, ..identity(headers) }, &KeySpec::default()).key
        };
        assert_eq!(of(&Method::GET, None, &none), of(&Method::HEAD, None, &none));
        let keys = [
            of(&Method::GET, None, &none),
            of(&Method::POST, None, &none),
            of(&Method::POST, Some(1), &none),
            of(&Method::POST, Some(2), &none),
            of(&Method::PUT, Some(1), &none),
            of(&Method::POST, Some(1), &plain),
            of(&Method::POST, Some(1), &fields("Content-Type: a/b\nContent-Type: a/c")),
            of(&Method::POST, Some(1), &fields("Content-Type: a/c\nContent-Type: a/b")),
            of(&Method::POST, Some(1), &fields("Content-Type: a/b\nContent-Encoding: gzip")),
            of(&Method::POST, Some(1), &fields("Content-Encoding: gzip")),
            of(&Method::POST, Some(1), &fields("Content-Language: gzip")),
            of(&Method::POST, Some(1), &fields("Content-Location: gzip")),
        ];
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len());
    }

    #[test]
    fn fields_and_cookies_are_parts_where_the_route_says_so() {
        let spec = KeySpec {
            headers: vec![HeaderName::from_static("x-a")],
            cookies: vec!["lang".into()],
            ..KeySpec::default()
        };
        let of = |text: &str| keyer().key(&identity(&fields(text)), &spec);
        assert_eq!(of("X-B: 1"), of(""));
        assert_ne!(of("X-A: 1"), of(""));
        assert_ne!(of("X-A:"), of(""));
        assert_eq!(of("X-A: 1, 2"), of("X-A: 1\nX-A: 2"));
        assert_ne!(of("Cookie: lang=de"), of(""));
        assert_eq!(of("Cookie: lang=de"), of("Cookie: id=7; lang=de"));
        assert_ne!(of("Cookie: lang=de"), of("Cookie: lang=de; lang=en"));
        assert_eq!(of("X-A: 1").uri, of("").uri);
        let hostless = KeySpec { host: false, ..KeySpec::default() };
        let other = HeaderMap::new();
        let other = Identity { host: "b.example", ..identity(&other) };
        assert_eq!(keyer().key(&other, &hostless), keyer().key(&identity(&HeaderMap::new()), &hostless));
    }

    #[test]
    fn what_may_be_read_as_a_cookie_of_the_key_has_a_key_of_its_own() {
        let spec = KeySpec { cookies: vec!["s".into()], ..KeySpec::default() };
        let of = |cookies: &str| keyer().key(&identity(&fields(&format!("Cookie: {cookies}"))), &spec).key;
        let none = keyer().key(&identity(&HeaderMap::new()), &spec).key;
        for plain in ["", ";", "t=1", "ss=1", "t={\"a\":1,\"b\":2}", "x=s"] {
            assert_eq!(of(plain), none, "{plain:?}");
        }
        for odd in ["s =1", "s", "x,s=1", "x=1,s=1", "x=1, s =1", "\ts\t=1"] {
            assert!(![none, of("s=1")].contains(&of(odd)), "{odd:?}");
        }
        assert_ne!(of("s=1"), of("s=1,s=2"));
        assert_eq!(of("s=1"), of("t=2; s=1"));
        let credentials =
            |cookies: &str| Credentials::of(&fields(&format!("Cookie: {cookies}")), &spec.cookies).cookies;
        assert!(!credentials("s=1") && !credentials("s=1; s=2"));
        for unkeyed in ["", ";", "s", "s =1", "t=1", "s=1; t=2", "s=1;"] {
            assert!(credentials(unkeyed), "{unkeyed:?}");
        }
    }

    #[track_caller]
    fn check_query(query: &Query, before: &str, after: &str) {
        assert_eq!(query.apply(before), after);
        assert_eq!(query.apply(after), after, "applied twice");
    }

    #[test]
    fn query_rules() {
        check_query(&Query::All, "/x?b&a=1&&", "/x?b&a=1&&");
        check_query(&Query::None, "/x?b", "/x");
        check_query(&Query::Sorted, "/x?b=2&a=1&b=1", "/x?a=1&b=2&b=1");
        check_query(&Query::Sorted, "/x", "/x");
        let names = || ["a".to_owned(), "utm_*".to_owned()];
        check_query(&Query::Only(names().into()), "/x?b=2&a=1&a", "/x?a=1&a");
        check_query(&Query::Only(names().into()), "/x?b", "/x");
        check_query(&Query::Without(names().into()), "/x?b=2&a=1&utm_source=y", "/x?b=2");
        check_query(&Query::Without(names().into()), "/x?a=?", "/x");
    }

    #[test]
    fn the_text_says_what_a_key_is_made_of() {
        let headers = fields("X-A: 1\nCookie: lang=de");
        let spec = KeySpec {
            headers: vec![HeaderName::from_static("x-a"), HeaderName::from_static("x-b")],
            cookies: vec!["lang".into()],
            ..KeySpec::default()
        };
        assert_eq!(
            text(&identity(&headers), &spec),
            r#"http://a.example/x?y x-a="1" x-b=- cookie:lang="de""#
        );
    }

    #[test]
    fn variants_follow_the_normal_values() {
        let names = [http::header::ACCEPT_ENCODING];
        let of = |text: &str| keyer().variant(Key(1), &names, &fields(text));
        assert_eq!(of("Accept-Encoding: gzip, br"), of("Accept-Encoding: br,gzip"));
        assert_ne!(of("Accept-Encoding: gzip"), of(""));
        assert_ne!(keyer().word("tag", "a"), keyer().word("prefix", "a"));
    }

    proptest! {
        #[test]
        fn query_rules_never_panic(target in "/[ -~]{0,30}") {
            for query in [Query::None, Query::Sorted, Query::Without(vec!["a*".into()])] {
                let once = query.apply(&target).into_owned();
                prop_assert_eq!(&*query.apply(&once), &once);
            }
        }
    }
}
