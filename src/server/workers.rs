//! The threads that serve connections.
//!
//! Each has a runtime of its own: what a connection waits for wakes the thread that serves it and no other, and no task waits
//! in the queue of a thread that has no core. A connection stays with the worker that it was given to, the one with the fewest.
//! Fetches begin where the first request for them was; whoever else waits for them may be elsewhere.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The threads that serve connections; when it is dropped, they end with what they are doing.
#[derive(Debug)]
pub struct Workers(Vec<Worker>);

#[derive(Debug)]
pub(super) struct Worker {
    runtime: Handle,
    connections: Arc<AtomicUsize>,
    _running: DropGuard,
}

impl Workers {
    /// Starts so many threads; `None`: one for each core that the container may use.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn start(count: Option<usize>) -> io::Result<Self> {
        let cores = || thread::available_parallelism().map_or(1, Into::into);
        (0..count.unwrap_or_else(cores)).map(Worker::start).collect::<io::Result<_>>().map(Self)
    }

    /// No threads: connections are served where they are accepted.
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// The worker with the fewest connections.
    pub(super) fn idlest(&self) -> Option<&Worker> {
        self.0.iter().min_by_key(|worker| worker.connections.load(Ordering::Relaxed))
    }
}

impl Worker {
    fn start(index: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (handle, stop) = (runtime.handle().clone(), CancellationToken::new());
        let running = stop.clone().drop_guard();
        thread::Builder::new()
            .name(format!("forebay-worker-{index}"))
            .spawn(move || runtime.block_on(stop.cancelled()))?;
        Ok(Self { runtime: handle, connections: Arc::default(), _running: running })
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Counts a connection, for as long as what is returned lives.
    pub(super) fn occupy(&self) -> Occupied {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Occupied(Arc::clone(&self.connections))
    }
}

/// A connection of a worker.
#[derive(Debug)]
pub(super) struct Occupied(Arc<AtomicUsize>);

impl Drop for Occupied {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_goes_to_the_worker_with_the_fewest() {
        let workers = Workers::start(Some(3)).unwrap();
        let mut held: Vec<_> = (0..6).map(|_| workers.idlest().unwrap().occupy()).collect();
        let counts = || workers.0.iter().map(|worker| worker.connections.load(Ordering::Relaxed));
        assert_eq!(counts().collect::<Vec<_>>(), [2, 2, 2]);
        held.truncate(1);
        held.push(workers.idlest().unwrap().occupy());
        assert_eq!(counts().collect::<Vec<_>>(), [1, 1, 0]);
    }

    #[test]
    fn a_task_runs_in_the_worker_s_thread() {
        let workers = Workers::start(Some(1)).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        workers.idlest().unwrap().runtime().spawn(async move {
            sender.send(thread::current().name().map(str::to_owned)).unwrap();
        });
        assert_eq!(receiver.recv().unwrap().as_deref(), Some("forebay-worker-0"));
    }
}
