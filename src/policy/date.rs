//! HTTP dates (RFC 9110 §5.6.7): one strict grammar for each of the three forms.
//!
//! Names are compared without regard to case, and a name of the wrong day is no reason to refuse a date: it
//! carries no information of its own. Everything else must be exactly as the grammar says, because a date
//! that is misread makes a response fresh for longer than its author meant.

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use http::header::DATE;

use super::Fields;

/// Reads an HTTP date in any of the three forms.
///
/// `now` decides the century of a two-digit year: a time that would lie more than 50 years ahead is meant to
/// lie in the past.
pub fn parse(text: &[u8], now: SystemTime) -> Option<SystemTime> {
    imf_fixdate(text).or_else(|| rfc850_date(text, now)).or_else(|| asctime_date(text))
}

/// Reads the date of a field value.
pub fn parse_value(value: &HeaderValue, now: SystemTime) -> Option<SystemTime> {
    parse(value.as_bytes(), now)
}

/// The time of the `Date` field, if it has one that can be read.
pub fn of(headers: &impl Fields, now: SystemTime) -> Option<SystemTime> {
    parse(headers.first(&DATE)?, now)
}

/// The time without its fraction of a second, as a date would tell it.
pub fn whole_seconds(time: SystemTime) -> SystemTime {
    let fraction = time.duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    time.checked_sub(Duration::from_nanos(fraction.into())).unwrap_or(time)
}

/// Writes a time as an IMF-fixdate, the only form that may be sent. Fractions of a second are dropped.
///
/// Times before 1970 and after 9999 are written as the nearest of these.
pub fn format(time: SystemTime) -> HeaderValue {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().min(SECONDS_MAX);
    let days = seconds / DAY_SECONDS;
    let (year, month, day) = civil(days);
    let second_of_day = seconds % DAY_SECONDS;
    let mut text = *EPOCH;
    text[..3].copy_from_slice(WEEKDAYS[usize::try_from((days + 3) % 7).unwrap_or_default()].as_bytes());
    put(&mut text[5..7], day);
    text[8..11].copy_from_slice(MONTHS[month].as_bytes());
    put(&mut text[12..16], year);
    put(&mut text[17..19], second_of_day / 3600);
    put(&mut text[20..22], second_of_day / 60 % 60);
    put(&mut text[23..25], second_of_day % 60);
    HeaderValue::from_bytes(&text).expect("letters, digits, and what stands between them, are a value")
}

thread_local! {
    /// The second that was written last, and its text.
    static LAST: Cell<(u64, [u8; 29])> = const { Cell::new((0, *EPOCH)) };
}

/// The same, as bytes. It is written once a second.
pub fn cached(time: SystemTime) -> [u8; 29] {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (last, text) = LAST.get();
    if last == seconds {
        return text;
    }
    let mut text = *EPOCH;
    text.copy_from_slice(format(time).as_bytes());
    LAST.set((seconds, text));
    text
}

/// The beginning of time: where what is written of another stands, too.
const EPOCH: &[u8; 29] = b"Thu, 01 Jan 1970 00:00:00 GMT";

/// Writes the last digits of a number.
fn put(digits: &mut [u8], mut number: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789"[usize::try_from(number % 10).unwrap_or_default()];
        number /= 10;
    }
}

/// Writes a time in UTC to the millisecond, for people and programs beside HTTP (RFC 3339 §5.6). Its bounds are those of
/// [`format()`].
pub fn rfc3339(time: SystemTime) -> String {
    let elapsed = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = elapsed.as_secs().min(SECONDS_MAX);
    let (year, month, day) = civil(seconds / DAY_SECONDS);
    let second_of_day = seconds % DAY_SECONDS;
    format!(
        "{year:04}-{:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        month + 1,
        second_of_day / 3600,
        second_of_day / 60 % 60,
        second_of_day % 60,
        elapsed.subsec_millis(),
    )
}

