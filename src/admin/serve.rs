//! The admin port's connections: few, and none for ever.

use axum::Router;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::ServiceExt;

/// Connections at a time. Operators and scrapers need a handful; the rest would be a leak of somebody's.
const CONNECTIONS_MAX: usize = 256;

/// How long a request's head may take to arrive, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long requests may take to end once the port is to be closed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long those that were accepted last may take to send a request once the port is to be closed.
const FIRST_REQUEST_GRACE: Duration = Duration::from_secs(1);

/// How long it waits after an error that will not go away at once, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the admin port until `stop`, and then lets the requests that are being answered end.
///
/// # Errors
/// Where the listener has no address: it is no listener.
pub async fn serve(listener: TcpListener, router: Router, stop: impl Future<Output = ()>) -> io::Result<()> {
    tracing::info!(address = %listener.local_addr()?, "admin port");
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut stop = pin!(stop);
    loop {
        let stream = tokio::select! {
            biased;
            () = &mut stop => break,
            stream = accept(&listener) => stream,
        };
        // Without a place the connection is closed at once: a peer that waits could not tell that from a hang.
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            let connection = converse(stream, router.clone(), graceful.watcher());
            tokio::spawn(async move {
                connection.await;
                drop(place);
            });
        }
    }
    drop(listener);
    // Told to end, a connection that has sent nothing yet would be closed before the request that may be on the way.
    tokio::time::sleep(FIRST_REQUEST_GRACE).await;
    if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
        tracing::debug!("admin requests were cut off");
    }
    Ok(())
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the admin port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Answers one connection's requests.
async fn converse(stream: TcpStream, router: Router, watcher: Watcher) {
    let service = service_fn(move |request: Request<Incoming>| {
        router.clone().oneshot(request.map(axum::body::Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "an admin connection ended early");
    }
}
