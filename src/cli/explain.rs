//! `forebay explain`: asks `/explain` of a running forebay, and prints the answer for people.

use super::ask::{Answer, address, ask};
use super::{Exit, ExplainArguments, explained};
use crate::admin::malformed_question;
use crate::proxy::explain::{Explained, Explanation, Standing, Variant, Verdict};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

/// How long each step of the question may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Prints what the cache of the running forebay would do with a request, and why.
pub fn explain(
    arguments: &ExplainArguments,
    environment: &[(String, String)],
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<Exit> {
    let address = match address(arguments.admin, arguments.config.as_deref(), environment) {
        Ok(address) => address,
        Err(error) => {
            writeln!(err, "{}", explained(&error))?;
            return Ok(Exit::Usage);
        }
    };
    let parameters = parameters(arguments);
    if let Some(fault) = malformed_question(&parameters) {
        writeln!(err, "no explanation: {fault}")?;
        return Ok(Exit::Usage);
    }
    let answer = match ask(address, &question(&parameters), TIMEOUT) {
        Ok(Some(answer)) => answer,
        Ok(None) => {
            writeln!(err, "no explanation: {address} does not speak HTTP")?;
            return Ok(Exit::Unavailable);
        }
        Err(error) => {
            writeln!(err, "no explanation: {address}: {error}")?;
            return Ok(Exit::Unavailable);
        }
    };
    match read(&answer) {
        Ok(explanation) => out.write_all(told(&explanation).as_bytes()).map(|()| Exit::Success),
        Err(why) => writeln!(err, "no explanation: {why}").map(|()| Exit::Unavailable),
    }
}

/// What is asked.
fn parameters(arguments: &ExplainArguments) -> Vec<(String, String)> {
    let named = |name: &str, value: &String| (name.to_owned(), value.clone());
    let headers = arguments.header.iter().map(|header| named("header", header));
    let body = arguments.data.iter().map(|data| named("body", data));
    let first = [named("url", &arguments.url), named("method", &arguments.method)];
    first.into_iter().chain(headers).chain(body).collect()
}

/// The path of the question.
fn question(parameters: &[(String, String)]) -> String {
    let parameters: Vec<_> =
        parameters.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    format!("/explain?{}", parameters.join("&"))
}

/// Percent-encodes all that might mean something in a query (RFC 3986 §2.1).
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

/// The explanation in the answer, or why there is none.
fn read(answer: &Answer) -> Result<Explanation, String> {
    if answer.status == 200 {
        return serde_json::from_slice(&answer.body)
            .map_err(|error| format!("the answer is that of another version: {error}"));
    }
    let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let detail = problem.get("detail").and_then(serde_json::Value::as_str);
    Err(detail.map_or_else(|| format!("the admin port answers {}", answer.status), str::to_owned))
}

/// The explanation for people.
fn told(explanation: &Explanation) -> String {
    match explanation {
        Explanation::Refused { why, .. } => format!("refused   {why}\n"),
        Explanation::Received(explained) => lines(explained).concat(),
    }
}

fn lines(explained: &Explained) -> Vec<String> {
    let line = |name: &str, text: &str| format!("{name:<9} {text}\n");
    let key = &explained.key;
    let mut lines = verdict_lines(&explained.plan);
    lines.push(line(
        "route",
        &format!("{}: asks upstream {} for {}", explained.route, explained.upstream, key.target),
    ));
    // The words are those of the upstream's target: where a route takes its prefix away, another may have the same.
    lines.push(line("key", &format!("{} on route {} ({})", key.words, explained.route, key.hash)));
    if let Some(tick) = explained.purge_line {
        lines.push(line(
            "purged",
            &format!("what was asked for before tick {tick}, when the last purge of it fell"),
        ));
    }
    if let Some(flight) = &explained.flight {
        let text =
            format!("a fetch begun at tick {}, for whose head {} more wait", flight.tick, flight.waiters);
        lines.push(line("in flight", &text));
    }
    if let Some(note) = &explained.note {
        let meaning = match note.kind.as_str() {
            "hit-for-miss" => "the last answer could not be shared, so nobody waits for another's",
            _ => "the last fetch failed, and new requests share the failure",
        };
        lines.push(line("note", &format!("{}: {meaning}, for another {} ms", note.kind, note.remaining_ms)));
    }
    if explained.stored.is_empty() {
        lines.push(line("stored", "nothing"));
    }
    for (index, variant) in explained.stored.iter().enumerate() {
        lines.push(line(&format!("stored #{index}"), &variant_text(variant)));
    }
    lines
}

fn verdict_lines(verdict: &Verdict) -> Vec<String> {
    let plan = |text: String, why: &str| format!("{:<9} {text}: {why}\n", "plan");
    match verdict {
        Verdict::Deliver { stored, why } => vec![plan(format!("deliver #{stored}"), why)],
        Verdict::DeliverAndRefresh { stored, why } => {
            vec![plan(format!("deliver #{stored} and refresh it in the background"), why)]
        }
        Verdict::Revalidate { stored, why, fetch, .. } => {
            vec![plan(format!("revalidate #{stored}"), why), fetch_line(fetch)]
        }
        Verdict::Fetch { fwd, why, fetch } => vec![plan(format!("fetch ({fwd})"), why), fetch_line(fetch)],
        Verdict::Pass { why } => vec![plan("pass".to_owned(), why)],
        Verdict::Unsatisfiable { why } => vec![plan("answer 504".to_owned(), why)],
    }
}

fn fetch_line(fetch: &crate::proxy::explain::Fetch) -> String {
    use crate::proxy::explain::How;
    let how = match fetch.how {
        How::Lead => "begin one that others share",
        How::Follow => "share the one in flight",
        How::Replace => "begin one in place of the one in flight",
        How::Alone => "for this request alone",
        How::BackOff => "not now: share the last failure",
        How::AtLimit => "no place to wait",
    };
    format!("{:<9} {how}: {}\n", "fetch", fetch.why)
}

fn variant_text(variant: &Variant) -> String {
    let freshness = &variant.freshness;
    let standing = match &variant.standing {
        Standing::Valid => String::new(),
        Standing::StaleSince(at) => format!(", made stale by a purge at {at}"),
        Standing::Void => ": hit by a purge".to_owned(),
    };
    let fresh = match (&variant.standing, variant.fresh) {
        (Standing::Void, _) => "void",
        (Standing::Valid | Standing::StaleSince(_), true) => "fresh",
        (Standing::Valid | Standing::StaleSince(_), false) => "stale",
    };
    let matches = if variant.matches { "for this request" } else { "for other requests" };
    let mut text = format!(
        "{} {fresh}, {matches}{standing}; {} body, {} bytes; tick {}",
        variant.status, variant.body.stage, variant.body.bytes, variant.tick
    );
    let mut more = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n{:<12}{name}: {value}", "");
    };
    let ttl = format!(
        "age {} s of a lifetime of {} s ({}), ttl {} s, received {}",
        freshness.age, freshness.lifetime, freshness.basis, freshness.ttl, freshness.received
    );
    more("freshness", &ttl);
    let stale = format!(
        "while revalidating {} s, on error {} s, validation {}",
        freshness.stale_while_revalidate, freshness.stale_if_error, freshness.validation
    );
    more("stale use", &stale);
    match &variant.selecting {
        None => more("selecting", "Vary: * (matches no request)"),
        Some(fields) if fields.is_empty() => {}
        Some(fields) => {
            let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "(absent)".to_owned());
            let fields: Vec<_> =
                fields.iter().map(|field| format!("{} = {}", field.name, value(&field.value))).collect();
            more("selecting", &fields.join(", "));
        }
    }
    if let Some(etag) = &variant.validators.etag {
        more("etag", etag);
    }
    if let Some(time) = &variant.validators.last_modified {
        more("last-modified", time);
    }
    if let Some(field) = &variant.cache_control {
        more("cache-control", field);
    }
    if !variant.tags.is_empty() {
        more("tags", &variant.tags.join(" "));
    }
    text
}
