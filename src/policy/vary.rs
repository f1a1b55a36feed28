//! Which stored response is for which request (RFC 9111 §4.1).
//!
//! The values of the selecting fields are kept in a normal form. Two requests match exactly when their normal
//! forms are equal, so that matching is an equivalence.

use super::Fields;
use http::HeaderName;
use http::header::{
    ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, COOKIE, USER_AGENT, VARY,
};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// For which requests a response was selected: the field names of its `Vary` with their values in the
/// original request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Selection(
    /// `None` where it does not vary, as most do not.
    Option<Arc<Kind>>,
);

#[derive(Debug, PartialEq, Eq, Hash)]
enum Kind {
    /// `Vary: *`, a `Vary` that cannot be read, or one that names what this proxy itself says of each client: it "always
    /// fails to match".
    Star,
    /// In the order of the names; `values[i]` belongs to `names[i]`.
    Fields { names: Box<[HeaderName]>, values: Box<[Option<Value>]> },
}

/// The value of one selecting field that is present.
#[derive(Debug, Clone)]
struct Value {
    /// As it came, if it came in one line: equal bytes need no normalisation.
    raw: Option<Box<[u8]>>,
    normal: Box<[u8]>,
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.normal == other.normal
    }
}

impl Eq for Value {}

impl Hash for Value {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.normal.hash(hasher);
    }
}

/// A `Vary` with more names than this is not worth the work at every hit: it never matches.
const NAMES_MAX: usize = 32;

impl Selection {
    /// Reads `Vary` from the response and the values of what it names from the request.
    pub fn of(response: &impl Fields, request: &impl Fields) -> Self {
        let Some(names) = selecting_names(response) else { return Self(Some(Arc::new(Kind::Star))) };
        if names.is_empty() {
            return Self(None);
        }
        let values = names.iter().map(|name| Value::of(name, request)).collect();
        Self(Some(Arc::new(Kind::Fields { names: names.into(), values })))
    }

    /// Whether all selecting fields match in the original request and this one: "it MUST NOT use that
    /// response unless" they do.
    pub fn matches(&self, request: &impl Fields) -> bool {
        match self.0.as_deref() {
            None => true,
            Some(Kind::Star) => false,
            Some(Kind::Fields { names, values }) => {
                names.iter().zip(values).all(|(name, value)| is_match(name, value.as_ref(), request))
            }
        }
    }

    /// Whether it is known to be for other requests than this.
    pub fn is_of_others(&self, request: &impl Fields) -> bool {
        !self.is_star() && !self.matches(request)
    }

    /// The names of the selecting fields, sorted; none for `*`.
    pub fn names(&self) -> &[HeaderName] {
        match self.0.as_deref() {
            None | Some(Kind::Star) => &[],
            Some(Kind::Fields { names, .. }) => names,
        }
    }

    /// The selecting fields with their values in normal form; `None` where the field was absent. Nothing for `*`.
    pub fn fields(&self) -> impl Iterator<Item = (&HeaderName, Option<&[u8]>)> {
        let (names, values): (&[_], &[_]) = match self.0.as_deref() {
            None | Some(Kind::Star) => (&[], &[]),
            Some(Kind::Fields { names, values }) => (names, values),
        };
        names
            .iter()
            .zip(values.iter().map(|value: &Option<Value>| value.as_ref().map(|value| &*value.normal)))
    }

    /// Whether the other response was selected by these fields with the same values, and by more besides.
    pub fn is_extended_by(&self, other: &Self) -> bool {
        let (fewer, more) = (self.names().len(), other.names().len());
        fewer < more && self.fields().all(|own| other.fields().any(|field| field == own))
    }

    /// Whether it matches no request at all.
    pub fn is_star(&self) -> bool {
        matches!(self.0.as_deref(), Some(Kind::Star))
    }

    /// Whether both were selected by the same fields with the same values: one then replaces the other.
    pub fn same_variant(&self, other: &Self) -> bool {
        !self.is_star() && self == other
    }
}

/// Whether all these fields have the same values in two requests.
pub fn same_values(names: &[HeaderName], one: &impl Fields, other: &impl Fields) -> bool {
    names.iter().all(|name| normal_value(name, one) == normal_value(name, other))
}

