//! Kinds of values: each function reads one given value as one kind, or says what was expected of it.

use super::error::{Wrong, nearest};
use super::section::{Given, describe};
use super::units;
use super::words::Word;
use crate::proxy::Network;
use crate::upstream::Origin;
use ::config::{Value, ValueKind};
use http::uri::Authority;
use http::{HeaderName, Uri};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

/// The word for a setting that can be switched off.
pub(super) const OFF: &str = "off";

/// A text that is not empty.
pub(super) fn text(given: Given<'_>) -> Result<String, Wrong> {
    match given.kind {
        ValueKind::String(text) if !text.trim().is_empty() => Ok(text.clone()),
        _ => Err(unexpected(given, "a text that is not empty")),
    }
}

/// `true` or `false`.
pub(super) fn truth(given: Given<'_>) -> Result<bool, Wrong> {
    match given.kind {
        ValueKind::Boolean(truth) => Ok(*truth),
        ValueKind::String(text) if given.text_only => {
            text.trim().parse().map_err(|_| unexpected(given, "true or false"))
        }
        _ => Err(unexpected(given, "true or false")),
    }
}

/// A whole number in a range.
pub(super) fn number<T>(range: RangeInclusive<T>) -> impl Fn(Given<'_>) -> Result<T, Wrong>
where
    T: TryFrom<i64> + PartialOrd + std::fmt::Display,
{
    move |given| {
        let number = match given.kind {
            ValueKind::I64(number) => Some(*number),
            ValueKind::String(text) if given.text_only => text.trim().parse().ok(),
            _ => None,
        };
        number.and_then(|number| T::try_from(number).ok()).filter(|number| range.contains(number)).ok_or_else(
            || unexpected(given, &format!("a whole number from {} to {}", range.start(), range.end())),
        )
    }
}

/// A number above zero, up to a greatest.
pub(super) fn factor(greatest: f64) -> impl Fn(Given<'_>) -> Result<f64, Wrong> {
    move |given| {
        let number = match given.kind {
            ValueKind::Float(number) => Some(*number),
            ValueKind::I64(number) => i32::try_from(*number).ok().map(f64::from),
            ValueKind::String(text) if given.text_only => text.trim().parse().ok(),
            _ => None,
        };
        number
            .filter(|number| *number > 0.0 && *number <= greatest)
            .ok_or_else(|| unexpected(given, &format!("a number above 0, at most {greatest}, or \"{OFF}\"")))
    }
}

/// A duration; zero is one too.
pub(super) fn duration(given: Given<'_>) -> Result<Duration, Wrong> {
    quantity(given, units::DURATION, units::parse_duration)
}

/// A duration longer than zero.
pub(super) fn time(given: Given<'_>) -> Result<Duration, Wrong> {
    let expected = || unexpected(given, "a duration longer than zero");
    duration(given).and_then(|duration| if duration.is_zero() { Err(expected()) } else { Ok(duration) })
}

/// A size in a range.
pub(super) fn size<T>(range: RangeInclusive<u64>) -> impl Fn(Given<'_>) -> Result<T, Wrong>
where
    T: TryFrom<u64>,
{
    move |given| {
        let bytes = quantity(given, units::SIZE, units::parse_size)?;
        let within = range.contains(&bytes).then(|| T::try_from(bytes).ok()).flatten();
        within.ok_or_else(|| {
            let (least, greatest) = (units::size(*range.start()), units::size(*range.end()));
            unexpected(given, &format!("a size from {least} to {greatest}"))
        })
    }
}

fn quantity<T>(
    given: Given<'_>,
    expected: &str,
    parse: impl Fn(&str) -> Result<T, units::NoQuantity>,
) -> Result<T, Wrong> {
    match given.kind {
        ValueKind::String(text) => parse(text).map_err(|why| Wrong::Unexpected {
            found: format!("{text:?} ({why})"),
            expected: expected.to_owned(),
            nearest: None,
        }),
        _ => Err(unexpected(given, expected)),
    }
}

/// The word `off`, which is `None`, or another kind.
pub(super) fn or_off<T>(
    kind: impl Fn(Given<'_>) -> Result<T, Wrong>,
) -> impl Fn(Given<'_>) -> Result<Option<T>, Wrong> {
    or_word(OFF, kind)
}

/// A word that is `None`, or another kind.
pub(super) fn or_word<T>(
    word: &'static str,
    kind: impl Fn(Given<'_>) -> Result<T, Wrong>,
) -> impl Fn(Given<'_>) -> Result<Option<T>, Wrong> {
    move |given| match given.kind {
        ValueKind::String(text) if text == word => Ok(None),
        _ => kind(given).map(Some).map_err(|wrong| match wrong {
            Wrong::Unexpected { found, expected, nearest } if !expected.contains(word) => {
                Wrong::Unexpected { found, expected: format!("{expected}, or \"{word}\""), nearest }
            }
            other => other,
        }),
    }
}

/// The word for a value of a setting that has few.
pub(super) fn word<T: Word>(given: Given<'_>) -> Result<T, Wrong> {
    let words = T::ALL.iter().map(|value| (value.word(), *value)).collect::<Vec<_>>();
    one_of(&words)(given)
}

/// One of these words.
pub(super) fn one_of<T: Clone>(words: &[(&'static str, T)]) -> impl Fn(Given<'_>) -> Result<T, Wrong> {
    move |given| {
        let known = || words.iter().map(|(word, _)| *word);
        let expected = || known().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        match given.kind {
            ValueKind::String(text) => {
                words.iter().find(|(word, _)| word == text).map(|(_, value)| value.clone()).ok_or_else(|| {
                    Wrong::Unexpected {
                        found: format!("{text:?}"),
                        expected: format!("one of {}", expected()),
                        nearest: nearest(text, known()),
                    }
                })
            }
            _ => Err(unexpected(given, &format!("one of {}", expected()))),
        }
    }
}

/// A list of another kind; where there is only text, its elements are separated by commas.
pub(super) fn list<T>(
    kind: impl Fn(Given<'_>) -> Result<T, Wrong>,
) -> impl Fn(Given<'_>) -> Result<Vec<T>, Wrong> {
    move |given| match given.kind {
        ValueKind::Array(elements) => elements
            .iter()
            .map(|Value { kind: element, .. }| kind(Given { kind: element, ..given }))
            .collect(),
        ValueKind::String(text) if given.text_only => text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| kind(Given { kind: &ValueKind::String(part.to_owned()), ..given }))
            .collect(),
        _ => Err(unexpected(given, "a list, such as [\"a\", \"b\"]")),
    }
}

/// One value of another kind, or a list of at least one.
pub(super) fn one_or_more<T>(
    kind: impl Fn(Given<'_>) -> Result<T, Wrong>,
) -> impl Fn(Given<'_>) -> Result<Vec<T>, Wrong> {
    move |given| {
        let several = match given.kind {
            ValueKind::Array(_) => true,
            ValueKind::String(_) => given.text_only,
            _ => false,
        };
        let values = if several { list(&kind)(given)? } else { vec![kind(given)?] };
        if values.is_empty() { Err(unexpected(given, "one or more values")) } else { Ok(values) }
    }
}

/// An IP address and a port.
pub(super) fn address(given: Given<'_>) -> Result<SocketAddr, Wrong> {
    parsed(given, "an IP address and a port, such as \"127.0.0.1:8080\" or \"[::]:8080\"", |text| {
        text.parse().ok()
    })
}

/// A network: an IP address and the number of leading bits that count.
pub(super) fn network(given: Given<'_>) -> Result<Network, Wrong> {
    parsed(given, "a network or an address, such as \"10.0.0.0/8\" or \"::1\"", |text| {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().ok()?)),
            None => (text, None),
        };
        let address = address.parse::<IpAddr>().ok()?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(width);
        if bits > width {
            return None;
        }
        // An IPv4 network in the clothes of IPv6 is an IPv4 network.
        let canonical = address.to_canonical();
        let bits = if canonical.is_ipv4() && address.is_ipv6() { bits.checked_sub(96)? } else { bits };
        Some(Network { address: canonical, bits })
    })
}

/// The scheme, host and port of an upstream, as a URL without path.
pub(super) fn origin(given: Given<'_>) -> Result<Origin, Wrong> {
    let expected = "a URL with http or https and without a path, such as \"http://127.0.0.1:3000\"";
    parsed(given, expected, |text| {
        if text.contains('#') {
            return None;
        }
        let uri = text.parse::<Uri>().ok()?;
        let https = match uri.scheme_str()? {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let authority = uri.authority()?;
        let nothing_else = matches!(uri.path_and_query()?.as_str(), "/" | "");
        if !nothing_else || authority.as_str().contains('@') {
            return None;
        }
        let port = match &authority.as_str()[authority.host().len()..] {
            "" => Some(if https { 443 } else { 80 }),
            port => port.strip_prefix(':')?.parse().ok().filter(|port| *port != 0),
        }?;
        let host = bare(authority.host())?;
        Some(Origin { https, host, port })
    })
}

/// A host without brackets around IPv6, in lower case.
fn bare(host: &str) -> Option<String> {
    match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().ok().map(|ip| ip.to_string()),
        None => (!host.is_empty()).then(|| host.to_ascii_lowercase()),
    }
}

/// A host and, perhaps, a port: the value of a `Host` field.
pub(super) fn authority(given: Given<'_>) -> Result<String, Wrong> {
    parsed(given, "a host, perhaps with a port, such as \"example.com\"", |text| {
        let authority = text.parse::<Authority>().ok()?;
        (!authority.host().is_empty() && !text.contains('@')).then(|| text.to_owned())
    })
}

/// A host without a port.
pub(super) fn host(given: Given<'_>) -> Result<String, Wrong> {
    parsed(given, "a host without scheme and port, such as \"example.com\"", |text| {
        let authority = text.parse::<Authority>().ok()?;
        let odd = text.contains(['@', '*']) || authority.host() != text;
        (!odd && !text.is_empty()).then(|| text.to_ascii_lowercase())
    })
}

/// A path prefix of whole segments; one slash at its end makes no difference.
pub(super) fn path_prefix(given: Given<'_>) -> Result<String, Wrong> {
    parsed(given, "a path that begins with a slash, such as \"/\" or \"/api\"", |text| {
        let prefix = if text == "/" { text } else { text.strip_suffix('/').unwrap_or(text) };
        let plain = prefix.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#'));
        let mut segments = prefix.strip_prefix('/')?.split('/');
        let straight = text == "/" || segments.all(|segment| !matches!(segment, "" | "." | ".."));
        (plain && straight).then(|| prefix.to_owned())
    })
}

/// The name of a header field.
pub(super) fn field_name(given: Given<'_>) -> Result<HeaderName, Wrong> {
    parsed(given, "the name of a header field, such as \"accept-language\"", |text| text.parse().ok())
}

/// A token (RFC 9110 §5.6.2).
pub(super) fn token(given: Given<'_>) -> Result<String, Wrong> {
    let expected = "a token: letters, digits and !#$%&'*+-.^_`|~";
    parsed(given, expected, |text| is_token(text).then(|| text.to_owned()))
}

/// A token that begins with a letter, which makes it a token of structured fields too.
pub(super) fn pseudonym(given: Given<'_>) -> Result<String, Wrong> {
    let expected = "a token that begins with a letter";
    let letter = |text: &str| text.starts_with(|first: char| first.is_ascii_alphabetic());
    parsed(given, expected, |text| (letter(text) && is_token(text)).then(|| text.to_owned()))
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// A secret: it is never shown.
pub(super) fn secret(given: Given<'_>) -> Result<String, Wrong> {
    match given.kind {
        ValueKind::String(text) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic()) => {
            Ok(text.clone())
        }
        _ => Err(Wrong::Unexpected {
            found: "something else, which is not shown".into(),
            expected: "a text of visible ASCII characters".into(),
            nearest: None,
        }),
    }
}

/// A text in the form that a function reads.
pub(super) fn parsed<T>(
    given: Given<'_>,
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, Wrong> {
    match given.kind {
        ValueKind::String(text) => parse(text).ok_or_else(|| unexpected(given, expected)),
        _ => Err(unexpected(given, expected)),
    }
}

/// The complaint that this value is not what was expected.
pub(super) fn unexpected(given: Given<'_>, expected: &str) -> Wrong {
    Wrong::Unexpected { found: describe(given.kind), expected: expected.to_owned(), nearest: None }
}
