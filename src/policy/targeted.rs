//! Targeted cache control (RFC 9213): `CDN-Cache-Control` and its kin, and `Surrogate-Control`.

use std::time::Duration;

use http::HeaderName;
use sfv::{BareItem, Dictionary, ListEntry, Parser, Version};

use super::directives::{DELTA_SECONDS_MAX, ResponseDirectives, Scope, delta_seconds};
use super::{Fields, Rules};

const SURROGATE_CONTROL: HeaderName = HeaderName::from_static("surrogate-control");

/// The directives that govern a response, and where they come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controls {
    /// What they say.
    pub directives: ResponseDirectives,
    /// Which field said it.
    pub source: Source,
}

/// Which field governs a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `Cache-Control`, with `Expires` beside it.
    CacheControl,
    /// A field of the target list: RFC 9213 §2.2 says that `Cache-Control` and `Expires` MUST be ignored.
    Targeted,
}

/// What a targeted field says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Targeted {
    /// Its directives.
    pub directives: ResponseDirectives,
    /// Whether each directive that is known has a value of its type.
    pub is_sound: bool,
}

impl Controls {
    /// The directives of the first field of the target list that is valid and not empty, or else those of
    /// `Cache-Control` (RFC 9213 §2.2).
    ///
    /// A value of the wrong type is no error of parsing. But whoever took the field for invalid would go by what is behind
    /// it, so that its restrictions count as well.
    pub fn of(headers: &impl Fields, rules: &Rules) -> Self {
        Self::first(headers, &rules.targeted_fields, rules)
    }

    fn first(headers: &impl Fields, names: &[HeaderName], rules: &Rules) -> Self {
        let [name, behind @ ..] = names else { return Self::untargeted(headers, rules) };
        let Some(Targeted { mut directives, is_sound }) = targeted(headers, name) else {
            return Self::first(headers, behind, rules);
        };
        if !is_sound {
            directives.restrict_by(Self::first(headers, behind, rules).directives);
        }
        Self { directives, source: Source::Targeted }
    }

    fn untargeted(headers: &impl Fields, rules: &Rules) -> Self {
        if rules.surrogate_control
            && let Some(directives) = surrogate(headers)
        {
            return Self { directives, source: Source::Targeted };
        }
        Self { directives: ResponseDirectives::of(headers), source: Source::CacheControl }
    }
}

/// Reads one targeted field; `None` if it is absent, empty or not a valid Dictionary: "that field MUST be
/// ignored by the cache" (RFC 9213 §2.1).
pub fn targeted(headers: &impl Fields, name: &HeaderName) -> Option<Targeted> {
    let text = joined(headers, name)?;
    let members = Parser::new(&text).with_version(Version::Rfc8941).parse::<Dictionary>().ok()?;
    if members.is_empty() {
        return None;
    }
    let (mut directives, mut is_sound) = (ResponseDirectives::default(), true);
    for (name, value) in &members {
        // Parameters "are to be ignored" (§2.1).
        let value = match value {
            ListEntry::Item(item) => Some(&item.bare_item),
            ListEntry::InnerList(_) => None,
        };
        is_sound &= apply(&mut directives, name.as_str(), value);
    }
    Some(Targeted { directives, is_sound })
}

/// Reads `Surrogate-Control` (the Edge Architecture note): the syntax of `Cache-Control`, and
/// `max-age=fresh+stale` for a lifetime with a grace.
fn surrogate(headers: &impl Fields) -> Option<ResponseDirectives> {
    let mut directives = ResponseDirectives::of_lines(headers.lines(&SURROGATE_CONTROL));
    for line in headers.lines(&SURROGATE_CONTROL) {
        for member in line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            let Some((fresh, grace)) = graced_max_age(member) else { continue };
            directives.max_age = Some(fresh);
            directives.stale_while_revalidate = Some(grace);
            directives.stale_if_error = Some(grace);
        }
    }
    (directives != ResponseDirectives::default()).then_some(directives)
}

