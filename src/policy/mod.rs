//! RFC 9111 as pure functions: what may be stored, what may be served, what must be asked again.
//!
//! Nothing here does I/O, reads a clock, waits, locks or logs. Time is an argument. A malformed field is
//! never an error: it makes a response *stale* or *not storable*, and those are values.
//!
//! One file for each question of the RFC:
//!
//! | file | question | section |
//! |---|---|---|
//! | [`key`] | which requests are the same? | RFC 9111 §2 |
//! | [`storing`] | may this response be stored? | RFC 9111 §3 |
//! | [`vary`] | is this stored response for this request? | RFC 9111 §4.1 |
//! | [`freshness`] | how old is it, and is that too old? | RFC 9111 §4.2 |
//! | [`validation`] | how is it asked again, and what does a 304 change? | RFC 9111 §4.3 |
//! | [`invalidation`] | what does a successful unsafe request outdate? | RFC 9111 §4.4 |
//! | [`directives`] | what do `Cache-Control` and `Pragma` say? | RFC 9111 §5.2, §5.4 |
//! | [`targeted`] | what do `CDN-Cache-Control` and its kin say? | RFC 9213 |
//! | [`date`] | what time is meant? | RFC 9110 §5.6.7 |
//! | [`conditional`] | does the client's own copy still hold? | RFC 9110 §13 |
//! | [`range`] | which part of it is wanted? | RFC 9110 §14 |
//! | [`forwarding`] | which fields travel on? | RFC 9110 §7.6 |
