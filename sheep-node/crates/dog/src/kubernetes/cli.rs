//! The command line of `kubectl sheepdog`.

use crate::cli::Format;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;

/// What is said below the help.
const REST: &str = "Everything else is given to `dog` in a storage pod:
  node, vdi, cluster  as `dog` has them, like `kubectl sheepdog vdi list`; options stand before these words";

/// Sheepdog in Kubernetes: how it is, what uses it, and whether it can be installed.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-sheepdog",
    bin_name = "kubectl sheepdog",
    version,
    arg_required_else_help = true,
    after_help = REST
)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) access: Access,
    /// How to print answers
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(super) output: Format,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Which Kubernetes, and where in it.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct Access {
    /// Namespace of Sheepdog [default: where it is; for `preflight` sheepdog]
    #[arg(short, long, global = true)]
    pub(super) namespace: Option<String>,
    /// Context of the kubeconfig file
    #[arg(long, global = true)]
    pub(super) context: Option<String>,
    /// The kubeconfig file
    #[arg(long, global = true)]
    pub(super) kubeconfig: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// How it is, on one screen; ends with 0 if all is well, 1 if not, 2 if nobody knows
    Status,
    /// Volumes, snapshots, nodes or disks, with what they are in Kubernetes
    Get {
        /// What to list
        #[arg(value_enum)]
        what: Kind,
    },
    /// Everything about a volume or a node
    Describe {
        /// What it is
        #[arg(value_enum)]
        what: Thing,
        /// A volume: its claim as NAMESPACE/NAME, its persistent volume or its VDI. A node: its name
        name: String,
    },
    /// Whether Sheepdog can be installed here; ends with 0 if so, 1 if not, 2 if nobody knows
    Preflight,
    /// What `dog` does.
    #[command(external_subcommand)]
    Dog(Vec<OsString>),
}

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// Volumes, with their claims and the pods that use them
    #[value(alias = "volume")]
    Volumes,
    /// Snapshots, with the VolumeSnapshots that they are
    #[value(alias = "snapshot")]
    Snapshots,
    /// Nodes of Kubernetes, and what of Sheepdog is on them
    #[value(alias = "node")]
    Nodes,
    /// Disks and directories that data is on
    #[value(alias = "disk")]
    Disks,
}

/// What can be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Thing {
    /// A volume
    #[value(alias = "volumes")]
    Volume,
    /// A node of Kubernetes
    #[value(alias = "nodes")]
    Node,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_before_other_words_are_ours_and_after_them_theirs() {
        let words = "kubectl-sheepdog -n storage --context c vdi list -n 3 --output json";
        let cli = Cli::try_parse_from(words.split(' ')).unwrap();
        assert_eq!(cli.access.namespace.as_deref(), Some("storage"));
        assert_eq!((cli.access.context.as_deref(), cli.output), (Some("c"), Format::Table));
        let Command::Dog(words) = cli.command else { panic!() };
        assert_eq!(words, ["vdi", "list", "-n", "3", "--output", "json"]);
        for words in ["get volumes -n storage -o json", "-n storage -o json get volume"] {
            let cli = Cli::try_parse_from(["kubectl-sheepdog"].into_iter().chain(words.split(' '))).unwrap();
            assert_eq!((cli.access.namespace.as_deref(), cli.output), (Some("storage"), Format::Json));
            assert!(matches!(cli.command, Command::Get { what: Kind::Volumes }));
        }
        for words in ["get", "get things", "describe volume", "status extra"] {
            let parsed = Cli::try_parse_from(["kubectl-sheepdog"].into_iter().chain(words.split(' ')));
            assert_eq!(parsed.expect_err(words).exit_code(), 2, "{words}");
        }
    }
}
