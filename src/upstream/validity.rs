//! Until when a certificate is valid.

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, Error, RootCertStore};
use std::time::{Duration, SystemTime};

/// From when to when a certificate is valid, both included (RFC 5280 §4.1.2.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Not before this.
    pub not_before: SystemTime,
    /// Not after this.
    pub not_after: SystemTime,
}

impl Validity {
    /// That of this certificate; `None` where it cannot be read. rustls reads it, but tells it only to those who come too early or
    /// too late: so it is asked at the beginning of time, and at its end.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let certificate = ParsedCertificate::try_from(certificate).ok()?;
        let verdict_at = |now: Duration| {
            let (now, no_roots) = (UnixTime::since_unix_epoch(now), RootCertStore::empty());
            match verify_server_cert_signed_by_trust_anchor(&certificate, &no_roots, &[], now, &[]) {
                Err(Error::InvalidCertificate(verdict)) => Some(verdict),
                _ => None,
            }
        };
        let not_before = match verdict_at(Duration::ZERO)? {
            CertificateError::NotValidYetContext { not_before, .. } => at(not_before),
            // It has been valid since before the epoch.
            _ => SystemTime::UNIX_EPOCH,
        };
        let CertificateError::ExpiredContext { not_after, .. } = verdict_at(Duration::from_secs(u64::MAX))?
        else {
            return None;
        };
        Some(Self { not_before, not_after: at(not_after) })
    }
}

fn at(time: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    #[track_caller]
    fn check(from: (i32, u8, u8), to: (i32, u8, u8), expected: (u64, u64)) {
        let mut params = CertificateParams::new(["a.example".to_owned()]).unwrap();
        params.not_before = date_time_ymd(from.0, from.1, from.2);
        params.not_after = date_time_ymd(to.0, to.1, to.2);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let validity = Validity::of(certificate.der()).unwrap();
        let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!((seconds(validity.not_before), seconds(validity.not_after)), expected);
    }

    #[test]
    fn validity_is_that_of_the_certificate() {
        check((2020, 1, 1), (2020, 4, 1), (1_577_836_800, 1_585_699_200));
        check((2040, 1, 1), (2060, 1, 1), (2_208_988_800, 2_840_140_800));
        check((1970, 1, 1), (9999, 12, 31), (0, 253_402_214_400));
    }

    #[test]
    fn what_is_no_certificate_has_none() {
        assert_eq!(Validity::of(&CertificateDer::from(b"certificate".to_vec())), None);
    }
}