fn graced_max_age(member: &[u8]) -> Option<(Duration, Duration)> {
    let argument = member.split_at_checked(8).filter(|(name, _)| name.eq_ignore_ascii_case(b"max-age="))?.1;
    let plus = argument.iter().position(|byte| *byte == b'+')?;
    Some((delta_seconds(&argument[..plus])?, delta_seconds(&argument[plus + 1..])?))
}

/// All lines of a field as one value, as RFC 9651 §4.2 has it; `None` where there is none.
pub(super) fn joined(headers: &impl Fields, name: &HeaderName) -> Option<Vec<u8>> {
    let mut lines = headers.lines(name);
    let mut text = lines.next()?.to_vec();
    for line in lines {
        text.extend_from_slice(b", ");
        text.extend_from_slice(line);
    }
    Some(text)
}

/// Takes one directive. A value of the wrong type counts as invalid where it would permit, and as present
/// where it restricts. Returns whether it is of the right type.
fn apply(directives: &mut ResponseDirectives, name: &str, value: Option<&BareItem>) -> bool {
    let is_true = value.and_then(BareItem::as_boolean) == Some(true);
    let seconds = seconds(value);
    let lifetime = seconds.unwrap_or_default();
    match name {
        "max-age" => directives.max_age = Some(lifetime),
        "s-maxage" => directives.s_maxage = Some(lifetime),
        "stale-while-revalidate" => directives.stale_while_revalidate = Some(lifetime),
        "stale-if-error" => directives.stale_if_error = Some(lifetime),
        "no-cache" => directives.no_cache = scope(value),
        "private" => directives.private = scope(value),
        "no-store" => directives.no_store = true,
        "must-understand" => directives.must_understand = is_true,
        "must-revalidate" if is_true => directives.must_revalidate = true,
        // Restricts like the directive it resembles, without its permission of §3.5.
        "must-revalidate" | "proxy-revalidate" => directives.proxy_revalidate = true,
        "public" => directives.public = is_true,
        _ => return true,
    }
    match name {
        "max-age" | "s-maxage" | "stale-while-revalidate" | "stale-if-error" => seconds.is_some(),
        "no-cache" | "private" => is_true || value.is_some_and(|value| value.as_string().is_some()),
        _ => is_true,
    }
}

/// An Integer that is not negative; nothing else (§2.1: "a max-age with a decimal value" is not to be coerced).
fn seconds(value: Option<&BareItem>) -> Option<Duration> {
    let number = value.and_then(BareItem::as_integer).map(i64::from)?;
    u64::try_from(number).ok().map(|number| Duration::from_secs(number.min(DELTA_SECONDS_MAX)))
}