/// The value of a field in its normal form, all lines combined; `None` where the field is absent, which is a
/// value of its own.
pub fn normal_value(name: &HeaderName, headers: &impl Fields) -> Option<Vec<u8>> {
    let mut lines = headers.lines(name);
    let first = lines.next()?;
    let separator: &[u8] = if name == COOKIE { b"; " } else { b"," };
    let mut combined = first.to_vec();
    for line in lines {
        combined.extend_from_slice(separator);
        combined.extend_from_slice(line);
    }
    Some(normalise(name, &combined))
}

impl Value {
    fn of(name: &HeaderName, request: &impl Fields) -> Option<Self> {
        let normal = normal_value(name, request)?.into();
        let mut lines = request.lines(name);
        let raw = lines.next().filter(|_| lines.next().is_none()).map(Into::into);
        Some(Self { raw, normal })
    }
}

/// Fields that tell the upstream of each client, and that are not among the client's own.
const OF_THE_CLIENT: [&str; 3] = ["forwarded", "x-forwarded-for", "x-forwarded-host"];

/// The names in `Vary`, sorted and each once; `None` for `*`, for what is not a list of names, and for fields that no
/// client's request can be compared by.
fn selecting_names(response: &impl Fields) -> Option<Vec<HeaderName>> {
    let mut names = Vec::new();
    for line in response.lines(&VARY) {
        for member in line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            let is_of_the_client =
                || OF_THE_CLIENT.iter().any(|name| member.eq_ignore_ascii_case(name.as_bytes()));
            if member == b"*" || is_of_the_client() {
                return None;
            }
            if !member.is_empty() {
                names.push(HeaderName::from_bytes(member).ok()?);
            }
        }
    }
    names.sort_by(|left, right| left.as_str().cmp(right.as_str()));
    names.dedup();
    (names.len() <= NAMES_MAX).then_some(names)
}

fn is_match(name: &HeaderName, stored: Option<&Value>, request: &impl Fields) -> bool {
    let mut lines = request.lines(name);
    match (stored, lines.next()) {
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
        (Some(stored), Some(line)) => {
            let is_single = lines.next().is_none();
            is_single && stored.raw.as_deref() == Some(line)
                || normal_value(name, request).is_some_and(|normal| *normal == *stored.normal)
        }
    }
}

/// The normal form of a field value: white space that means nothing is gone, and for the fields whose syntax
/// is known, what has the same meaning looks the same.
fn normalise(name: &HeaderName, value: &[u8]) -> Vec<u8> {
    if name == ACCEPT_ENCODING {
        preferences(value, |coding| content_coding(coding).map(<[u8]>::to_vec))
    } else if name == ACCEPT_LANGUAGE || name == ACCEPT_CHARSET {
        preferences(value, |range| Some(range.to_ascii_lowercase()))
    } else if name == COOKIE || name == AUTHORIZATION || name == USER_AGENT {
        // Not lists: a comma in them separates nothing.
        value.trim_ascii().to_vec()
    } else {
        without_list_space(value)
    }
}

