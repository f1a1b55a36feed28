//! The table of fetches in flight.
//!
//! [`Flights::join`] registers a fetch *before* anything is awaited, so that every later request for the same key finds
//! it. The one who registered it gets a [`Leader`], the unique right to end it; everyone, the first included, gets
//! a [`Follower`], a seat from which to wait for the landing. A flight ends in one of three ways:
//!
//! - [`Leader::land`]: it has come to something, and all who hold a seat are told what. As long as the returned
//!   [`Landed`] lives, later requests still find the landing under the key.
//! - [`Leader::retire`]: nobody was left to wait for it.
//! - The leader is dropped: the flight is lost, and all who hold a seat are told so.
//!
//! Each flight carries the tick at which it was registered. A request that may not use answers as old as that (because
//! of a purge in between) *replaces* the flight: it registers its own under the same key, and the old one
//! flies on for those who already have a seat.

mod order;
mod table;

pub use order::make_known;
pub use table::{Begun, Flights, Follower, Joined, Landed, Leader, Seen};

/// The flight ended without a landing: its leader went away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the fetch was lost")]
pub struct Lost;
