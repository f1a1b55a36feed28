//! The command line: what can be asked for ([`Command`]) and how it ends ([`Exit`]).
//!
//! One file for each subcommand.

mod arguments;
mod ask;
mod check;
mod demo;
mod explain;
mod health;
mod notify;
mod serve;
mod upgrade;

pub use crate::telemetry::log::explained;
pub use arguments::{
    CheckArguments, Command, DemoArguments, ExplainArguments, HealthArguments, LogFormat, ServeArguments,
    parse,
};
pub use check::check;
pub use demo::demo;
pub use explain::explain;
pub use health::health;
pub use serve::serve;

use crate::config::{self, Config, FILE_VARIABLE, Overrides};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The version and, where it is known, the git revision: `0.1.0 (c0193df)`.
pub const VERSION: &str = env!("FOREBAY_VERSION");

/// The git revision this was built from; `unknown` outside of a repository.
pub const REVISION: &str = env!("FOREBAY_REVISION");

/// How the program ends, with the codes of `sysexits.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All went well.
    Success,
    /// The answer is no: not ready, or a demonstration that went wrong.
    Failure,
    /// The command line or the configuration is wrong.
    Usage,
    /// Something outside that is needed cannot be had, for instance an address to listen on.
    Unavailable,
}

impl Exit {
    /// The exit code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 64,
            Self::Unavailable => 69,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// The configuration file: the flag's, else the one that [`FILE_VARIABLE`] names, if any.
pub fn file(flag: Option<&Path>, environment: &[(String, String)]) -> Option<PathBuf> {
    let named = || environment.iter().find(|(name, value)| name == FILE_VARIABLE && !value.is_empty());
    flag.map(Path::to_owned).or_else(|| named().map(|(_, value)| PathBuf::from(value)))
}

/// This process's environment. What is not Unicode in it is replaced, so that a value of ours is complained
/// about rather than ignored.
pub fn environment() -> Vec<(String, String)> {
    let text = |text: OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
}

/// Loads the configuration that the flags and the environment ask for.
pub fn load(
    flag: Option<&Path>,
    environment: &[(String, String)],
    overrides: &Overrides,
) -> Result<Config, config::Error> {
    config::load(file(flag, environment).as_deref(), environment.iter().cloned(), overrides)
}
