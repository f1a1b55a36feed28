//! After which failures a key is left alone, by whom, and for how long at the least.

use super::Fault;
use super::duplicates::Story;
use super::errands::{Came, Errand, Variant};
use std::time::Duration;
use tokio::time::Instant;

/// A pause that has begun with a failure.
#[derive(Debug, Clone, Copy)]
struct Pause {
    /// It has not ended before this moment: it may be shortened by a third.
    least: Instant,
    /// It has ended by this moment: it may be one of many, and as long as they get.
    most: Instant,
}

impl<'a> Story<'a> {
    /// Whether a request that comes at this moment is told of a failure instead of asking the origin; not where that depends on
    /// what is not seen from outside.
    pub(super) fn is_left_alone(&self, errand: &Errand<'a>, key: Variant<'a>, at: Instant) -> bool {
        let coalescing = self.world.plan.coalescing();
        if coalescing.error_backoff.0.is_zero() {
            return false;
        }
        let whose = errand.ask.visit.whose();
        let waits = whose.is_some() && self.may_wait(errand).unwrap_or(false);
        let (mut of_everyone, mut own, mut of_all) = (None::<Pause>, None::<Pause>, None::<Pause>);
        for failed in self.told_until(key, at) {
            let (fetch, since) = (failed.last(), failed.settled().unwrap_or(at));
            match self.came(failed) {
                Came::Nothing => {}
                // It may have ended any of them.
                Came::Private | Came::Shared => {
                    for pause in [&mut of_everyone, &mut own, &mut of_all].into_iter().flatten() {
                        pause.least = pause.least.min(since);
                    }
                }
                Came::Failure => {
                    // A line may have been drawn through what failed, and then it says nothing.
                    let is_sure = !self.is_any_line_between(failed.start, at);
                    let may_be_due = fetch.fault == Some(Fault::ServerError) && fetch.whose().is_some();
                    if !may_be_due {
                        self.begin(&mut of_everyone, since, is_sure);
                    }
                    if may_be_due && fetch.whose() == whose {
                        self.begin(&mut own, since, is_sure);
                    }
                    if may_be_due && waits && self.is_of_all(failed) {
                        self.begin(&mut of_all, since, is_sure);
                    }
                }
            }
        }
        [of_everyone, own, of_all].into_iter().flatten().any(|pause| at < pause.least)
    }

    /// What came under the key until then, and what came to its like for all, which ends a pause wherever they may meet.
    fn told_until(&self, key: Variant<'a>, at: Instant) -> Vec<&Errand<'a>> {
        let is_like = |errand: &Errand<'_>| {
            self.came(errand) == Came::Shared && key.is_some_and(|(of, _)| of == errand.ask.language())
        };
        self.settled_until(at, |errand| errand.way.key() == key || is_like(errand))
    }

    /// A failure begins a pause, unless one is in force.
    fn begin(&self, pause: &mut Option<Pause>, since: Instant, is_sure: bool) {
        let (first, longest) = self.world.plan.coalescing().error_backoff;
        let most = since + longest.max(first);
        let least = since + first * 2 / 3 - Duration::from_millis(1);
        match pause {
            Some(before) if since < before.least => {}
            // One may be in force.
            Some(before) if since <= before.most => before.most = most,
            Some(_) | None => *pause = Some(Pause { least: if is_sure { least } else { since }, most }),
        }
    }
}
