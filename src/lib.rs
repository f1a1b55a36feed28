//! forebay: an HTTP caching reverse proxy that turns any number of identical concurrent requests into one
//! upstream fetch.

pub mod cli;
pub mod clock;
pub mod config;
pub mod outcome;
