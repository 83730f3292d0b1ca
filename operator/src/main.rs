//! The operator.

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use kube::{Client, CustomResourceExt};
use sheep_operator::{Context, Leadership, Settings, SheepdogCluster, Wish, run};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::EnvFilter;

/// Makes and keeps a Sheepdog cluster in Kubernetes
#[derive(Debug, Parser)]
#[command(name = "sheep-operator", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prints the custom resource definitions
    Crds,
    /// Keeps the cluster of one namespace
    Run(RunArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Namespace of the cluster and of everything that it consists of
    #[arg(long, env = "NAMESPACE")]
    namespace: String,
    /// Name of this process: that of its pod
    #[arg(long, env = "POD_NAME")]
    name: String,
    /// File with images and other things that concern Kubernetes
    #[arg(long, env = "SHEEP_SETTINGS", value_name = "FILE")]
    settings: PathBuf,
    /// File with the SheepdogCluster that is to be there; if there is no such file, somebody else makes it
    #[arg(long, env = "SHEEP_CLUSTER", value_name = "FILE")]
    cluster: PathBuf,
    /// ConfigMap that these files are from: the SheepdogCluster goes with it
    #[arg(long, env = "SHEEP_CONFIG_MAP", value_name = "NAME")]
    config_map: String,
    /// ClusterRole of this installation: the driver and its classes go with it
    #[arg(long, env = "SHEEP_CLUSTER_ROLE", value_name = "NAME", default_value = "")]
    cluster_role: String,
    /// Least important lines of the log: error, warn, info, debug, trace
    #[arg(long, default_value = "info", env = "SHEEP_LOG_LEVEL")]
    log_level: String,
    /// Form of the log
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "SHEEP_LOG_FORMAT")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn start_log(level: &str, format: LogFormat) -> Result<()> {
    let filter = EnvFilter::try_new(level).with_context(|| format!("{level:?} is no level of the log"))?;
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

fn crds() -> Result<()> {
    let mut text = "# Printed by `sheep-operator crds`.\n---\n".to_owned();
    text += &serde_saphyr::to_string(&SheepdogCluster::crd())?;
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

async fn end() -> Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => info!("stopping (SIGTERM)"),
        _ = int.recv() => info!("stopping (SIGINT)"),
    }
    Ok(())
}

async fn operate(args: RunArgs) -> Result<()> {
    let settings = Settings::load(&args.settings)?;
    let wish = Wish::load(&args.cluster)?;
    let client = Client::try_default().await.context("there is no Kubernetes here")?;
    let leadership = Leadership::new(client.clone(), &args.namespace, "sheep-operator", &args.name);
    let context = Context {
        client: client.clone(),
        namespace: args.namespace.clone(),
        settings,
        anchor: args.cluster_role,
        me: args.name,
    };
    let work = async {
        leadership.acquire().await?;
        let wishing = async {
            match &wish {
                Some(wish) => wish.keep(client, &args.namespace, &args.config_map).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            lost = leadership.keep() => lost,
            () = run(context) => anyhow::bail!("watching Kubernetes has ended"),
            () = wishing => Ok(()),
        }
    };
    tokio::select! {
        result = work => result,
        stopped = end() => {
            leadership.release().await;
            stopped
        }
    }
}

fn run_until_told(args: RunArgs) -> Result<()> {
    start_log(&args.log_level, args.log_format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(operate(args))
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Crds => crds(),
        Command::Run(args) => run_until_told(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            // The last words of a container; they may come before there is a log.
            eprintln!("sheep-operator: {problem:#}");
            ExitCode::FAILURE
        }
    }
}
