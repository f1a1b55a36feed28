//! TLS on the data port.

use crate::telemetry::TlsFailure;
use crate::upstream::{TlsError, certificates, private_key};
use rustls::ServerConfig;
use rustls::crypto::ring;
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// Accepts TLS with this certificate chain and key, offering HTTP/2 and HTTP/1.1.
///
/// # Errors
/// [`TlsError`] where a file cannot be read, or key and certificate do not fit.
pub fn acceptor(chain: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates(chain)?, private_key(key)?)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Why a handshake with a client failed.
pub(super) fn reason(error: &io::Error) -> TlsFailure {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::AlertReceived(_)) => TlsFailure::ClientRefused,
        Some(rustls::Error::PeerIncompatible(_) | rustls::Error::NoApplicationProtocol) => {
            TlsFailure::Incompatible
        }
        Some(
            rustls::Error::InvalidMessage(_)
            | rustls::Error::InappropriateMessage { .. }
            | rustls::Error::InappropriateHandshakeMessage { .. }
            | rustls::Error::PeerMisbehaved(_)
            | rustls::Error::PeerSentOversizedRecord
            | rustls::Error::DecryptError,
        ) => TlsFailure::Malformed,
        Some(_) => TlsFailure::Other,
        None => TlsFailure::ClientLeft,
    }
}
