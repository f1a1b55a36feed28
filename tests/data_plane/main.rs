//! The data plane over real sockets, in one runtime with a paused clock.
//!
//! One test binary for all of it keeps linking short. Each file is one chapter of the story.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]
#![allow(unreachable_pub, reason = "a test binary has no outside")]
#![allow(clippy::float_cmp, reason = "metrics are whole numbers")]
#![allow(clippy::unused_async, clippy::unnecessary_wraps, reason = "the parts of the stage look alike")]
#![allow(missing_docs, reason = "the names of tests are sentences")]

mod aboard;
mod attempts;
mod back_off;
mod causes;
mod coalescing;
mod conditions;
mod directives;
mod express;
mod failing_upstream;
mod forwarding;
mod freshness;
mod invalidation;
mod joining;
mod lists;
mod personal_errors;
mod probes;
mod public_errors;
mod purge_matrix;
mod purging;
mod ranges;
mod reaching;
mod request_bodies;
mod scene;
mod slow_readers;
mod stale;
mod storing;
mod support;
mod targeted;
mod through;
mod told;
mod validation;
mod variants;
mod waiting;
