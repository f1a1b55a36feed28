//! How many connections each client address has.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Stands for "no limit": more than there can be.
const UNLIMITED: usize = usize::MAX;

/// The connections of each client address.
#[derive(Debug)]
pub(super) struct Clients {
    /// `UNLIMITED`: no limit, and nothing is counted.
    connections_max: AtomicUsize,
    /// Guards the count of each address that has connections. Held for one change of a count, never across an await.
    counts: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection of one address; when it is dropped, the address may have another.
#[derive(Debug)]
#[must_use = "it counts as long as it lives"]
pub(super) struct Admitted(Option<(Arc<Clients>, IpAddr)>);

impl Clients {
    pub(super) fn new(connections_max: Option<usize>) -> Arc<Self> {
        let clients = Self { connections_max: AtomicUsize::new(UNLIMITED), counts: Mutex::default() };
        clients.limit(connections_max);
        Arc::new(clients)
    }

    /// Says how many each may have from here on. What was not counted before does not count afterwards.
    pub(super) fn limit(&self, connections_max: Option<usize>) {
        self.connections_max.store(connections_max.unwrap_or(UNLIMITED), Ordering::Relaxed);
    }

    /// Takes a place for a connection; `None` where the address has as many as it may. An IPv4-mapped IPv6 address
    /// counts as IPv4.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Admitted> {
        let most = self.connections_max.load(Ordering::Relaxed);
        if most == UNLIMITED {
            return Some(Admitted(None));
        }
        let address = address.to_canonical();
        let mut counts = self.counts.lock();
        let count = counts.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Admitted(Some((Arc::clone(self), address))))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let Some((clients, address)) = self.0.take() else { return };
        if let Entry::Occupied(mut entry) = clients.counts.lock().entry(address) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_as_many_as_it_may_and_is_forgotten_without_any() {
        let clients = Clients::new(Some(2));
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let first = clients.admit(one);
        let second = clients.admit("::ffff:10.0.0.1".parse().unwrap());
        assert!(first.is_some() && second.is_some() && clients.admit(one).is_none());
        assert!(clients.admit(other).is_some());
        drop(first);
        assert!(clients.admit(one).is_some());
        drop(second);
        assert!(clients.counts.lock().is_empty());
    }

    #[test]
    fn another_limit_holds_for_the_connections_there_are() {
        let clients = Clients::new(Some(1));
        let address = IpAddr::from([10, 0, 0, 1]);
        let first = clients.admit(address);
        clients.limit(Some(2));
        let second = clients.admit(address);
        assert!(second.is_some() && clients.admit(address).is_none());
        clients.limit(Some(1));
        drop(first);
        assert!(clients.admit(address).is_none());
        clients.limit(None);
        assert!(clients.admit(address).is_some());
    }

    #[test]
    fn without_a_limit_nothing_is_counted() {
        let clients = Clients::new(None);
        let _admitted = clients.admit(IpAddr::from([10, 0, 0, 1]));
        assert!(clients.counts.lock().is_empty());
    }
}
