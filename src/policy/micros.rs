//! Durations and times as they are kept with a stored response: to the microsecond, in half the bytes.

use std::num::NonZeroU64;
use std::time::{Duration, SystemTime};

/// A duration to the microsecond, rounded down, of up to half a million years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Micros(u64);

/// A time to the microsecond, rounded down, of the quarter of a million years around us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(NonZeroU64);

/// What the moment at which Unix time begins is called: what was before it has a lesser number.
const EPOCH: NonZeroU64 = NonZeroU64::new(1 << 62).expect("one bit is set");

impl Micros {
    pub(super) const ZERO: Self = Self(0);

    pub(super) fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    pub(super) fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl From<Duration> for Micros {
    fn from(duration: Duration) -> Self {
        let seconds = duration.as_secs().saturating_mul(1_000_000);
        Self(seconds.saturating_add(u64::from(duration.subsec_micros())))
    }
}

impl From<Micros> for Duration {
    fn from(micros: Micros) -> Self {
        Self::from_micros(micros.0)
    }
}

impl Moment {
    /// How long it is after another; nothing where it is before.
    pub(super) fn since(self, earlier: Self) -> Micros {
        Micros(self.0.get().saturating_sub(earlier.0.get()))
    }
}

impl From<SystemTime> for Moment {
    fn from(time: SystemTime) -> Self {
        Self(match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => EPOCH.saturating_add(Micros::from(after).0),
            Err(before) => {
                // Rounded down as well: towards the past.
                let before = Micros::from(before.duration() + Duration::from_nanos(999));
                NonZeroU64::new(EPOCH.get().saturating_sub(before.0)).unwrap_or(NonZeroU64::MIN)
            }
        })
    }
}

impl From<Moment> for SystemTime {
    fn from(moment: Moment) -> Self {
        let (number, epoch) = (moment.0.get(), EPOCH.get());
        let time = if number >= epoch {
            Self::UNIX_EPOCH.checked_add(Duration::from_micros(number - epoch))
        } else {
            Self::UNIX_EPOCH.checked_sub(Duration::from_micros(epoch - number))
        };
        time.unwrap_or(Self::UNIX_EPOCH)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn they_are_half_as_large_as_what_they_are_made_of() {
        assert_eq!((size_of::<Micros>(), size_of::<Option<Moment>>()), (8, 8));
        assert_eq!((size_of::<Duration>(), size_of::<Option<SystemTime>>()), (16, 16));
    }

    #[test]
    fn what_is_too_far_away_is_as_far_as_can_be_told() {
        assert_eq!(Micros::from(Duration::MAX), Micros(u64::MAX));
        assert_eq!(Micros(u64::MAX).saturating_add(Micros(1)), Micros(u64::MAX));
        assert_eq!(Micros(1).saturating_sub(Micros(2)), Micros::ZERO);
        let last = SystemTime::UNIX_EPOCH + Duration::from_secs(i64::MAX as u64);
        assert!(SystemTime::from(Moment::from(last)) > SystemTime::UNIX_EPOCH);
        let first = SystemTime::UNIX_EPOCH - Duration::from_secs(i64::MAX as u64);
        assert_eq!(Moment::from(first), Moment(NonZeroU64::MIN));
        assert_eq!(Moment::from(first).since(Moment::from(last)), Micros::ZERO);
    }

    proptest! {
        #[test]
        fn they_mean_what_they_are_made_of_to_the_microsecond(seconds in -100_000_000_000_i64..400_000_000_000, nanos in 0_u32..1_000_000_000, later in 0_u64..u64::MAX / 4) {
            let whole = Duration::from_secs(seconds.unsigned_abs());
            let second = if seconds < 0 { SystemTime::UNIX_EPOCH - whole } else { SystemTime::UNIX_EPOCH + whole };
            let time = second + Duration::from_nanos(nanos.into());
            let kept = SystemTime::from(Moment::from(time));
            prop_assert_eq!(kept, second + Duration::from_micros((nanos / 1000).into()));
            let later = Duration::from_micros(later);
            prop_assert_eq!(Duration::from(Micros::from(later)), later);
            prop_assert_eq!(Moment::from(time + later).since(Moment::from(time)), Micros::from(later));
        }
    }
}
