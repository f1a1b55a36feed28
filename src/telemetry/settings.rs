//! What logging can be told.

/// Logs: shape and amount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The shape of a log line.
    pub format: Format,
    /// A filter in the syntax of `tracing_subscriber::EnvFilter`, for instance `info,forebay::proxy=debug`.
    pub filter: String,
    /// One line for each request.
    pub access_log: bool,
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Human,
    /// One JSON value a line.
    Json,
}

impl Default for Settings {
    fn default() -> Self {
        Self { format: Format::default(), filter: "info".into(), access_log: true }
    }
}
