//! Command line of `ringload`.

use clap::Parser;
use sheep_totem::MAX_PAYLOAD;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const RING_PORT: u16 = 7000;

/// Measures the ring alone: joins one on ADDRESS with all MEMBERs, orders messages of SIZE bytes as fast as it can for
/// SECONDS, and prints how many it delivered per second as its last line.
#[derive(Clone, Debug, Parser)]
#[command(name = "ringload", version)]
pub(crate) struct Options {
    /// Order nothing: only the token goes round
    #[arg(long)]
    pub(super) idle: bool,
    /// Keep only this many own messages on the way, and measure from sending to own ordered delivery
    #[arg(long, value_name = "MESSAGES", conflicts_with = "idle")]
    pub(super) window: Option<usize>,
    /// Print how long the token took to come again: p50, p99, p99.9, max and a histogram
    #[arg(long)]
    pub(super) gaps: bool,
    /// Token-loss timeout, milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    pub(super) token_loss_ms: u64,
    /// Own address, IP or IP:PORT
    #[arg(value_parser = address)]
    pub(super) address: SocketAddr,
    /// Bytes per message
    #[arg(value_parser = size)]
    pub(super) size: usize,
    /// Length of the measurement, seconds
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(super) seconds: u64,
    /// Addresses of all members; the own one may be among them
    #[arg(required = true, value_name = "MEMBER", value_parser = address)]
    pub(super) members: Vec<SocketAddr>,
}

impl Options {
    pub(super) fn token_loss(&self) -> Duration {
        Duration::from_millis(self.token_loss_ms)
    }
}

/// Reads the arguments (without the program's name).
///
/// # Errors
/// What is wrong with them, or the text of `--help`.
pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Options, clap::Error> {
    Options::try_parse_from(std::iter::once("ringload".to_owned()).chain(args))
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let ip = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, RING_PORT));
    ip.or_else(|_| text.parse()).map_err(|_| "must be IP or IP:PORT".to_owned())
}

fn size(text: &str) -> Result<usize, String> {
    let size = text.parse().map_err(|_| "must be a number of bytes".to_owned())?;
    if size <= MAX_PAYLOAD { Ok(size) } else { Err(format!("must be at most {MAX_PAYLOAD}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<Options, clap::Error> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn addresses_have_the_usual_port_unless_they_say_another() {
        let options = words("--gaps 127.0.0.1 64 10 127.0.0.1 127.0.0.2:7010").unwrap();
        assert_eq!(options.address, "127.0.0.1:7000".parse().unwrap());
        assert_eq!(options.members[1], "127.0.0.2:7010".parse().unwrap());
        assert!(options.gaps && !options.idle);
        assert_eq!(options.token_loss(), Duration::from_secs(1));
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for wrong in [
            "127.0.0.1 64 10",
            "here 64 10 127.0.0.1",
            "127.0.0.1 8193 10 127.0.0.1",
            "127.0.0.1 64 0 127.0.0.1",
            "--idle --window 1 127.0.0.1 64 1 127.0.0.1",
        ] {
            assert!(words(wrong).is_err(), "{wrong}");
        }
    }
}
