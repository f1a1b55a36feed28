//! Durations and sizes as people write them: a whole number and its unit, `30s` or `256MiB`.

use std::time::Duration;

/// What a duration looks like, for messages.
pub(super) const DURATION: &str = "a duration with its unit, such as \"30s\", \"250ms\", \"5m\" or \"1h30m\"";

/// What a size looks like, for messages.
pub(super) const SIZE: &str = "a size with its unit, such as \"64KiB\", \"256MiB\" or \"1GB\"";

/// The longest duration that may be configured: long enough to mean *for ever*, short enough to be added to
/// any point in time.
pub(super) const LONGEST: Duration = Duration::from_hours(3650 * 24);

/// Milliseconds in each unit of time, the longest first.
const TIMES: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Bytes in each unit of size, the largest first.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1000),
    ("B", 1),
];

/// Why a text is no quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoQuantity {
    /// A number without a unit.
    #[error("the unit is missing")]
    Unit,
    /// A unit that does not exist.
    #[error("the unit is unknown")]
    UnknownUnit,
    /// Not a number followed by a unit.
    #[error("it is not a whole number followed by a unit")]
    Shape,
    /// More than can be configured.
    #[error("it is too large")]
    TooLarge,
}

/// Reads a duration: one or more whole numbers, each with its unit (`d`, `h`, `m`, `s`, `ms`), the longest
/// unit first.
pub fn parse_duration(text: &str) -> Result<Duration, NoQuantity> {
    let mut rest = text.trim();
    let mut milliseconds = 0_u64;
    let mut previous = u64::MAX;
    loop {
        let (number, unit, after) = split(rest)?;
        let factor = factor(&TIMES, unit, str::eq)?;
        if factor >= previous {
            return Err(NoQuantity::Shape);
        }
        previous = factor;
        let part = number.checked_mul(factor).ok_or(NoQuantity::TooLarge)?;
        milliseconds = milliseconds.checked_add(part).ok_or(NoQuantity::TooLarge)?;
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    let duration = Duration::from_millis(milliseconds);
    if duration > LONGEST { Err(NoQuantity::TooLarge) } else { Ok(duration) }
}

/// Reads a size: a whole number and `B`, `KB`, `KiB`, `MB`, `MiB`, `GB`, `GiB`, `TB` or `TiB`.
pub fn parse_size(text: &str) -> Result<u64, NoQuantity> {
    let (number, unit, after) = split(text.trim())?;
    if !after.is_empty() {
        return Err(NoQuantity::Shape);
    }
    let factor = factor(&SIZES, unit, str::eq_ignore_ascii_case)?;
    // TOML and most counters know signed 64-bit numbers only.
    number.checked_mul(factor).filter(|bytes| i64::try_from(*bytes).is_ok()).ok_or(NoQuantity::TooLarge)
}

/// Writes a duration so that [`parse_duration`] reads the same again, to the millisecond.
pub(super) fn duration(duration: Duration) -> String {
    let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if milliseconds == 0 {
        return "0s".into();
    }
    exactly(&TIMES, milliseconds)
}

/// Writes a size so that [`parse_size`] reads the same again.
pub(super) fn size(bytes: u64) -> String {
    if bytes == 0 { "0B".into() } else { exactly(&SIZES, bytes) }
}

/// The amount in the largest unit of which it is a multiple.
fn exactly(units: &[(&str, u64)], amount: u64) -> String {
    units
        .iter()
        .find(|(_, factor)| amount.is_multiple_of(*factor))
        .map_or_else(|| amount.to_string(), |(unit, factor)| format!("{}{unit}", amount / factor))
}

/// Takes a number and its unit from the front.
fn split(text: &str) -> Result<(u64, &str, &str), NoQuantity> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    if number.is_empty() {
        return Err(NoQuantity::Shape);
    }
    let rest = rest.trim_start();
    let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    let (unit, after) = rest.split_at(letters);
    if unit.is_empty() {
        return Err(if after.is_empty() { NoQuantity::Unit } else { NoQuantity::Shape });
    }
    Ok((number.parse().map_err(|_| NoQuantity::TooLarge)?, unit, after.trim_start()))
}

fn factor(units: &[(&str, u64)], unit: &str, same: impl Fn(&str, &str) -> bool) -> Result<u64, NoQuantity> {
    units.iter().find(|(name, _)| same(name, unit)).map(|(_, factor)| *factor).ok_or(NoQuantity::UnknownUnit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_duration(text: &str, expected: Result<Duration, NoQuantity>) {
        assert_eq!(parse_duration(text), expected, "{text}");
    }

    #[test]
    fn durations_are_whole_numbers_with_units() {
        check_duration("30s", Ok(Duration::from_secs(30)));
        check_duration("250ms", Ok(Duration::from_millis(250)));
        check_duration("5 m", Ok(Duration::from_secs(300)));
        check_duration("1h30m", Ok(Duration::from_secs(5400)));
        check_duration("1d 1ms", Ok(Duration::from_millis(86_400_001)));
        check_duration("0s", Ok(Duration::ZERO));
        check_duration("0h30m", Ok(Duration::from_secs(1800)));
    }

    #[test]
    fn what_is_no_duration_says_why() {
        check_duration("30", Err(NoQuantity::Unit));
        check_duration("", Err(NoQuantity::Shape));
        check_duration("s", Err(NoQuantity::Shape));
        check_duration("-1s", Err(NoQuantity::Shape));
        check_duration("1.5s", Err(NoQuantity::Shape));
        check_duration("1s1h", Err(NoQuantity::Shape));
        check_duration("1s 1s", Err(NoQuantity::Shape));
        check_duration("1M", Err(NoQuantity::UnknownUnit));
        check_duration("3 fortnights", Err(NoQuantity::UnknownUnit));
        check_duration("3651d", Err(NoQuantity::TooLarge));
        check_duration("99999999999999999999s", Err(NoQuantity::TooLarge));
        check_duration("18446744073709551615d", Err(NoQuantity::TooLarge));
    }

    #[test]
    fn sizes_are_whole_numbers_with_decimal_or_binary_units() {
        assert_eq!(parse_size("256MiB"), Ok(256 << 20));
        assert_eq!(parse_size("1GB"), Ok(1_000_000_000));
        assert_eq!(parse_size("64 kib"), Ok(64 << 10));
        assert_eq!(parse_size("0B"), Ok(0));
        assert_eq!(parse_size("1024"), Err(NoQuantity::Unit));
        assert_eq!(parse_size("1.5GiB"), Err(NoQuantity::Shape));
        assert_eq!(parse_size("1GiB1MiB"), Err(NoQuantity::Shape));
        assert_eq!(parse_size("1PiB"), Err(NoQuantity::UnknownUnit));
        assert_eq!(parse_size("16777216TiB"), Err(NoQuantity::TooLarge));
    }

    #[test]
    fn what_is_written_reads_the_same() {
        for milliseconds in [0, 1, 250, 1000, 1500, 75_000, 5_400_000, 86_400_000, 86_400_001] {
            let expected = Duration::from_millis(milliseconds);
            assert_eq!(parse_duration(&duration(expected)), Ok(expected));
        }
        for bytes in [0, 1, 1000, 1024, 1536, 65_536, 1_000_000_000, (256 << 20) + 1] {
            assert_eq!(parse_size(&size(bytes)), Ok(bytes));
        }
        assert_eq!(duration(Duration::from_secs(75)), "75s");
        assert_eq!(size(64 << 10), "64KiB");
    }
}
