//! `forebay check`: is the configuration right, and what does it amount to?

use super::serve::runtime;
use super::{CheckArguments, Exit, explained, load};
use crate::app::App;
use crate::clock::Clock;
use crate::config;
use crate::warnings;
use std::io::{self, Write};

/// Prints the effective configuration, or what is wrong with it.
pub fn check(
    arguments: &CheckArguments,
    environment: &[(String, String)],
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<Exit> {
    let CheckArguments { serve } = arguments;
    for stranger in config::strangers(environment) {
        writeln!(err, "forebay: warning: {stranger}")?;
    }
    match load(serve.config.as_deref(), environment, &serve.overrides()) {
        Ok(config) => {
            let runtime = runtime()?;
            let _entered = runtime.enter();
            if let Err(error) = App::rehearse(&config) {
                writeln!(err, "forebay: {}", explained(&error))?;
                return Ok(Exit::Unavailable);
            }
            for warning in warnings::of(&config, Clock::System.now()) {
                writeln!(err, "forebay: warning: {warning}")?;
            }
            out.write_all(config.to_toml().as_bytes())?;
            if config.upstreams.is_empty() {
                out.write_all(
                    b"\n# No upstream is configured: the embedded demo upstream would be served.\n",
                )?;
            }
            Ok(Exit::Success)
        }
        Err(error) => {
            writeln!(err, "{}", explained(&error))?;
            Ok(Exit::Usage)
        }
    }
}
