//! What is right in a configuration, and still better looked at: one list for the start, a reload and `check`.

use crate::admin::Changes;
use crate::certificates;
use crate::config::Config;
use std::time::SystemTime;

/// A sentence for each thing that an operator should look at, at this time.
pub fn of(config: &Config, now: SystemTime) -> Vec<String> {
    let mut warnings = certificates::warnings(config, now);
    let insecure = config.upstreams.iter().filter(|upstream| upstream.tls.insecure);
    warnings.extend(insecure.map(|upstream| {
        format!("certificates of upstream {:?} are NOT verified (tls.insecure)", upstream.name)
    }));
    if matches!(Changes::of(&config.admin), Ok(Changes::Closed)) {
        let listen = config.admin.listen;
        warnings.push(format!(
            "the admin port can be reached from outside and has no token, so purges and reloads through it are refused \
             (admin.listen = {listen})"
        ));
    }
    warnings
}

/// Logs them.
pub fn log(warnings: &[String]) {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}
