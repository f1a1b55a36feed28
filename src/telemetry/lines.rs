//! Lines of the access log as the library would write them, for a seventh of what they cost there. There is one for each
//! request, and a hit cost three times as many instructions with its line as without.

use super::access::TARGET;
use super::settings::Format;
use crate::clock::Clock;
use crate::policy::date::rfc3339;
use std::cell::Cell;
use std::fmt::{self, Write};
use std::time::UNIX_EPOCH;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Most lines are no longer.
const LINE_BYTES: usize = 512;

/// How much of a time comes before the fraction of its second: `2026-01-31T12:00:00.`
const SECOND_BYTES: usize = 20;

thread_local! {
    /// The second that was written last, and its text.
    static LAST: Cell<(u64, [u8; SECOND_BYTES])> = const { Cell::new((0, *b"1970-01-01T00:00:00.")) };
}

/// Writes the lines of the access log, without colours, and leaves all others to the library.
pub(super) struct AccessLines<F> {
    pub(super) format: Format,
    pub(super) others: F,
}

impl<S, N, F> FormatEvent<S, N> for AccessLines<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if event.metadata().target() != TARGET {
            return self.others.format_event(context, writer, event);
        }
        let (mut line, level) = (String::with_capacity(LINE_BYTES), event.metadata().level());
        match self.format {
            Format::Human => {
                push_now(&mut line);
                write!(line, " {level:>5} {TARGET}:")?;
            }
            Format::Json => {
                line.push_str("{\"timestamp\":\"");
                push_now(&mut line);
                write!(line, "\",\"level\":\"{level}\"")?;
            }
        }
        let mut fields = Fields { format: self.format, line, result: Ok(()) };
        event.record(&mut fields);
        let Fields { mut line, result, .. } = fields;
        result?;
        if self.format == Format::Json {
            write!(line, ",\"target\":\"{TARGET}\"}}")?;
        }
        line.push('\n');
        writer.write_str(&line)
    }
}

/// The fields of a line as they are written one by one.
struct Fields {
    format: Format,
    line: String,
    result: fmt::Result,
}

impl Fields {
    fn name(&mut self, field: &Field) {
        let (before, behind) = match self.format {
            Format::Human => (" ", "="),
            Format::Json => (",\"", "\":"),
        };
        self.line.push_str(before);
        self.line.push_str(field.name());
        self.line.push_str(behind);
    }

    fn quote(&mut self, text: &str) {
        if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\') {
            self.line.push('"');
            self.line.push_str(text);
            self.line.push('"');
            return;
        }
        match self.format {
            Format::Human => self.write(format_args!("{text:?}")),
            Format::Json => self.write(format_args!("{}", serde_json::Value::from(text))),
        }
    }

    fn write(&mut self, text: fmt::Arguments<'_>) {
        self.result = self.result.and(self.line.write_fmt(text));
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.name(field);
        self.quote(value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.name(field);
        self.line.push_str(itoa::Buffer::new().format(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.name(field);
        self.line.push_str(itoa::Buffer::new().format(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.name(field);
        self.line.push_str(if value { "true" } else { "false" });
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.name(field);
        self.write(format_args!("{value:?}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.name(field);
        match self.format {
            Format::Human => self.write(format_args!("{value:?}")),
            Format::Json => self.quote(&format!("{value:?}")),
        }
    }
}

/// Writes the time to the microsecond (RFC 3339 §5.6).
fn push_now(line: &mut String) {
    let now = Clock::System.now();
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (mut second, mut text) = LAST.get();
    if second != since.as_secs() {
        second = since.as_secs();
        text.copy_from_slice(&rfc3339(now).as_bytes()[..SECOND_BYTES]);
        LAST.set((second, text));
    }
    line.push_str(str::from_utf8(&text).unwrap_or_default());
    // The one before it keeps the zeros that it begins with.
    line.push_str(&itoa::Buffer::new().format(1_000_000 + since.subsec_micros())[1..]);
    line.push('Z');
}
