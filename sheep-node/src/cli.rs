//! The command line of `sheep`.

use crate::config::{Config, Layer};
use clap::Parser;
use clap::error::ErrorKind;
use std::path::PathBuf;

/// Sheepdog storage node: stores a share of all volumes, and serves any of them.
///
/// `sheep --new DIR` makes a working cluster of one node; `sheep DIR` starts a node again, or joins the cluster
/// of this machine or of --seed. Then see `dog --help`.
#[derive(Debug, Parser)]
#[command(
    name = "sheep",
    version,
    after_help = "Every option can also stand in the file (`ring_port = 7000`; seeds is a list) or the environment \
                  (SHEEP_RING_PORT=7000; SHEEP_SEEDS=a,b). Flags go before the environment, the environment \
                  before the file."
)]
struct Cli {
    #[command(flatten)]
    layer: Layer,
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the configuration, with the source of each value, and exit
    #[arg(long)]
    print_config: bool,
}

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Invocation {
    /// Run the node.
    Run(Box<Config>),
    /// Print this and exit with success.
    Print(String),
}

/// Reads arguments (without the program's name), environment and configuration file.
///
/// # Errors
/// What is wrong, in words, for standard error; the exit status is then 2.
pub(crate) fn invocation(
    args: impl IntoIterator<Item = String>,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Invocation, String> {
    let cli = match parse(args) {
        Ok(cli) => cli,
        Err(error) => {
            let text = error.render().to_string();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(Invocation::Print(text)),
                _ => Err(text.trim_end().trim_start_matches("error: ").to_owned()),
            };
        }
    };
    let env: Vec<(String, String)> = env.into_iter().collect();
    let from_env = || env.iter().find(|(key, _)| key == "SHEEP_CONFIG").map(|(_, path)| PathBuf::from(path));
    let file = match cli.config.or_else(from_env) {
        Some(path) => {
            let text = std::fs::read_to_string(&path)
                .map_err(|error| format!("cannot read configuration file {}: {error}", path.display()))?;
            Layer::from_toml(&text).map_err(|error| format!("{}: {}", path.display(), error.trim_end()))?
        }
        None => Layer::default(),
    };
    let config = Config::build(cli.layer, Layer::from_env(env)?, file)?;
    Ok(if cli.print_config { Invocation::Print(config.to_toml()) } else { Invocation::Run(Box::new(config)) })
}

fn parse(args: impl IntoIterator<Item = String>) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("sheep".to_owned()).chain(args))
}

/// Only the flags, for tests of how sources are put together.
#[cfg(test)]
pub(crate) fn flags(args: impl IntoIterator<Item = String>) -> Result<Layer, clap::Error> {
    parse(args).map(|cli| cli.layer)
}
