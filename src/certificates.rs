//! Until when the certificates of a configuration are valid, and what an operator should hear of that in time.

use crate::config::Config;
use crate::policy::date::rfc3339;
use crate::telemetry::CertificateInUse;
use crate::upstream::{self, Validity, certificates};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// A certificate that ends so soon should have been renewed, unless it is one of those that do not live long.
const SHORT: Duration = Duration::from_hours(14 * 24);

/// The part of its life that one of those has left when it should have been renewed.
const SHORT_PART: u32 = 5;

/// The certificates that this configuration shows to clients and to upstreams. Those that cannot be read are left out: nothing starts
/// with them.
pub fn in_use(config: &Config) -> Vec<CertificateInUse> {
    let first = |(_, chain): (String, &Path)| {
        let validity = Validity::of(certificates(chain).ok()?.first()?)?;
        Some(CertificateInUse { file: chain.display().to_string(), not_after: validity.not_after })
    };
    shown(config).filter_map(first).collect()
}

/// What an operator should hear of the certificates of this configuration, at this time.
pub fn warnings(config: &Config, now: SystemTime) -> Vec<String> {
    let roots = config.upstreams.iter().filter_map(|upstream| {
        let file = upstream.tls.roots_file.as_deref()?;
        let ends: Vec<SystemTime> = validities(file).iter().map(|validity| validity.not_after).collect();
        let past = || ends.iter().filter(|end| now > **end);
        let (last, count) = (past().max()?, past().count());
        let (owner, file, of, until) = (owner(upstream), file.display(), ends.len(), rfc3339(*last));
        Some(format!(
            "{owner}: of the {of} certificates to trust in {file}, {count} expired, the last on {until}; they are trusted all the same"
        ))
    });
    shown(config).flat_map(|(owner, chain)| of_chain(&owner, chain, now)).chain(roots).collect()
}

fn of_chain(owner: &str, chain: &Path, now: SystemTime) -> Vec<String> {
    let told = validities(chain).into_iter().enumerate().filter_map(|(index, validity)| {
        // Those behind the first may be there for the sake of old clients alone.
        let fault = if index == 0 { fault(validity, now) } else { expired(validity, now) };
        let place = if index == 0 { String::new() } else { format!(" number {}", index + 1) };
        fault.map(|fault| format!("{owner}: the certificate{place} in {} {fault}", chain.display()))
    });
    told.collect()
}

/// The files of certificates that are shown, and by whom.
fn shown(config: &Config) -> impl Iterator<Item = (String, &Path)> {
    let server = config.server.tls.iter().map(|(chain, _)| ("server.tls".to_owned(), chain.as_path()));
    let upstreams = config.upstreams.iter().filter_map(|upstream| {
        let (chain, _) = upstream.tls.client_identity.as_ref()?;
        Some((owner(upstream), chain.as_path()))
    });
    server.chain(upstreams)
}

fn owner(upstream: &upstream::Settings) -> String {
    format!("tls of upstream {:?}", upstream.name)
}

fn validities(file: &Path) -> Vec<Validity> {
    certificates(file).unwrap_or_default().iter().filter_map(Validity::of).collect()
}

/// What is the matter with a certificate that is valid from then to then.
fn fault(Validity { not_before, not_after }: Validity, now: SystemTime) -> Option<String> {
    if now < not_before {
        return Some(format!("is not valid before {}", rfc3339(not_before)));
    }
    if let Some(expired) = expired(Validity { not_before, not_after }, now) {
        return Some(expired);
    }
    let left = not_after.duration_since(now).unwrap_or_default();
    let life = not_after.duration_since(not_before).unwrap_or_default();
    let is_late = left < SHORT && left < life / SHORT_PART;
    is_late.then(|| format!("expires soon: it is valid until {}", rfc3339(not_after)))
}

fn expired(Validity { not_after, .. }: Validity, now: SystemTime) -> Option<String> {
    (now > not_after).then(|| format!("has expired: it was valid until {}", rfc3339(not_after)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(hours: std::ops::Range<u64>, now: u64, expected: Option<&str>) {
        let at = |hours: u64| SystemTime::UNIX_EPOCH + Duration::from_hours(hours);
        let fault = fault(Validity { not_before: at(hours.start), not_after: at(hours.end) }, at(now));
        assert_eq!(fault.as_deref().map(|fault| fault.split(' ').next().unwrap()), expected, "at {now}");
    }

    #[test]
    fn a_certificate_is_told_of_before_it_begins_and_when_it_ends() {
        let quarter = 24..91 * 24;
        check(quarter.clone(), 23, Some("is"));
        check(quarter.clone(), 24, None);
        check(quarter.clone(), 77 * 24, None);
        check(quarter.clone(), 77 * 24 + 1, Some("expires"));
        check(quarter.clone(), 91 * 24, Some("expires"));
        check(quarter, 91 * 24 + 1, Some("has"));
    }

    #[test]
    fn one_of_a_short_life_is_told_of_in_its_last_fifth() {
        check(0..50, 40, None);
        check(0..50, 41, Some("expires"));
    }
}
