//! Log lines on standard error.

use crate::config::{Config, LogFormat};
use anyhow::{Context, Result, anyhow};
use std::io::{IsTerminal, stderr};
use tracing_subscriber::EnvFilter;

/// The filter: the configuration's, or RUST_LOG, or "info".
fn filter(configured: Option<&str>, rust_log: Option<&str>) -> Result<EnvFilter> {
    let text = configured.or(rust_log.filter(|text| !text.is_empty())).unwrap_or("info");
    EnvFilter::try_new(text).with_context(|| format!("log_level {text:?} is not a filter like \"info\""))
}

/// Sends log lines to standard error from now on.
///
/// # Errors
/// The filter cannot be understood, or logging was set up before.
pub(crate) fn start(config: &Config) -> Result<()> {
    let rust_log = std::env::var("RUST_LOG").ok();
    let filter = filter(config.log_level.as_deref(), rust_log.as_deref())?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    match config.log_format {
        LogFormat::Text => lines.with_ansi(stderr().is_terminal()).with_target(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).try_init(),
    }
    .map_err(|error| anyhow!("cannot start logging: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_goes_before_the_variable() {
        let text = |configured, rust_log| filter(configured, rust_log).map(|filter| filter.to_string());
        assert_eq!(text(None, None).unwrap(), "info");
        assert_eq!(text(None, Some("")).unwrap(), "info");
        assert_eq!(text(None, Some("debug")).unwrap(), "debug");
        assert_eq!(text(Some("warn"), Some("debug")).unwrap(), "warn");
        assert!(text(Some("=,=/"), None).is_err());
    }
}
