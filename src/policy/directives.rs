//! `Cache-Control` (RFC 9111 §5.2) and `Pragma` (§5.4).
//!
//! Directives that restrict are read generously and those that permit strictly: `private`, `no-store` and
//! `no-cache` count even inside a malformed member, while a lifetime that is not a plain number is zero.

use std::time::Duration;

use http::HeaderName;
use http::header::{CACHE_CONTROL, PRAGMA};

use super::Fields;

/// The greatest number of seconds that is told apart (RFC 9111 §1.2.2): greater ones are read as this.
pub const DELTA_SECONDS_MAX: u64 = 1 << 31;

/// What the response's cache directives say (RFC 9111 §5.2.2, RFC 5861).
///
/// A lifetime that is present but invalid is zero: "caches are encouraged to consider responses that have
/// invalid freshness information to be stale" (§4.2.1). Of several the shortest counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "the directives of the RFC are independent of each other")]
pub struct ResponseDirectives {
    /// §5.2.2.1
    pub max_age: Option<Duration>,
    /// §5.2.2.10
    pub s_maxage: Option<Duration>,
    /// RFC 5861 §3
    pub stale_while_revalidate: Option<Duration>,
    /// RFC 5861 §4
    pub stale_if_error: Option<Duration>,
    /// §5.2.2.4
    pub no_cache: Scope,
    /// §5.2.2.7
    pub private: Scope,
    /// §5.2.2.5
    pub no_store: bool,
    /// §5.2.2.3
    pub must_understand: bool,
    /// §5.2.2.2
    pub must_revalidate: bool,
    /// §5.2.2.8
    pub proxy_revalidate: bool,
    /// §5.2.2.9
    pub public: bool,
}

/// How much of a response `no-cache` or `private` is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Scope {
    /// The directive is absent.
    #[default]
    Nothing,
    /// The qualified form: these fields only.
    Fields(Vec<HeaderName>),
    /// The unqualified form, and every form that cannot be read with certainty.
    Everything,
}

/// What the request's cache directives say (RFC 9111 §5.2.1, §5.4). All of them are advice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    /// §5.2.1.1
    pub max_age: Option<Duration>,
    /// §5.2.1.2; without a number any staleness will do.
    pub max_stale: Option<Duration>,
    /// §5.2.1.3
    pub min_fresh: Option<Duration>,
    /// RFC 5861 §4
    pub stale_if_error: Option<Duration>,
    /// §5.2.1.4, or `Pragma: no-cache` where `Cache-Control` is absent
    pub no_cache: bool,
    /// §5.2.1.5
    pub no_store: bool,
    /// §5.2.1.7
    pub only_if_cached: bool,
}

impl ResponseDirectives {
    /// Reads `Cache-Control` from a response.
    pub fn of(headers: &impl Fields) -> Self {
        Self::of_lines(headers.lines(&CACHE_CONTROL))
    }