const DAY_SECONDS: u64 = 86_400;
/// 9999-12-31 23:59:59: the last time that has four digits for its year.
const SECONDS_MAX: u64 = 253_402_300_799;
const WEEKDAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const WEEKDAYS_LONG: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// What is left to read of a date.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn expect(&mut self, text: &str) -> Option<()> {
        self.take(text.len())?.eq_ignore_ascii_case(text.as_bytes()).then_some(())
    }

    fn digits(&mut self, count: usize) -> Option<u64> {
        self.take(count)?
            .iter()
            .try_fold(0, |number, byte| byte.is_ascii_digit().then(|| number * 10 + u64::from(byte - b'0')))
    }

    fn one_of(&mut self, names: &[&str]) -> Option<usize> {
        names.iter().position(|name| {
            let found =
                self.0.get(..name.len()).is_some_and(|text| text.eq_ignore_ascii_case(name.as_bytes()));
            if found {
                self.0 = &self.0[name.len()..];
            }
            found
        })
    }

    /// `hour ":" minute ":" second`, as seconds. A leap second is a second.
    fn time_of_day(&mut self) -> Option<u64> {
        let hour = self.digits(2)?;
        self.expect(":")?;
        let minute = self.digits(2)?;
        self.expect(":")?;
        let second = self.digits(2)?;
        (hour < 24 && minute < 60 && second <= 60).then_some(hour * 3600 + minute * 60 + second)
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn imf_fixdate(text: &[u8]) -> Option<SystemTime> {
    let mut rest = Rest(text);
    rest.one_of(&WEEKDAYS)?;
    rest.expect(", ")?;
    let day = rest.digits(2)?;
    rest.expect(" ")?;
    let month = rest.one_of(&MONTHS)?;
    rest.expect(" ")?;
    let year = rest.digits(4)?;
    rest.expect(" ")?;
    let second_of_day = rest.time_of_day()?;
    rest.expect(" GMT")?;
    rest.end()?;
    instant(year, month, day, second_of_day)
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`
fn rfc850_date(text: &[u8], now: SystemTime) -> Option<SystemTime> {
    let mut rest = Rest(text);
    rest.one_of(&WEEKDAYS_LONG)?;
    rest.expect(", ")?;
    let day = rest.digits(2)?;
    rest.expect("-")?;
    let month = rest.one_of(&MONTHS)?;
    rest.expect("-")?;
    let year_of_century = rest.digits(2)?;
    rest.expect(" ")?;
    let second_of_day = rest.time_of_day()?;
    rest.expect(" GMT")?;
    rest.end()?;
    // §5.6.7: "MUST interpret a timestamp that appears to be more than 50 years in the future as representing
    // the most recent year in the past that had the same last two digits".
    let (this_year, ..) = civil(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / DAY_SECONDS);
    let year = this_year - this_year % 100 + year_of_century;
    let year = if year > this_year + 50 { year - 100 } else { year };
    let found = instant(year, month, day, second_of_day);
    if year == this_year + 50 && found.is_some_and(|time| time > fifty_years_after(now)) {
        return instant(year - 100, month, day, second_of_day);
    }
    found
}

/// `Sun Nov  6 08:49:37 1994`
fn asctime_date(text: &[u8]) -> Option<SystemTime> {
    let mut rest = Rest(text);
    rest.one_of(&WEEKDAYS)?;
    rest.expect(" ")?;
    let month = rest.one_of(&MONTHS)?;
    rest.expect(" ")?;
    let day = if rest.0.first() == Some(&b' ') {
        rest.expect(" ")?;
        rest.digits(1)?
    } else {
        rest.digits(2)?
    };
    rest.expect(" ")?;
    let second_of_day = rest.time_of_day()?;
    rest.expect(" ")?;
    let year = rest.digits(4)?;
    rest.end()?;
    instant(year, month, day, second_of_day)
}

fn fifty_years_after(now: SystemTime) -> SystemTime {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (year, month, day) = civil(since / DAY_SECONDS);
    // The 29th of February has no namesake 50 years on; the day before is as good.
    instant(year + 50, month, day, since % DAY_SECONDS)
        .or_else(|| instant(year + 50, month, day - 1, since % DAY_SECONDS))
        .unwrap_or(now)
}

/// The instant of a day of the Gregorian calendar; `month` counts from zero.
fn instant(year: u64, month: usize, day: u64, second_of_day: u64) -> Option<SystemTime> {
    if day == 0 || day > days_of_month(year, month) {
        return None;
    }
    let days_of_year: u64 = (0..month).map(|earlier| days_of_month(year, earlier)).sum::<u64>() + day - 1;
    let days = days_before_year(year) + days_of_year;
    let epoch = days_before_year(1970);
    if let Some(since) = days.checked_sub(epoch) {
        UNIX_EPOCH.checked_add(Duration::from_secs(since * DAY_SECONDS + second_of_day))
    } else {
        UNIX_EPOCH.checked_sub(Duration::from_secs((epoch - days) * DAY_SECONDS - second_of_day))
    }
}

/// Days from the first of January of the year 0 to that of `year`.
fn days_before_year(year: u64) -> u64 {
    let Some(last) = year.checked_sub(1) else { return 0 };
    // The year 0 is a leap year.
    year * 365 + last / 4 - last / 100 + last / 400 + 1
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of_month(year: u64, month: usize) -> u64 {
    match month {
        1 if is_leap(year) => 29,
        1 => 28,
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

/// Year, month (from zero) and day of the month of a day counted from 1970-01-01.
fn civil(days: u64) -> (u64, usize, u64) {
    let days = days + days_before_year(1970);
    // 146,097 days are 400 years: the estimate is at most one year off.
    let mut year = days * 400 / 146_097;
    while days_before_year(year + 1) <= days {
        year += 1;
    }
    while days_before_year(year) > days {
        year -= 1;
    }
    let mut day = days - days_before_year(year);
    let mut month = 0;
    while day >= days_of_month(year, month) {
        day -= days_of_month(year, month);
        month += 1;
    }
    (year, month, day + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2026-01-15 12:00:00.
    const NOW: u64 = 1_768_478_400;

    #[track_caller]
    fn check(text: &str, seconds: Option<i64>) {
        let now = UNIX_EPOCH + Duration::from_secs(NOW);
        let found = parse(text.as_bytes(), now).map(|time| match time.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_secs()).unwrap(),
            Err(before) => -i64::try_from(before.duration().as_secs()).unwrap(),
        });
        assert_eq!(found, seconds, "{text:?}");
    }

    #[test]
    fn rfc9110_5_6_7_must_accept_all_three_forms() {
        check("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777));
        check("Sunday, 06-Nov-94 08:49:37 GMT", Some(784_111_777));
        check("Sun Nov  6 08:49:37 1994", Some(784_111_777));
        check("Sun Nov 16 08:49:37 1994", Some(784_975_777));
    }

    #[test]
    fn rfc3339_5_6_is_written_in_utc_to_the_millisecond() {
        let time = UNIX_EPOCH + Duration::from_millis(784_111_777_045);
        assert_eq!(rfc3339(time), "1994-11-06T08:49:37.045Z");
        assert_eq!(rfc3339(UNIX_EPOCH), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(1_709_164_800)), "2024-02-29T00:00:00.000Z");
    }

    #[test]
    fn names_are_matched_without_regard_to_case() {
        check("sun, 06 nov 1994 08:49:37 gmt", Some(784_111_777));
        check("SUN, 06 NOV 1994 08:49:37 GMT", Some(784_111_777));
        check("sUNDAY, 06-nOV-94 08:49:37 GMT", Some(784_111_777));
        check("SUN NOV  6 08:49:37 1994", Some(784_111_777));
    }

    #[test]
    fn a_wrong_weekday_is_no_reason_to_refuse() {
        check("Thu Nov  6 08:49:37 1994", Some(784_111_777));
        check("Mon, 06 Nov 1994 08:49:37 GMT", Some(784_111_777));
    }

    #[test]
    fn what_is_not_exactly_the_grammar_is_refused() {
        for text in [
            "",
            "0",
            "-1",
            "never",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 08:49:37 AEST",
            "Sun, 06 Nov 1994 08:49:37 +0000",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Nov 94 08:49:37 GMT",
            "Sun, 06-Nov-1994 08:49:37 GMT",
            "Sun, 06-Nov-94 08:49:37 GMT",
            "Sun,  06 Nov 1994 08:49:37 GMT",
            "Sun, 06  Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994  08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37  GMT",
            "Sun, 06 Nov 1994 8:49:37 GMT",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun 06 Nov 1994 08:49:37 GMT",
            "Sun,06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08.49.37 GMT",
            "Sun, 06 Nov 1994 08:49 GMT",
            "Sun, 06 Nov 1994 08:49:37 GMT ",
            " Sun, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 November 1994 08:49:37 GMT",
            "Foo, 06 Nov 1994 08:49:37 GMT",
            "Sun Nov 6 08:49:37 1994",
            "Sun Nov  6 08:49:37 1994 GMT",
            "Sun Nov  6 08:49:37 94",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn days_and_times_that_do_not_exist_are_refused() {
        check("Sun, 00 Nov 1994 08:49:37 GMT", None);
        check("Sun, 31 Nov 1994 08:49:37 GMT", None);
        check("Sun, 29 Feb 2023 08:49:37 GMT", None);
        check("Sun, 29 Feb 2100 08:49:37 GMT", None);
        check("Sun, 06 Nov 1994 24:00:00 GMT", None);
        check("Sun, 06 Nov 1994 08:60:37 GMT", None);
        check("Sun, 06 Nov 1994 08:49:61 GMT", None);
        check("Thu, 29 Feb 2024 00:00:00 GMT", Some(1_709_164_800));
        check("Sat, 31 Dec 2016 23:59:60 GMT", Some(1_483_228_800));
    }

    #[test]
    fn years_far_from_now_work() {
        check("Thu, 01 Jan 1970 00:00:00 GMT", Some(0));
        check("Wed, 31 Dec 1969 23:59:59 GMT", Some(-1));
        check("Mon, 01 Jan 1900 00:00:00 GMT", Some(-2_208_988_800));
        check("Tue, 19 Jan 2038 03:14:08 GMT", Some(1 << 31));
        check("Sat, 20 Nov 2286 17:46:40 GMT", Some(10_000_000_000));
        check("Fri, 31 Dec 9999 23:59:59 GMT", Some(253_402_300_799));
        check("Sat, 01 Jan 0000 00:00:00 GMT", Some(-62_167_219_200));
    }

    #[test]
    fn rfc9110_5_6_7_must_read_two_digit_years_more_than_50_years_ahead_as_past() {
        check("Thursday, 01-Jan-76 00:00:00 GMT", Some(3_345_062_400));
        check("Wednesday, 15-Jan-76 12:00:00 GMT", Some(3_346_315_200));
        check("Wednesday, 15-Jan-76 12:00:01 GMT", Some(190_555_201));
        check("Saturday, 01-Jan-77 00:00:00 GMT", Some(220_924_800));
        check("Saturday, 01-Jan-00 00:00:00 GMT", Some(946_684_800));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&text, UNIX_EPOCH);
        }

        #[test]
        fn what_is_written_reads_back(seconds in 0..=SECONDS_MAX) {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            prop_assert_eq!(parse_value(&format(time), time), Some(time));
        }
    }
}
