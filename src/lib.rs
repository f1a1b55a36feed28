//! forebay: an HTTP caching reverse proxy that turns any number of identical concurrent requests into one
//! upstream fetch.

pub mod admin;
pub mod app;
pub mod body;
mod boxed;
pub mod certificates;
mod chunked;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
mod descriptors;
pub mod flight;
pub mod outcome;
pub mod policy;
pub mod proxy;
pub mod reload;
pub mod server;
mod socket;
pub mod store;
mod sync;
pub mod telemetry;
pub mod upstream;
pub mod warnings;
pub mod watch;
