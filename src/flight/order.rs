//! In which order what a fetch brings becomes known.
//!
//! Whoever needs something asks first what selects, which tells under which key to wait; then joins the flight there; and, leading
//! one, looks once more for what lies stored ([`Leader::unless_overtaken`](super::Leader::unless_overtaken)). A fetch has to go the other
//! way. These steps stand here so that the model checkers play them as they are.

/// Makes known what a fetch has brought: `put` lays it where it is looked for, `tell_what_selects` says under which keys others
/// wait from now on. Only then may its flight land, which is told what `put` came to.
///
/// Whoever knows what selects does not meet a flight that began without: by then there must be something to find.
pub fn make_known<T>(put: impl FnOnce() -> T, tell_what_selects: impl FnOnce()) -> T {
    let kept = put();
    tell_what_selects();
    kept
}
