//! What many stored responses have in common, and keep once.

use super::fields::List;
use crate::policy::vary::Selection;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// Most responses of an origin have the names of their fields in common, and are selected by the same values.
#[derive(Debug, Default)]
pub(super) struct Common {
    pub(super) names: Shared<Arc<List>>,
    pub(super) selections: Shared<Selection>,
}

/// Cheap handles on values, by the values.
#[derive(Debug)]
pub(super) struct Shared<T> {
    /// Guards the set, for the time of a look-up. Taken when a response is stored, not when one is read.
    known: Mutex<HashSet<T>>,
}

/// Values remembered at most: an origin whose every response has values of its own has nothing to share.
const SHARED_MAX: usize = 1024;

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { known: Mutex::default() }
    }
}

impl<T: Clone + Eq + Hash> Shared<T> {
    /// The handle on an equal value that others have, or else this one, for those who come later.
    pub(super) fn share(&self, value: &T) -> T {
        let mut known = self.known.lock();
        if let Some(known) = known.get(value) {
            return known.clone();
        }
        if known.len() >= SHARED_MAX {
            // Who has one keeps it. What is in use comes back with the next response.
            known.clear();
        }
        known.insert(value.clone());
        value.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_kept_once_and_not_for_ever() {
        let shared = Shared::default();
        let [one, other] = [0, 0].map(|value| shared.share(&Arc::new(value)));
        assert!(Arc::ptr_eq(&one, &other));
        for value in 1..2 * SHARED_MAX {
            shared.share(&Arc::new(value));
            assert!(shared.known.lock().len() <= SHARED_MAX);
        }
        assert_eq!(Arc::strong_count(&one), 2, "only who has it keeps it");
        let again = shared.share(&Arc::new(0));
        assert!(Arc::ptr_eq(&again, &shared.share(&Arc::new(0))));
    }
}