/// A weighted list (RFC 9110 §12.4.2) as an order of preference: equal weights joined by a comma and sorted,
/// because "this order cannot be relied upon", lesser weights behind `>`, and what is refused behind `!`.
/// `name` says how a member is called, or that it does not matter.
fn preferences(value: &[u8], name: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Vec<u8> {
    let mut members: Vec<(u16, Vec<u8>)> = value
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
        .filter_map(|member| match weighted(member) {
            Some((text, weight)) => Some((weight, name(text)?)),
            // Not understood: it stands for itself.
            None => Some((WEIGHT_MAX, member.to_vec())),
        })
        .collect();
    members.sort_by(|(left, left_name), (right, right_name)| {
        right.cmp(left).then_with(|| left_name.cmp(right_name))
    });
    members.dedup();
    let mut normal = Vec::with_capacity(value.len());
    let mut last = None;
    for (weight, name) in members {
        match last {
            _ if weight == 0 => normal.push(b'!'),
            Some(last) if last == weight => normal.push(b','),
            Some(_) => normal.push(b'>'),
            None => {}
        }
        normal.extend_from_slice(&name);
        last = Some(weight);
    }
    normal
}

const WEIGHT_MAX: u16 = 1000;

/// A member and its weight in thousandths, one where it has none.
fn weighted(member: &[u8]) -> Option<(&[u8], u16)> {
    let Some(place) = member.iter().position(|byte| *byte == b';') else { return Some((member, WEIGHT_MAX)) };
    let (name, parameter) = (member[..place].trim_ascii_end(), member[place + 1..].trim_ascii_start());
    let [b'q' | b'Q', b'=', digits @ ..] = parameter else { return None };
    let weight = match digits {
        [whole @ (b'0' | b'1')] => u16::from(whole - b'0') * WEIGHT_MAX,
        [whole @ (b'0' | b'1'), b'.', fraction @ ..] if fraction.len() <= 3 => {
            let mut weight = u16::from(whole - b'0') * WEIGHT_MAX;
            for (digit, unit) in fraction.iter().zip([100, 10, 1]) {
                weight += digit.is_ascii_digit().then(|| u16::from(digit - b'0') * unit)?;
            }
            weight
        }
        _ => return None,
    };
    (weight <= WEIGHT_MAX).then_some((name, weight))
}

/// The registered name of a content coding; `None` for what no origin can know, which therefore does not
/// matter.
fn content_coding(coding: &[u8]) -> Option<&'static [u8]> {
    const CODINGS: [(&str, &str); 12] = [
        ("gzip", "gzip"),
        ("br", "br"),
        ("zstd", "zstd"),
        ("deflate", "deflate"),
        ("identity", "identity"),
        ("*", "*"),
        ("dcb", "dcb"),
        ("dcz", "dcz"),
        ("compress", "compress"),
        // RFC 9110 §8.4.1: equivalent to the names without the prefix.
        ("x-gzip", "gzip"),
        ("x-compress", "compress"),
        ("exi", "exi"),
    ];
    CODINGS
        .iter()
        .find(|(name, _)| coding.eq_ignore_ascii_case(name.as_bytes()))
        .map(|(_, canonical)| canonical.as_bytes())
}