    /// Reads directives from the lines of any field with the syntax of `Cache-Control`.
    pub fn of_lines<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut directives = Self::default();
        for line in lines {
            for member in members(line) {
                directives.apply(&member);
            }
        }
        directives
    }

    fn apply(&mut self, member: &Member<'_>) {
        if member.is_broken {
            return self.restrict(member.text);
        }
        let name = member.name;
        let is = |directive: &str| name.eq_ignore_ascii_case(directive.as_bytes());
        if is("max-age") {
            shorten(&mut self.max_age, member.argument.seconds());
        } else if is("s-maxage") {
            shorten(&mut self.s_maxage, member.argument.seconds());
        } else if is("stale-while-revalidate") {
            shorten(&mut self.stale_while_revalidate, member.argument.seconds());
        } else if is("stale-if-error") {
            shorten(&mut self.stale_if_error, member.argument.seconds());
        } else if is("no-cache") {
            self.no_cache.widen(member.argument.scope());
        } else if is("private") {
            self.private.widen(member.argument.scope());
        } else if is("no-store") {
            self.no_store = true;
        } else if is("must-understand") {
            self.must_understand = true;
        } else if is("must-revalidate") {
            self.must_revalidate = true;
        } else if is("proxy-revalidate") {
            self.proxy_revalidate = true;
        } else if is("public") {
            self.public = true;
        } else if name.contains(&b'\'') {
            self.restrict(name);
        }
    }

    /// Takes over what others forbid, and no permission of theirs.
    pub(super) fn restrict_by(&mut self, others: Self) {
        self.no_cache.widen(others.no_cache);
        self.private.widen(others.private);
        // Only with its own no-store does must-understand lift one (§5.2.2.3).
        self.must_understand &= !others.no_store;
        self.no_store |= others.no_store;
        // must-revalidate would permit as well (§3.5).
        self.proxy_revalidate |= others.must_revalidate || others.proxy_revalidate;
    }

    /// Takes from a member that breaks the grammar every word that restricts, and no permission: whoever
    /// wrote `max-age=60; private` meant it.
    fn restrict(&mut self, text: &[u8]) {
        for word in text.split(|byte| !is_token_byte(*byte) || *byte == b'\'') {
            let is = |directive: &str| word.eq_ignore_ascii_case(directive.as_bytes());
            if is("private") {
                self.private = Scope::Everything;
            } else if is("no-store") {
                self.no_store = true;
            } else if is("no-cache") {
                self.no_cache = Scope::Everything;
            } else if is("must-revalidate") || is("proxy-revalidate") {
                self.proxy_revalidate = true;
            } else if is("max-age") {
                self.max_age = Some(Duration::ZERO);
            } else if is("s-maxage") {
                self.s_maxage = Some(Duration::ZERO);
            }
        }
    }
}

impl Scope {
    /// Whether the directive is about the whole response.
    pub fn is_everything(&self) -> bool {
        matches!(self, Self::Everything)
    }

    /// The fields of the qualified form.
    pub fn fields(&self) -> &[HeaderName] {
        match self {
            Self::Fields(names) => names,
            Self::Nothing | Self::Everything => &[],
        }
    }

    /// The scope of the directive when it is given once more.
    pub(super) fn widen(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Everything, _) | (_, Self::Nothing) => {}
            (Self::Fields(names), Self::Fields(more)) => names.extend(more),
            (Self::Nothing, other) | (Self::Fields(_), other @ Self::Everything) => *self = other,
        }
    }

    /// The scope that a quoted list of field names means. A list that does not consist of field names is
    /// read as no list at all, which makes the directive wider.
    pub(super) fn of_list(list: &str) -> Self {
        let names: Result<Vec<_>, _> = list
            .split(',')
            .map(|name| name.trim_matches([' ', '\t']))
            .filter(|name| !name.is_empty())
            .map(|name| HeaderName::from_bytes(name.as_bytes()))
            .collect();
        match names {
            Ok(names) if !names.is_empty() => Self::Fields(names),
            Ok(_) | Err(_) => Self::Everything,
        }
    }
}

impl RequestDirectives {
    /// Reads `Cache-Control`, or where that is absent `Pragma`, from a request.
    pub fn of(headers: &impl Fields) -> Self {
        let mut directives = Self::default();
        if !headers.has(&CACHE_CONTROL) {
            // §5.4: `Pragma: no-cache` counts only where Cache-Control is absent.
            directives.no_cache = headers
                .lines(&PRAGMA)
                .any(|line| members(line).any(|member| member.name.eq_ignore_ascii_case(b"no-cache")));
            return directives;
        }
        for line in headers.lines(&CACHE_CONTROL) {
            for member in members(line).filter(|member| !member.is_broken) {
                directives.apply(&member);
            }
        }
        directives
    }

    fn apply(&mut self, member: &Member<'_>) {
        let is = |directive: &str| member.name.eq_ignore_ascii_case(directive.as_bytes());
        if is("max-age") {
            shorten(&mut self.max_age, member.argument.seconds());
        } else if is("max-stale") {
            let limit = match member.argument {
                Argument::Absent => Duration::MAX,
                Argument::Token(_) | Argument::Quoted(_) => member.argument.seconds(),
            };
            shorten(&mut self.max_stale, limit);
        } else if is("min-fresh") {
            self.min_fresh = self.min_fresh.max(Some(member.argument.seconds()));
        } else if is("stale-if-error") {
            shorten(&mut self.stale_if_error, member.argument.seconds());
        } else if is("no-cache") {
            self.no_cache = true;
        } else if is("no-store") {
            self.no_store = true;
        } else if is("only-if-cached") {
            self.only_if_cached = true;
        }
    }
}

