//! The data plane over real sockets, in one runtime with a paused clock.
//!
//! One test binary for all of it keeps linking short. Each file is one chapter of the story.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(unreachable_pub, reason = "a test binary exports nothing")]
#![allow(missing_docs, reason = "the names of tests are sentences")]

mod coalescing;
mod conditions;
mod directives;
mod failing_upstream;
mod freshness;
mod invalidation;
mod ranges;
mod scene;
mod stale;
mod storing;
mod support;
mod targeted;
mod told;
mod validation;
mod variants;