/// A list without the white space around its commas and without empty members. Quoted strings are left as
/// they are.
fn without_list_space(value: &[u8]) -> Vec<u8> {
    let mut normal = Vec::with_capacity(value.len());
    let mut rest = value.trim_ascii();
    while !rest.is_empty() {
        let end = comma_outside_quotes(rest);
        let member = rest[..end].trim_ascii();
        if !member.is_empty() {
            if !normal.is_empty() {
                normal.push(b',');
            }
            normal.extend_from_slice(member);
        }
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    normal
}

fn comma_outside_quotes(text: &[u8]) -> usize {
    let mut is_quoted = false;
    let mut is_escaped = false;
    for (place, byte) in text.iter().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b',' if !is_quoted => return place,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::fields;
    use super::*;

    #[track_caller]
    fn check(vary: &str, original: &str, presented: &str, expected: bool) {
        let selection = Selection::of(&fields(vary), &fields(original));
        assert_eq!(selection.matches(&fields(presented)), expected, "{vary} | {original} | {presented}");
    }

    #[test]
    fn rfc9111_4_1_must_not_use_unless_all_selecting_fields_match() {
        check("", "A: 1", "A: 2", true);
        check("Vary: A", "A: 1", "A: 1", true);
        check("Vary: A", "A: 1", "A: 2", false);
        check("Vary: a", "A: 1\nB: 1", "A: 1\nB: 2", true);
        check("Vary: A, B", "A: 1\nB: 1", "A: 1\nB: 2", false);
        check("Vary: A\nVary: B", "A: 1\nB: 1", "A: 1\nB: 2", false);
        check("Vary: A,,B,", "A: 1\nB: 1", "A: 1\nB: 1", true);
        check("Vary: A", "A: x", "A: X", false);
    }

    #[test]
    fn rfc9111_4_1_an_absent_field_matches_only_an_absent_one() {
        check("Vary: A", "", "", true);
        check("Vary: A", "A: 1", "", false);
        check("Vary: A", "", "A: 1", false);
        check("Vary: A", "", "A:", false);
        check("Vary: A", "A:", "A:", true);
    }

    #[test]
    fn rfc9111_4_1_a_star_always_fails_to_match() {
        check("Vary: *", "", "", false);
        check("Vary: A, *", "", "", false);
        check("Vary: *, A", "", "", false);
        check("Vary:\nVary: *", "", "", false);
        check("Vary: A B", "", "", false);
        check("Vary: A, X-Forwarded-For", "", "", false);
        check("Vary: X-Forwarded-Proto", "", "", true);
        let long: String =
            (0..40).fold(String::new(), |lines, number| lines + &format!("Vary: X-{number}\n"));
        check(&long, "", "", false);
    }

    #[test]
    fn rfc9111_4_1_white_space_and_lines_do_not_matter() {
        check("Vary: A", "A: 1,2", "A: 1 ,\t2", true);
        check("Vary: A", "A: 1, 2", "A: 1\nA: 2", true);
        check("Vary: A", "A: 1\nA: 2", "A: 1, 2", true);
        check("Vary: A", "A: 1\nA: 2", "A: 1", false);
        check("Vary: A", "A: 1, 2", "A: 2, 1", false);
        check("Vary: A", "A: \"1, 2\"", "A: \"1,2\"", false);
        check("Vary: Cookie", "Cookie: a=1; b=2", "Cookie: a=1\nCookie: b=2", true);
        check("Vary: User-Agent", "User-Agent: a, b", "User-Agent: a,b", false);
    }

    #[test]
    fn accept_encoding_is_reduced_to_the_codings_that_matter() {
        let check = |original: &str, presented: &str, expected| {
            check(
                "Vary: Accept-Encoding",
                &format!("Accept-Encoding: {original}"),
                &format!("Accept-Encoding: {presented}"),
                expected,
            );
        };
        check("gzip, br", "br,gzip", true);
        check("gzip, br", "GZIP;q=1.0, br ; q=1", true);
        check("gzip, sdch", "gzip", true);
        check("x-gzip", "gzip", true);
        check("gzip;q=0.5, br;q=0.9", "gzip;q=0.1, br;q=0.2", true);
        check("gzip;q=0.5, br", "gzip, br;q=0.5", false);
        check("gzip", "gzip, br", false);
        check("gzip", "gzip;q=0", false);
        check("gzip", "", false);
        check("identity;q=0, gzip", "gzip", false);
        check("gzip;foo=1", "gzip", false);
    }

    #[test]
    fn accept_language_is_ordered_by_weight() {
        let check = |original: &str, presented: &str, expected| {
            check(
                "Vary: Accept-Language",
                &format!("Accept-Language: {original}"),
                &format!("Accept-Language: {presented}"),
                expected,
            );
        };
        check("en, de;q=0.5", "de;q=0.4,EN", true);
        check("en, de", "de, en", true);
        check("en, de;q=0.5", "de, en;q=0.5", false);
        check("en-GB", "en", false);
        check("en;q=2", "en", false);
    }

    #[test]
    fn one_variant_replaces_the_same_one_only() {
        let of = |vary: &str, request: &str| Selection::of(&fields(vary), &fields(request));
        assert!(of("Vary: A, B", "A: 1").same_variant(&of("Vary: b, a", "A: 1")));
        assert!(!of("Vary: A", "A: 1").same_variant(&of("Vary: A", "A: 2")));
        assert!(!of("Vary: A", "A: 1").same_variant(&of("", "A: 1")));
        assert!(!of("Vary: *", "").same_variant(&of("Vary: *", "")));
        assert_eq!(of("Vary: B, A, b", "").names(), ["a", "b"]);
    }

    proptest! {
        #[test]
        fn selection_is_an_equivalence(
            vary in "Vary: (Accept-Encoding|Accept-Language|A|Cookie)",
            requests in proptest::collection::vec(
                "((Accept-Encoding|Accept-Language|A|Cookie): [a-b,;q=0.1 \"*]{0,8}\n){0,3}", 3),
        ) {
            let requests: Vec<_> = requests.iter().map(|request| fields(request)).collect();
            let selections: Vec<_> = requests.iter().map(|request| Selection::of(&fields(&vary), request)).collect();
            let is_match = |left: usize, right: usize| selections[left].matches(&requests[right]);
            for left in 0..3 {
                prop_assert!(is_match(left, left));
                for right in 0..3 {
                    prop_assert_eq!(is_match(left, right), is_match(right, left));
                    prop_assert_eq!(is_match(left, right), selections[left].same_variant(&selections[right]));
                    for third in 0..3 {
                        prop_assert!(!(is_match(left, right) && is_match(right, third)) || is_match(left, third));
                    }
                }
            }
        }
    }
}
