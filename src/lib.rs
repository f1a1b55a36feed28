//! forebay: an HTTP caching reverse proxy that turns any number of identical concurrent requests into one
//! upstream fetch.

pub mod body;
pub mod clock;
pub mod demo;
pub mod flight;
pub mod outcome;
pub mod policy;
pub mod proxy;
pub mod store;
mod sync;
pub mod telemetry;
pub mod upstream;
