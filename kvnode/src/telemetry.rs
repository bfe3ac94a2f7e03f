//! Logs: what is written, in which form, to standard error.
//!
//! Messages are constant and what varies is in fields (`node shard replica term index epoch request_id`). Keys and
//! values never appear above debug. The subscriber is the one global thing of the process, so only `main` starts it.

use std::{error::Error, fmt, io, str::FromStr};

use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan, util::TryInitError};
use tracing_subscriber::{Layer, layer::SubscriberExt, util::SubscriberInitExt};

/// What is logged, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// What.
    pub filter: LogFilter,
    /// How.
    pub format: LogFormat,
}

/// One line for people, or one JSON object, for each event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For a terminal.
    #[default]
    Text,
    /// For a log collector.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("'{text}' is no format; text and json are")),
        }
    }
}

/// Directives of tracing's filter. Always valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// What our libraries say below warn is of use to those who debug them: per connection, per heartbeat.
const QUIET_LIBRARIES: [&str; 4] = ["openraft", "h2", "hyper", "tower"];

/// Modules that warn of each message that an unreachable node does not get.
const REPEATING: [&str; 3] =
    ["openraft::core::heartbeat", "openraft::replication", "openraft::engine::handler::replication_handler"];

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl LogFilter {
    /// The directives in full: a level alone holds for our own code.
    fn directives(&self) -> String {
        let mut directives = self.0.clone();
        for library in QUIET_LIBRARIES {
            if !self.0.contains(library) && self.0 != "error" {
                directives.push_str(&format!(",{library}=warn"));
            }
        }
        if !self.0.contains("openraft") {
            // Several a second for each group and silent node. The transport says once that a peer is unreachable, and
            // once that its stream is up again.
            for repeating in REPEATING {
                directives.push_str(&format!(",{repeating}=error"));
            }
        }
        directives
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // tracing would take any single word for the name of a module, and log nothing.
        let lower = text.to_ascii_lowercase();
        if LEVELS.contains(&lower.as_str()) {
            return Ok(Self(lower));
        }
        if text.contains(['=', ',']) && EnvFilter::try_new(text).is_ok() {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "'{text}' is no level; error, warn, info, debug and trace are, or a filter such as \
             info,kvnode::log=debug"
        ))
    }
}

/// Logs to standard error from now on.
///
/// # Errors
/// When the process logs already.
pub fn start(config: &LogConfig) -> Result<(), TryInitError> {
    let filter = EnvFilter::new(config.filter.directives());
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_span_events(FmtSpan::NONE);
    let layer = match config.format {
        LogFormat::Text => layer.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init()
}

/// An error and its causes in one line, for a log or a terminal.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{LogFilter, LogFormat, REPEATING};

    #[test]
    fn levels_and_filters_are_taken() {
        for text in ["error", "INFO", "trace", "info,kvnode::log=debug", "kvnode=debug"] {
            assert!(text.parse::<LogFilter>().is_ok(), "{text}");
        }
    }

    #[test]
    fn a_word_that_is_no_level_is_refused() {
        for text in ["", "loud", "5", "kvnode=loud"] {
            assert!(text.parse::<LogFilter>().is_err(), "{text}");
        }
        assert!("xml".parse::<LogFormat>().is_err());
    }

    #[test]
    fn libraries_are_quiet_unless_they_are_named() {
        let directives = |text: &str| text.parse::<LogFilter>().expect(text).directives();
        let repeating = REPEATING.map(|module| format!(",{module}=error")).concat();
        let quiet = format!("openraft=warn,h2=warn,hyper=warn,tower=warn{repeating}");
        assert_eq!(directives("debug"), format!("debug,{quiet}"));
        assert_eq!(directives("info,openraft=debug"), "info,openraft=debug,h2=warn,hyper=warn,tower=warn");
        assert_eq!(directives("error"), format!("error{repeating}"));
    }
}
