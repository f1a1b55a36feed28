//! Files that the configuration names: each is read, and a mistake where it could not be used.

use super::error::Wrong;
use super::section::{Given, Section};
use super::values::text;
use crate::upstream::{self, TlsError, certificates, private_key};
use rustls::pki_types::pem;
use std::path::{Path, PathBuf};

const TOKEN: &str = "a file whose first line is the token";
const CHAIN: &str = "a PEM file with a certificate, and behind it those of its issuers";
const KEY: &str = "a PEM file with a private key that is not encrypted";
const FITTING_KEY: &str = "a PEM file with the private key of the certificate";
const ROOTS: &str = "a PEM file with the certificates to trust";

/// A file whose first line is a secret.
pub(super) fn token_file(given: Given<'_>) -> Result<PathBuf, Wrong> {
    let path = PathBuf::from(text(given)?);
    let content = std::fs::read_to_string(&path)
        .map_err(|error| unusable(&path, format!("cannot be read: {error}"), TOKEN))?;
    if content.lines().next().is_none_or(|line| line.trim().is_empty()) {
        return Err(unusable(&path, "has an empty first line".to_owned(), TOKEN));
    }
    Ok(path)
}

/// Certificates to trust.
pub(super) fn roots(given: Given<'_>) -> Result<PathBuf, Wrong> {
    let path = PathBuf::from(text(given)?);
    upstream::check_roots(&path).map_err(|error| unusable(&path, fault(&error), ROOTS)).map(|()| path)
}

/// Reads a certificate chain and its key, of which neither is of use alone.
pub(super) fn identity(section: &mut Section<'_>) -> Option<(PathBuf, PathBuf)> {
    for (one, other) in [("certificate_file", "key_file"), ("key_file", "certificate_file")] {
        if section.has(one) && !section.has(other) {
            section.missing(other, &format!("a PEM file, because {one} is given"));
        }
    }
    let chain = section.given("certificate_file", |given| {
        let path = PathBuf::from(text(given)?);
        certificates(&path).map_err(|error| unusable(&path, fault(&error), CHAIN)).map(|_| path)
    });
    let key = section.given("key_file", |given| {
        let path = PathBuf::from(text(given)?);
        private_key(&path).map_err(|error| unusable(&path, key_file_fault(&path, &error), KEY)).map(|_| path)
    });
    let (chain, key) = chain.zip(key)?;
    match upstream::check_identity(&chain, &key) {
        Ok(()) => {}
        Err(TlsError::Refused(rustls::Error::InvalidCertificate(_))) => {
            section.misfit("certificate_file", unusable(&chain, NO_CERTIFICATE.to_owned(), CHAIN));
        }
        Err(TlsError::Refused(rustls::Error::InconsistentKeys(_))) => {
            let fault = format!("holds another key than that of the certificate in {}", chain.display());
            let wrong = Wrong::UnusableFile {
                file: key.clone(),
                beside: Some(chain.clone()),
                fault,
                expected: FITTING_KEY,
            };
            section.misfit("key_file", wrong);
        }
        Err(error) => section.misfit("key_file", unusable(&key, key_fault(&error), KEY)),
    }
    Some((chain, key))
}

/// What is in PEM called a certificate, and is none.
const NO_CERTIFICATE: &str = "holds something that is no X.509 certificate";

fn unusable(file: &Path, fault: String, expected: &'static str) -> Wrong {
    Wrong::UnusableFile { file: file.to_owned(), beside: None, fault, expected }
}

/// What is the matter with a file of certificates.
fn fault(error: &TlsError) -> String {
    match error {
        TlsError::Pem { source: pem::Error::Io(error), .. } => format!("cannot be read: {error}"),
        TlsError::Pem { source, .. } => pem_fault(source).to_owned(),
        TlsError::NoCertificate { .. } => "holds no certificate".to_owned(),
        TlsError::Refused(_) | TlsError::NoRoots => NO_CERTIFICATE.to_owned(),
    }
}

/// What is the matter with what should be PEM. Nothing of what is in it is told.
fn pem_fault(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "is no PEM: it ends before an END line",
        pem::Error::IllegalSectionStart { .. } => "is no PEM: a BEGIN line is malformed",
        pem::Error::Base64Decode(_) => "is no PEM: what is between BEGIN and END is not Base64",
        pem::Error::SectionTooLarge => "is no PEM: what is between BEGIN and END is too large",
        _ => "is no PEM",
    }
}

/// What the file of an encrypted key has in it: in the form of PKCS #8, and in the older one of OpenSSL.
const ENCRYPTED: [&str; 2] = ["BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"];

/// What is the matter with a file with a key that cannot be read.
fn key_file_fault(path: &Path, error: &TlsError) -> String {
    let content = std::fs::read(path).unwrap_or_default();
    let content = String::from_utf8_lossy(&content);
    if ENCRYPTED.iter().any(|mark| content.contains(mark)) {
        return "holds a key that is encrypted".to_owned();
    }
    key_fault(error)
}

/// What is the matter with a key, likewise.
fn key_fault(error: &TlsError) -> String {
    match error {
        TlsError::Pem { source: pem::Error::Io(error), .. } => format!("cannot be read: {error}"),
        TlsError::Pem { source: pem::Error::NoItemsFound, .. } => "holds no such key".to_owned(),
        TlsError::Pem { source, .. } => pem_fault(source).to_owned(),
        TlsError::Refused(_) | TlsError::NoCertificate { .. } | TlsError::NoRoots => {
            "holds a key of no kind that is known".to_owned()
        }
    }
}
