//! The flags, as clap reads them.
#![expect(clippy::doc_markdown, reason = "clap prints these comments as help, with every backtick in them")]

use super::VERSION;
use crate::config::{Overrides, parse_duration};
use clap::builder::RangedI64ValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  forebay                                    try it: an embedded slow upstream, on 127.0.0.1:8080
  forebay --upstream http://127.0.0.1:3000   stand in front of your own
  forebay serve --config forebay.toml        routes, cache rules, limits
  forebay check --config forebay.toml        is it right? what does it amount to?
  forebay demo                               1,000 clients at once: count the fetches
  forebay explain http://localhost:8080/a    what would the cache do, and why?
  forebay health                             exit 0 if ready: for a container's HEALTHCHECK

Configuration, the later wins:
  built-in defaults, then the file, then the environment, then flags.
  FOREBAY_CONFIG             the file, unless --config names one
  FOREBAY__SECTION__KEY      one key of it: FOREBAY__SERVER__LISTEN=0.0.0.0:8080
  FOREBAY__LIST__0__KEY      one of a list: FOREBAY__UPSTREAM__0__URL=http://app:3000
  config/forebay.toml in the source explains every key.

Exit codes:
  0   all went well (serve: stopped by a signal, or replaced by an upgrade, and drained)
  1   no: not ready (health), a wrong answer (demo), stopped at once (serve)
  64  the command line, the configuration, or the URL to explain is wrong; the message says where
  69  something that is needed cannot be had: an address in use, no admin port there";

/// An HTTP caching reverse proxy that turns any number of identical concurrent requests into one upstream
/// fetch.
#[derive(Debug, Parser)]
#[command(name = "forebay", version = VERSION, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArguments,
}

/// What is asked for. Without a subcommand it is [`Command::Serve`].
#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum Command {
    /// Serve until a signal says stop; SIGHUP reloads, SIGUSR2 upgrades (this is what forebay does without a subcommand)
    Serve(ServeArguments),
    /// Let many clients ask an embedded slow upstream for the same pages at once, and count the fetches
    Demo(DemoArguments),
    /// Say whether a configuration is right, and print what it amounts to
    Check(CheckArguments),
    /// Ask a running forebay whether it is ready; exit 0 if it is
    Health(HealthArguments),
    /// Ask a running forebay what its cache would do with a request, and why, without fetching
    Explain(ExplainArguments),
}

/// The flags of `serve`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct ServeArguments {
    /// The configuration file (TOML) [default: $FOREBAY_CONFIG, else built-in defaults]
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where clients connect; may be given several times [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Vec<SocketAddr>,
    /// Where operators and Prometheus connect [default: 127.0.0.1:9090]
    #[arg(long, value_name = "ADDRESS")]
    pub admin_listen: Option<SocketAddr>,
    /// The one upstream, in place of all configured upstreams and routes
    #[arg(long, short, value_name = "URL")]
    pub upstream: Option<String>,
    /// Log level or filter, for instance "warn" or "info,forebay::proxy=debug" [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Shape of log lines [default: human]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

impl ServeArguments {
    /// The flags as the uppermost layer of the configuration.
    pub fn overrides(&self) -> Overrides {
        let format = |format: LogFormat| match format {
            LogFormat::Human => "human".to_owned(),
            LogFormat::Json => "json".to_owned(),
        };
        Overrides {
            listen: self.listen.clone(),
            admin_listen: self.admin_listen,
            upstream: self.upstream.clone(),
            log_filter: self.log_level.clone(),
            log_format: self.log_format.map(format),
        }
    }
}

/// The shape of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Human,
    /// One JSON value a line
    Json,
}

/// The flags of `demo`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct DemoArguments {
    /// Clients that ask at once
    #[arg(long, default_value_t = 1000, value_name = "NUMBER", value_parser = some())]
    pub clients: u32,
    /// Different pages they ask for
    #[arg(long, default_value_t = 10, value_name = "NUMBER", value_parser = some())]
    pub keys: u32,
    /// How long the embedded upstream takes for a page
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = parse_duration)]
    pub delay: Duration,
}