/// Reads delta-seconds (RFC 9111 §1.2.2): digits only, of any number; what is too large is the maximum.
pub fn delta_seconds(text: &[u8]) -> Option<Duration> {
    if text.is_empty() {
        return None;
    }
    text.iter()
        .try_fold(0_u64, |number, byte| {
            byte.is_ascii_digit().then(|| (number * 10 + u64::from(byte - b'0')).min(DELTA_SECONDS_MAX))
        })
        .map(Duration::from_secs)
}

/// One member of the directive list.
struct Member<'a> {
    /// The whole member as it stands.
    text: &'a [u8],
    name: &'a [u8],
    argument: Argument<'a>,
    /// Whether it breaks the grammar `token [ "=" ( token / quoted-string ) ]`.
    is_broken: bool,
}

enum Argument<'a> {
    Absent,
    Token(&'a [u8]),
    /// What stands between the quotes, escapes included.
    Quoted(&'a [u8]),
}

impl Argument<'_> {
    /// The argument as a number of seconds, in token or quoted form (§5.2: "recipients ought to accept both
    /// forms"); zero if it is anything else.
    fn seconds(&self) -> Duration {
        match self {
            Self::Absent => Duration::ZERO,
            Self::Token(text) | Self::Quoted(text) => delta_seconds(text).unwrap_or_default(),
        }
    }

    /// The argument as a list of field names. The token form, which must not be generated (§5.2.2.4,
    /// §5.2.2.7), is read as no argument, because `private=yes` means the whole response.
    fn scope(&self) -> Scope {
        match self {
            Self::Absent | Self::Token(_) => Scope::Everything,
            Self::Quoted(text) => std::str::from_utf8(text).map_or(Scope::Everything, Scope::of_list),
        }
    }
}

fn shorten(current: &mut Option<Duration>, other: Duration) {
    *current = Some(current.map_or(other, |known| known.min(other)));
}

/// The members of one line. A quoted string that never ends breaks its member and all that follow it, each
/// up to its comma, so that nothing can hide in it.
fn members(line: &[u8]) -> impl Iterator<Item = Member<'_>> {
    let mut rest = line;
    let mut is_unbalanced = false;
    std::iter::from_fn(move || {
        loop {
            rest = rest.trim_ascii_start();
            if rest.is_empty() {
                return None;
            }
            let end = if is_unbalanced { None } else { member_end(rest) };
            is_unbalanced |= end.is_none();
            let end = end.unwrap_or_else(|| rest.iter().position(|byte| *byte == b',').unwrap_or(rest.len()));
            let text = rest[..end].trim_ascii_end();
            rest = rest.get(end + 1..).unwrap_or_default();
            if !text.is_empty() {
                return Some(member(text, is_unbalanced));
            }
        }
    })
}

/// The place of the comma that ends the first member, or the end; `None` if a quoted string never ends.
fn member_end(text: &[u8]) -> Option<usize> {
    let mut is_quoted = false;
    let mut is_escaped = false;
    for (place, byte) in text.iter().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b',' if !is_quoted => return Some(place),
            _ => {}
        }
    }
    (!is_quoted).then_some(text.len())
}

fn member(text: &[u8], is_unbalanced: bool) -> Member<'_> {
    let name_end = text.iter().position(|byte| !is_token_byte(*byte)).unwrap_or(text.len());
    let (name, rest) = text.split_at(name_end);
    let argument = match rest {
        [] => Some(Argument::Absent),
        [b'=', b'"', inner @ .., b'"'] if is_quotable(inner) => Some(Argument::Quoted(inner)),
        // A number that is no token, such as `max-age=` or `max-age='5'`, is an invalid argument of a known
        // directive rather than a broken member: it is zero either way.
        [b'=', token @ ..] if token.iter().all(|byte| is_token_byte(*byte)) => Some(Argument::Token(token)),
        _ => None,
    };
    let is_broken = is_unbalanced || name.is_empty() || argument.is_none();
    Member { text, name, argument: argument.unwrap_or(Argument::Absent), is_broken }
}

