//! A proxy that strangers can trust: clients and upstreams that break the rules, scripted byte by byte.
//!
//! All parties live in one current-thread runtime with a paused clock. What is malformed gets the right status and a
//! closed connection, and reaches nobody else.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]
#![allow(unreachable_pub, reason = "a test binary has no outside")]
#![allow(clippy::float_cmp, reason = "metrics are whole numbers")]
#![allow(clippy::unused_async, clippy::unnecessary_wraps, reason = "the parts of the stage look alike")]
#![allow(missing_docs, reason = "the names of tests are sentences")]

mod breaker;
mod clients;
mod connections;
mod health;
mod http2;
mod http2_upstreams;
mod limits;
mod lingering;
mod names;
mod peers;
mod places;
#[path = "../data_plane/support.rs"]
mod support;
mod unread;
mod upstreams;
