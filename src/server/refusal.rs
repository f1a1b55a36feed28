//! What clients are told whose request could not be read, and how that is counted: like every other refusal.

use crate::clock::Clock;
use crate::outcome::{Answered, Outcome};
use crate::policy::date;
use crate::proxy::Client;
use crate::telemetry::{AccessRecord, BodyEnd, RequestLine, Telemetry};
use bytes::Bytes;
use http::{StatusCode, Version};
use std::time::Duration;

/// Why there was no request to hand on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Malformed,
    TargetTooLong,
    HeadTooLarge,
    HeadTooSlow,
}

impl Refusal {
    /// The refusal to send instead of these bytes, if they are what hyper answers by itself to what it cannot parse. That has no
    /// fields but these; what is passed on from an upstream has `Cache-Status`.
    pub(super) fn in_place_of(bytes: &[u8]) -> Option<Self> {
        let head = bytes.strip_prefix(b"HTTP/1.1 4")?;
        let refusal = match head.get(..2)? {
            b"00" => Self::Malformed,
            b"14" => Self::TargetTooLong,
            b"31" => Self::HeadTooLarge,
            _ => return None,
        };
        let (_, fields) = std::str::from_utf8(head).ok()?.strip_suffix("\r\n\r\n")?.split_once("\r\n")?;
        let is_own = fields.contains("content-length: 0")
            && fields.split("\r\n").all(|field| {
                ["connection: close", "content-length: 0"].contains(&field) || field.starts_with("date: ")
            });
        is_own.then_some(refusal)
    }

    /// The answer, head and body.
    pub(super) fn answer(self) -> Bytes {
        let (status, text) = (self.status(), self.text());
        let now = date::format(Clock::System.now());
        let answer = format!(
            "HTTP/1.1 {status}\r\n\
             connection: close\r\n\
             content-type: text/plain; charset=utf-8\r\n\
             cache-control: no-store\r\n\
             content-length: {}\r\n\
             date: {}\r\n\r\n\
             {text}",
            text.len(),
            now.to_str().unwrap_or_default(),
        );
        answer.into()
    }

    /// Counts and logs it, as a request of no route. Of the request itself nothing is known; this is for how long it was awaited.
    pub(super) fn count(self, telemetry: &Telemetry, client: Client, duration: Duration) {
        let outcome = Outcome::of(Answered::Rejected).because(self.detail());
        let request = RequestLine {
            method: "",
            target: "",
            host: "",
            protocol: Version::HTTP_11,
            client: client.address,
        };
        let record = AccessRecord {
            request: Some(request),
            status: self.status(),
            outcome: &outcome,
            body_bytes: self.text().len() as u64,
            duration,
            body_end: BodyEnd::Complete,
        };
        telemetry.answered(telemetry.unmatched(), &outcome);
        telemetry.finished(telemetry.unmatched(), &record);
    }

    fn status(self) -> StatusCode {
        match self {
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            // RFC 9110 §15.5.9: "the server did not receive a complete request message within the time that it was prepared to
            // wait".
            Self::HeadTooSlow => StatusCode::REQUEST_TIMEOUT,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Malformed => "400 Bad Request: the request is malformed\n",
            Self::TargetTooLong => "414 URI Too Long\n",
            Self::HeadTooLarge => "431 Request Header Fields Too Large\n",
            Self::HeadTooSlow => "408 Request Timeout: the head came too slowly\n",
        }
    }

    fn detail(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TargetTooLong => "target-too-long",
            Self::HeadTooLarge => "head-too-large",
            Self::HeadTooSlow => "head-too-slow",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_they_are_and_how_long_and_when() {
        for refusal in
            [Refusal::Malformed, Refusal::TargetTooLong, Refusal::HeadTooLarge, Refusal::HeadTooSlow]
        {
            let answer = refusal.answer();
            let (head, body) = std::str::from_utf8(&answer).unwrap().split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {}\r\n", refusal.status())), "{head}");
            assert!(head.contains(&format!("\r\ncontent-length: {}\r\n", body.len())), "{head}");
            // RFC 9110 §6.6.1.
            let (_, date) = head.split_once("\r\ndate: ").unwrap();
            assert!(date::parse(date.as_bytes(), Clock::System.now()).is_some(), "{head}");
        }
    }

    #[test]
    fn only_what_hyper_says_by_itself_is_replaced() {
        let own = |status: &str| {
            format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n")
        };
        let in_place_of = |bytes: &str| Refusal::in_place_of(bytes.as_bytes());
        assert_eq!(in_place_of(&own("400 Bad Request")), Some(Refusal::Malformed));
        assert_eq!(in_place_of(&own("414 URI Too Long")), Some(Refusal::TargetTooLong));
        assert_eq!(in_place_of(&own("431 Request Header Fields Too Large")), Some(Refusal::HeadTooLarge));
        for other in [
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\ncache-status: forebay; fwd=bypass\r\ndate: x\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\ndate: x\r\n\r\nok",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\ndate: x\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\n",
            "HTTP/1.1 4",
        ] {
            assert_eq!(in_place_of(other), None, "{other}");
        }
    }
}