/// Whether this stands between the quotes of one quoted string.
fn is_quotable(inner: &[u8]) -> bool {
    let mut is_escaped = false;
    for byte in inner {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return false,
            _ => {}
        }
    }
    !is_escaped
}

/// `tchar` of RFC 9110 §5.6.2.
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};
    use proptest::prelude::*;

    use super::super::testing::fields;
    use super::*;

    #[track_caller]
    fn check_max_age(lines: &str, seconds: Option<u64>) {
        let directives = ResponseDirectives::of(&fields(lines));
        assert_eq!(directives.max_age, seconds.map(Duration::from_secs), "{lines}");
    }

    #[track_caller]
    fn check_private(line: &str, is_private: bool) {
        let directives = ResponseDirectives::of(&fields(line));
        assert_eq!(directives.private.is_everything(), is_private, "{line}");
        let line = line.to_ascii_lowercase().replace("private", "no-store");
        let directives = ResponseDirectives::of(&fields(&line));
        assert_eq!(directives.no_store, is_private, "{line}");
    }

    #[test]
    fn rfc9111_1_2_2_must_accept_any_delta_seconds() {
        check_max_age("Cache-Control: max-age=0", Some(0));
        check_max_age("Cache-Control: max-age=3600", Some(3600));
        check_max_age("Cache-Control: max-age=003600", Some(3600));
        check_max_age("Cache-Control: max-age=2147483647", Some(2_147_483_647));
        check_max_age("Cache-Control: max-age=2147483648", Some(DELTA_SECONDS_MAX));
        check_max_age("Cache-Control: max-age=99999999999", Some(DELTA_SECONDS_MAX));
        check_max_age("Cache-Control: max-age=999999999999999999999999999999", Some(DELTA_SECONDS_MAX));
    }

    #[test]
    fn rfc9111_5_2_accepts_the_quoted_form_of_a_number() {
        check_max_age(r#"Cache-Control: max-age="3600""#, Some(3600));
        check_max_age("Cache-Control: max-age='3600'", Some(0));
        check_max_age(r#"Cache-Control: max-age="3600"#, Some(0));
        check_max_age(r#"Cache-Control: max-age=3600""#, Some(0));
    }

    #[test]
    fn rfc9111_4_2_1_an_invalid_lifetime_is_zero() {
        for value in ["", "-1", "+1", "1.5", "1e3", "a", "36a", " 3600", "0x10", "3600;", "3600 s"] {
            check_max_age(&format!("Cache-Control: max-age={value}"), Some(0));
        }
        check_max_age("Cache-Control: max-age", Some(0));
        check_max_age("Cache-Control: max-age =3600", Some(0));
    }

    #[test]
    fn rfc9111_4_2_1_of_several_the_shortest_counts() {
        check_max_age("Cache-Control: max-age=1, max-age=3600", Some(1));
        check_max_age("Cache-Control: max-age=3600, max-age=1", Some(1));
        check_max_age("Cache-Control: max-age=3600\nCache-Control: max-age=1", Some(1));
    }

    #[test]
    fn names_are_compared_without_case_and_lines_are_joined() {
        check_max_age("Cache-Control: MaX-aGe=3600", Some(3600));
        check_max_age("Cache-Control: a=b, , max-age=3600", Some(3600));
        check_max_age("Cache-Control: foo\nCache-Control: max-age=3600", Some(3600));
        check_max_age("Cache-Control:", None);
        check_max_age("Cache-Control: maxage=3600", None);
        check_max_age("Cache-Control: amax-age=3600", None);
    }

    #[test]
    fn a_directive_within_a_quoted_string_is_not_seen() {
        check_max_age(r#"Cache-Control: ext="max-age=3600, max-age=1", max-age=10"#, Some(10));
        check_max_age(r#"Cache-Control: ext="\", max-age=3600, ", max-age=10"#, Some(10));
        check_max_age(r#"Cache-Control: ext=", max-age=3600"#, Some(0));
        check_private(r#"Cache-Control: ext="private""#, false);
        check_private(r#"Cache-Control: ext="a, private, b""#, false);
    }

    #[test]
    fn rfc9111_5_2_2_7_private_counts_however_it_is_written() {
        for line in [
            "Cache-Control: private",
            "Cache-Control: PRIVATE",
            "Cache-Control: max-age=60,private",
            "Cache-Control: private, max-age=60",
            "Cache-Control: public, private",
            "Cache-Control: max-age=60; private",
            "Cache-Control: max-age=60 private",
            "Cache-Control: private;",
            "Cache-Control: private=",
            "Cache-Control: private=yes",
            r#"Cache-Control: private="""#,
            r#"Cache-Control: private="not a name""#,
            r#"Cache-Control: private="Set-Cookie"#,
            r#"Cache-Control: private=Set-Cookie""#,
            r#"Cache-Control: "private""#,
            "Cache-Control: 'private'",
            "Cache-Control: =private",
            r#"Cache-Control: ext="never ends, private"#,
            r#"Cache-Control: ext="never ends, a"b, private"#,
            "Cache-Control: public\nCache-Control: private",
        ] {
            check_private(line, true);
        }
        check_private("Cache-Control: x-private", false);
        check_private("Cache-Control: privately", false);
    }

    #[test]
    fn rfc9111_5_2_2_4_and_5_2_2_7_qualified_forms_name_fields() {
        let directives = ResponseDirectives::of(&fields(
            r#"Cache-Control: private="X-A, set-cookie", no-cache="X-B", no-cache="X-C""#,
        ));
        assert_eq!(directives.private, Scope::of_list("x-a,Set-Cookie"));
        assert_eq!(directives.no_cache, Scope::of_list("x-b, x-c"));
        let directives = ResponseDirectives::of(&fields(
            r#"Cache-Control: private="X-A", private, no-cache, no-cache="X-B""#,
        ));
        assert!(directives.private.is_everything() && directives.no_cache.is_everything());
    }

    #[track_caller]
    fn check_request(lines: &str, expected: &RequestDirectives) {
        assert_eq!(RequestDirectives::of(&fields(lines)), *expected, "{lines}");
    }

    #[test]
    fn rfc9111_5_2_1_request_directives() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let none = RequestDirectives::default;
        check_request("", &none());
        check_request("Cache-Control: max-age=5", &RequestDirectives { max_age: seconds(5), ..none() });
        check_request(
            "Cache-Control: max-stale",
            &RequestDirectives { max_stale: Some(Duration::MAX), ..none() },
        );
        check_request("Cache-Control: max-stale=7", &RequestDirectives { max_stale: seconds(7), ..none() });
        check_request("Cache-Control: min-fresh=7", &RequestDirectives { min_fresh: seconds(7), ..none() });
        check_request("Cache-Control: No-Cache", &RequestDirectives { no_cache: true, ..none() });
        check_request("Cache-Control: no-store", &RequestDirectives { no_store: true, ..none() });
        check_request("Cache-Control: only-if-cached", &RequestDirectives { only_if_cached: true, ..none() });
        check_request("Cache-Control: unknown, x=y", &none());
    }

    #[test]
    fn rfc9111_5_4_pragma_counts_only_without_cache_control() {
        let none = RequestDirectives::default;
        check_request("Pragma: no-cache", &RequestDirectives { no_cache: true, ..none() });
        check_request("Pragma: foo, No-Cache", &RequestDirectives { no_cache: true, ..none() });
        check_request("Pragma: foo", &none());
        check_request("Pragma: no-cache\nCache-Control: foo", &none());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(value) = HeaderValue::from_bytes(&line) {
                let mut headers = HeaderMap::new();
                headers.insert(CACHE_CONTROL, value);
                let _ = (ResponseDirectives::of(&headers), RequestDirectives::of(&headers));
            }
        }

        #[test]
        fn private_is_never_lost(before in "[ -~]{0,20}", after in "[ -~]{0,20}") {
            // Not within a quoted string, of which there is none without a quote.
            prop_assume!(!before.contains('"'));
            let line = format!("{before}, private,{after}");
            let directives = ResponseDirectives::of_lines([line.as_bytes()]);
            prop_assert!(directives.private.is_everything());
        }
    }
}
