//! A proxy that strangers can trust: clients and upstreams that break the rules, scripted byte by byte.
//!
//! All parties live in one current-thread runtime with a paused clock. What is malformed gets the right status and a
//! closed connection, and reaches nobody else.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(missing_docs, reason = "the names of tests are sentences")]

mod clients;
mod http2;
mod limits;
mod peers;
#[path = "../data_plane/support.rs"]
#[allow(dead_code, reason = "another test binary uses the rest")]
mod support;
mod upstreams;