fn scope(value: Option<&BareItem>) -> Scope {
    value.and_then(BareItem::as_string).map_or(Scope::Everything, |list| Scope::of_list(list.as_str()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::fields;
    use super::*;

    /// The lifetime that governs, and whether a targeted field gave it.
    #[track_caller]
    fn check(lines: &str, max_age: Option<u64>, source: Source) {
        let controls = Controls::of(&fields(lines), &Rules::default());
        assert_eq!(
            (controls.directives.max_age, controls.source),
            (max_age.map(Duration::from_secs), source),
            "{lines}"
        );
    }

    #[test]
    fn rfc9213_2_2_must_select_the_first_valid_field_of_the_target_list() {
        check("Cache-Control: max-age=1", Some(1), Source::CacheControl);
        check("CDN-Cache-Control: max-age=2\nCache-Control: max-age=1", Some(2), Source::Targeted);
        check("Cache-Control: no-store\nCDN-Cache-Control: max-age=2", Some(2), Source::Targeted);
        check("CDN-Cache-Control: max-age=2\nForebay-Cache-Control: max-age=3", Some(3), Source::Targeted);
        check("CDN-Cache-Control: foo\nCache-Control: max-age=1", None, Source::Targeted);
        check("Other-Cache-Control: max-age=9\nCache-Control: max-age=1", Some(1), Source::CacheControl);
        check("CDN-Cache-Control: foo\nCDN-Cache-Control: max-age=2", Some(2), Source::Targeted);
    }

    #[test]
    fn rfc9213_2_1_must_ignore_a_field_that_is_empty_or_does_not_parse() {
        for value in ["", "max-age=10, &&&", "Max-Age=10", "max-age='10'", "max-age=", "max-age=10;;", "a b"]
        {
            check(
                &format!("CDN-Cache-Control: {value}\nCache-Control: max-age=1"),
                Some(1),
                Source::CacheControl,
            );
        }
        let lines = "Forebay-Cache-Control: &&\nCDN-Cache-Control: max-age=2\nCache-Control: max-age=1";
        check(lines, Some(2), Source::Targeted);
    }

    #[test]
    fn rfc9213_2_1_values_of_the_wrong_type_are_not_coerced() {
        for value in ["10.0", "\"10\"", "ten", "-1", "?1", "(10)", ":MTA=:"] {
            check(&format!("CDN-Cache-Control: max-age={value}"), Some(0), Source::Targeted);
        }
        check("CDN-Cache-Control: max-age=10;a=b", Some(10), Source::Targeted);
        check("CDN-Cache-Control: max-age=99999999999", Some(DELTA_SECONDS_MAX), Source::Targeted);
        check("CDN-Cache-Control: max-age=1, max-age=10", Some(10), Source::Targeted);
    }

    #[test]
    fn what_is_behind_a_field_with_such_a_value_restricts_as_well() {
        let of = |first: &str, behind: &str| {
            let lines = format!("Forebay-Cache-Control: {first}\n{behind}");
            Controls::of(&fields(&lines), &Rules::default()).directives
        };
        for flawed in [
            "max-age=ten",
            "s-maxage=-1",
            "stale-if-error=(1)",
            "public=1",
            "no-store=?0",
            "private=1",
            "must-revalidate=a",
        ] {
            let found = of(flawed, "Cache-Control: no-store, no-cache, max-age=9, must-revalidate, public");
            assert!(found.no_store && found.no_cache.is_everything() && found.proxy_revalidate, "{flawed}");
            assert!(!found.public && !found.must_revalidate && found.max_age.is_none_or(|age| age.is_zero()));
            assert!(
                of(flawed, "CDN-Cache-Control: private\nCache-Control: max-age=9").private.is_everything()
            );
        }
        for sound in ["max-age=10", "foo=1, max-age=10;a=1", "private=\"x-a\"", "no-cache, public", "max-age"]
        {
            let found = of(sound, "Cache-Control: no-store");
            assert_eq!(found.no_store, sound == "max-age", "{sound}");
        }
        // What is behind may say no-store to those that do not understand must-understand.
        let found = of("must-understand, no-store, max-age=a", "Cache-Control: no-store");
        assert!(found.no_store && !found.must_understand);
    }

    #[test]
    fn rfc9213_2_2_must_implement_the_five_directives() {
        let of = |line: &str| Controls::of(&fields(line), &Rules::default()).directives;
        assert!(of("CDN-Cache-Control: must-revalidate").must_revalidate);
        assert!(of("CDN-Cache-Control: no-store").no_store);
        assert!(of("CDN-Cache-Control: no-cache").no_cache.is_everything());
        assert!(of("CDN-Cache-Control: private").private.is_everything());
        assert!(of("CDN-Cache-Control: private=?0").private.is_everything());
        assert_eq!(of(r#"CDN-Cache-Control: private="x-a""#).private, Scope::of_list("x-a"));
        assert!(!of("CDN-Cache-Control: public=1").public);
    }

    #[test]
    fn surrogate_control_is_read_by_setting() {
        let headers =
            fields("Surrogate-Control: max-age=30+60, content=\"ESI/1.0\"\nCache-Control: no-store");
        assert!(Controls::of(&headers, &Rules::default()).directives.no_store);
        let rules = Rules { surrogate_control: true, ..Rules::default() };
        let controls = Controls::of(&headers, &rules);
        assert_eq!(controls.source, Source::Targeted);
        assert_eq!(controls.directives.max_age, Some(Duration::from_secs(30)));
        assert_eq!(controls.directives.stale_if_error, Some(Duration::from_mins(1)));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(line in "[ -~]{0,60}") {
            let _ = Controls::of(&fields(&format!("CDN-Cache-Control: {line}")), &Rules::default());
        }
    }
}
