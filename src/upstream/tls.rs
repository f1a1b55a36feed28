//! How the certificates of an upstream are checked.

use super::settings::{Protocol, Settings};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsConnector;

/// TLS material that cannot be read or used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file cannot be read.
    #[error("{}: cannot be read as PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A file has no certificate in it.
    #[error("{}: holds no certificate", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// Neither the system nor the configuration gives a root to trust.
    #[error("the system has no root certificates; name a `roots_file`")]
    NoRoots,
    /// The material was read and refused.
    #[error("the TLS material is refused")]
    Refused(#[from] rustls::Error),
}

/// What connections to an upstream need for TLS.
pub(super) struct Prepared {
    /// `None` where no origin is https.
    pub(super) connector: Option<TlsConnector>,
    pub(super) material: Material,
}

/// A digest of the certificates and keys that were read; `None` where none are needed. It tells whether files of the same
/// names have got another content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Material(Option<u128>);

/// Reads the certificates and keys for an upstream that has an https origin.
pub(super) fn prepare(settings: &Settings) -> Result<Prepared, TlsError> {
    if !settings.origins.iter().any(|origin| origin.https) {
        return Ok(Prepared { connector: None, material: Material(None) });
    }
    let mut digest = SipHasher13::new();
    let provider = Arc::new(ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = if settings.tls.insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    } else {
        let roots = roots(settings.tls.roots_file.as_deref())?;
        for certificate in &roots {
            digest.write(certificate);
        }
        let mut store = RootCertStore::empty();
        if settings.tls.roots_file.is_some() {
            roots.into_iter().try_for_each(|certificate| store.add(certificate))?;
        } else {
            // Systems carry some that are of no use to anybody.
            store.add_parsable_certificates(roots);
        }
        if store.is_empty() {
            return Err(TlsError::NoRoots);
        }
        builder.with_root_certificates(store)
    };
    let mut config = match &settings.tls.client_identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let (chain, key) = (certificates(chain)?, private_key(key)?);
            for certificate in &chain {
                digest.write(certificate);
            }
            digest.write(key.secret_der());
            builder.with_client_auth_cert(chain, key)?
        }
    };
    config.alpn_protocols = match settings.protocol {
        Protocol::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        Protocol::Http1 => vec![b"http/1.1".to_vec()],
        Protocol::Http2 => vec![b"h2".to_vec()],
    };
    let connector = Some(TlsConnector::from(Arc::new(config)));
    Ok(Prepared { connector, material: Material(Some(digest.finish128().as_u128())) })
}

/// The roots to trust: those of the file, else the system's, in an order that stays the same.
fn roots(file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    if let Some(path) = file {
        return certificates(path);
    }
    let mut roots = rustls_native_certs::load_native_certs().certs;
    roots.sort_unstable_by(|one, other| one.as_ref().cmp(other.as_ref()));
    Ok(roots)
}

/// All certificates of a PEM file.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |source| TlsError::Pem { path: path.to_owned(), source };
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(pem)?.collect::<Result<_, _>>().map_err(pem)?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate { path: path.to_owned() });
    }
    Ok(certificates)
}

/// The private key of a PEM file.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| TlsError::Pem { path: path.to_owned(), source })
}

/// Whether this is a key to sign with, and that of the first of these certificates.
///
/// # Errors
/// [`TlsError`] where a file cannot be read, the key is of no known kind, or it is another certificate's.
pub fn check_identity(chain: &Path, key: &Path) -> Result<(), TlsError> {
    CertifiedKey::from_der(certificates(chain)?, private_key(key)?, &ring::default_provider())?;
    Ok(())
}

/// Whether these certificates can be trusted as roots.
///
/// # Errors
/// [`TlsError`] where the file cannot be read, or one of them is no certificate.
pub fn check_roots(file: &Path) -> Result<(), TlsError> {
    let mut store = RootCertStore::empty();
    Ok(certificates(file)?.into_iter().try_for_each(|certificate| store.add(certificate))?)
}

/// Accepts every certificate, but still checks that the peer holds its key. Only for `tls.insecure`.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::{Origin, Tls};
    use super::*;
    use std::fs;

    #[test]
    fn other_certificates_in_the_same_files_are_other_material() {
        let directory = tempfile::tempdir().unwrap();
        let [roots, chain, key] = ["roots", "chain", "key"].map(|name| directory.path().join(name));
        let write = |roots_of: &str, identity: &str| {
            let made = |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
            let (root, identity) = (made(roots_of), made(identity));
            fs::write(&roots, root.cert.pem()).unwrap();
            fs::write(&chain, identity.cert.pem()).unwrap();
            fs::write(&key, identity.signing_key.serialize_pem()).unwrap();
        };
        let origin = |https| Origin { https, host: "a.example".to_owned(), port: 443 };
        let tls = Tls {
            roots_file: Some(roots.clone()),
            client_identity: Some((chain.clone(), key.clone())),
            ..Tls::default()
        };
        let settings = Settings { tls, ..Settings::named("a", vec![origin(true)]) };
        let material = || prepare(&settings).unwrap().material;
        write("a.example", "client");
        let first = material();
        assert_eq!(first, material(), "the same files");
        let old = [&roots, &chain, &key].map(|file| fs::read(file).unwrap());
        write("a.example", "client");
        fs::write(&roots, &old[0]).unwrap();
        let second = material();
        assert_ne!(first, second, "another client certificate");
        fs::write(&chain, &old[1]).unwrap();
        assert!(matches!(prepare(&settings), Err(TlsError::Refused(_))), "a certificate without its key");
        fs::write(&key, &old[2]).unwrap();
        assert_eq!(first, material());
        write("a.example", "client");
        fs::write(&chain, &old[1]).unwrap();
        fs::write(&key, &old[2]).unwrap();
        assert_ne!(first, material(), "other roots");
        let plain = Settings { origins: vec![origin(false)], ..settings };
        assert_eq!(prepare(&plain).unwrap().material, Material(None), "nothing is read");
    }
}