/// The flags of `check`: those of `serve`, so that what is checked is what would be served.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct CheckArguments {
    /// What would be served.
    #[command(flatten)]
    pub serve: ServeArguments,
}

/// The flags of `health`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct HealthArguments {
    /// The admin port of the running forebay [default: as configured, else 127.0.0.1:9090]
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,
    /// The configuration file that says where the admin port is [default: $FOREBAY_CONFIG]
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How long the answer may take
    #[arg(long, default_value = "2s", value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// The flags of `explain`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ExplainArguments {
    /// The URL as a client would ask for it
    pub url: String,
    /// The method that the client would use
    #[arg(long, short = 'X', default_value = "GET", value_name = "METHOD")]
    pub method: String,
    /// A header field that the client would send; may be given several times
    #[arg(long, short = 'H', value_name = "NAME: VALUE")]
    pub header: Vec<String>,
    /// The body that the client would send
    #[arg(long, short, value_name = "BODY")]
    pub data: Option<String>,
    /// The admin port of the running forebay [default: as configured, else 127.0.0.1:9090]
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,
    /// The configuration file that says where the admin port is [default: $FOREBAY_CONFIG]
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Reads the command line, the program's name first. The error knows how to print itself; it is no failure
/// where help or the version was asked for ([`clap::Error::use_stderr`]).
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, clap::Error> {
    let CommandLine { command, serve } = CommandLine::try_parse_from(arguments)?;
    Ok(command.unwrap_or(Command::Serve(serve)))
}

/// At least one, and not more than one machine can have.
fn some() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=100_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parsed(line: &str) -> Result<Command, clap::Error> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_flags_are_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn without_a_subcommand_it_serves() {
        assert_eq!(parsed("forebay").unwrap(), Command::Serve(ServeArguments::default()));
    }

    #[test]
    fn the_flags_of_serve_work_without_the_subcommand_too() {
        let flags = "--config a.toml --listen 127.0.0.1:1 --listen [::1]:1 --admin-listen 127.0.0.1:2 \
                     --upstream http://127.0.0.1:3 --log-level debug --log-format json";
        let serve = parsed(&format!("forebay serve {flags}")).unwrap();
        assert_eq!(parsed(&format!("forebay {flags}")).unwrap(), serve);
        let Command::Serve(arguments) = serve else { panic!("{serve:?}") };
        let overrides = arguments.overrides();
        assert_eq!(overrides.listen.len(), 2);
        assert_eq!(overrides.log_filter.as_deref(), Some("debug"));
        assert_eq!(overrides.log_format.as_deref(), Some("json"));
    }

    #[test]
    fn a_flag_before_a_subcommand_is_refused_rather_than_ignored() {
        assert!(parsed("forebay --listen 127.0.0.1:1 check").is_err());
    }

    #[test]
    fn the_demonstration_has_sensible_defaults() {
        let Command::Demo(arguments) = parsed("forebay demo").unwrap() else { panic!("not demo") };
        let expected = DemoArguments { clients: 1000, keys: 10, delay: Duration::from_secs(1) };
        assert_eq!(arguments, expected);
        assert!(parsed("forebay demo --clients 0").is_err());
        assert!(parsed("forebay demo --delay 5").is_err());
    }

    #[test]
    fn help_and_version_are_no_failures() {
        for line in ["forebay --help", "forebay --version", "forebay serve --help"] {
            assert!(!parsed(line).unwrap_err().use_stderr(), "{line}");
        }
        assert!(parsed("forebay --lisen 127.0.0.1:1").unwrap_err().use_stderr());
    }

    #[test]
    fn help_tells_the_environment_and_the_exit_codes() {
        let help = parsed("forebay --help").unwrap_err().to_string();
        for part in ["FOREBAY_CONFIG", "FOREBAY__SERVER__LISTEN", "Exit codes", "64", "69", "--upstream"] {
            assert!(help.contains(part), "{part} is missing in:\n{help}");
        }
    }
}
