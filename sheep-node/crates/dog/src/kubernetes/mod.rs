//! `kubectl sheepdog`: this program under the name `kubectl-sheepdog` is a plugin of kubectl. It asks Kubernetes by running kubectl,
//! and the cluster by running `dog` in a storage pod; so it needs no rights and no way of its own. What is asked and how it
//! is shown are separate: all between JSON and text are functions of values.

mod claims;
mod cli;
mod describe;
mod disks;
mod hand_over;
mod inside;
mod json;
mod kubectl;
mod nodes;
mod objects;
mod preflight;
mod seen;
mod status;
#[cfg(test)]
mod tests;
mod volumes;

use crate::cli::Format;
use crate::output;
use anyhow::{Result, bail};
use clap::Parser;
use clap::error::ErrorKind;
use cli::{Cli, Command, Kind, Thing};
use inside::{Inside, ask, to_ask};
use kubectl::Kubectl;
use objects::Pod;
use preflight::Level;
use serde_json::json;
use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use volumes::Users;

/// The name under which kubectl looks for its plugin `sheepdog`.
const NAME: &str = "kubectl-sheepdog";
/// Nobody knows; also wrong usage.
const UNKNOWN: u8 = 2;

/// Whether a program that was called so is the plugin.
pub(crate) fn is_plugin(program: Option<&OsStr>) -> bool {
    program.and_then(|path| Path::new(path).file_name()).is_some_and(|name| name == NAME)
}

/// The plugin.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked { ExitCode::SUCCESS } else { ExitCode::from(UNKNOWN) };
        }
    };
    run(cli).unwrap_or_else(|problem| {
        let _ = writeln!(std::io::stderr(), "kubectl sheepdog: {}", output::describe(&problem));
        ExitCode::FAILURE
    })
}

fn run(cli: Cli) -> Result<ExitCode> {
    let kubectl = Kubectl::new(cli.access);
    let format = cli.output;
    match cli.command {
        Command::Status => status(&kubectl, format),
        Command::Preflight => preflight(&kubectl, format),
        Command::Get { what: Kind::Volumes } => {
            let (inside, users) = (inside(&kubectl)?.0, Users::look(&kubectl));
            show(format, || volumes::to_json(&inside, &users), || volumes::table(&inside, &users))
        }
        Command::Get { what: Kind::Snapshots } => {
            let (inside, users) = (inside(&kubectl)?.0, Users::look(&kubectl));
            show(
                format,
                || volumes::snapshots_json(&inside, &users),
                || volumes::snapshot_table(&inside, &users),
            )
        }
        Command::Get { what: Kind::Nodes } => {
            let (inside, namespace) = inside(&kubectl)?;
            let pods = pods_in(&kubectl, &namespace)?;
            let machines = nodes::machines(seen::nodes(&kubectl).as_deref().ok(), &pods, Some(&inside));
            show(format, || nodes::to_json(&machines), || nodes::table(&machines, true))
        }
        Command::Get { what: Kind::Disks } => {
            let pods = seen::storage_pods(&kubectl)?;
            let (run, silent): (Vec<&Pod>, Vec<&Pod>) = pods.iter().partition(|pod| pod.runs);
            let answers = inside::disks(&kubectl, &run);
            show(format, || disks::to_json(&answers, &silent), || disks::table(&answers, &silent))
        }
        Command::Describe { what: Thing::Volume, name } => describe_volume(&kubectl, format, &name),
        Command::Describe { what: Thing::Node, name } => describe_node(&kubectl, format, &name),
        Command::Dog(words) => hand_over::run(&kubectl, format, &words),
    }
}

fn show(
    format: Format,
    value: impl FnOnce() -> serde_json::Value,
    text: impl FnOnce() -> String,
) -> Result<ExitCode> {
    match format {
        Format::Json => output::json(&value())?,
        Format::Table => output::line(&text())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What the cluster says, and its namespace.
fn inside(kubectl: &Kubectl) -> Result<(Inside, String)> {
    let pods = seen::storage_pods(kubectl)?;
    let inside = ask(kubectl, &to_ask(&pods))?;
    if inside.members.is_empty() {
        bail!("{}", inside.info.message);
    }
    Ok((inside, pods.first().map(|pod| pod.namespace.clone()).unwrap_or_default()))
}

/// Pods of the product in a namespace.
fn pods_in(kubectl: &Kubectl, namespace: &str) -> Result<Vec<Pod>> {
    let words = ["pods", "--selector", "app.kubernetes.io/name=sheepdog"];
    Ok(kubectl.list_in(Some(namespace), &words)?.iter().map(Pod::read).collect())
}

fn status(kubectl: &Kubectl, format: Format) -> Result<ExitCode> {
    let seen = seen::Seen::look(kubectl);
    let verdict = status::judge(&seen);
    show(format, || status::to_json(&seen, &verdict), || status::text(&seen, &verdict))?;
    Ok(match verdict.ok {
        Some(true) => ExitCode::SUCCESS,
        Some(false) => ExitCode::FAILURE,
        None => ExitCode::from(UNKNOWN),
    })
}

fn preflight(kubectl: &Kubectl, format: Format) -> Result<ExitCode> {
    let findings = preflight::Findings::look(kubectl);
    let checks = preflight::checks(&findings);
    show(format, || preflight::to_json(&findings, &checks), || preflight::text(&findings, &checks))?;
    Ok(match preflight::worst(&checks) {
        Level::Ok | Level::Warning => ExitCode::SUCCESS,
        Level::Problem => ExitCode::FAILURE,
        Level::Unknown => ExitCode::from(UNKNOWN),
    })
}

fn describe_volume(kubectl: &Kubectl, format: Format, name: &str) -> Result<ExitCode> {
    let (inside, users) = (inside(kubectl)?.0, Users::look(kubectl));
    let row = describe::find(&inside, &users, name)?;
    show(format, || volumes::row_json(&row, &inside), || describe::volume(&row, &inside, &users))
}

fn describe_node(kubectl: &Kubectl, format: Format, name: &str) -> Result<ExitCode> {
    let (inside, namespace) = inside(kubectl)?;
    let (pods, nodes, users) =
        (pods_in(kubectl, &namespace)?, seen::nodes(kubectl).ok(), Users::look(kubectl));
    let machines = nodes::machines(nodes.as_deref(), &pods, Some(&inside));
    let Some(machine) = machines.iter().find(|machine| machine.name == name) else {
        bail!("there is no node {name:?}: `kubectl sheepdog get nodes` shows all");
    };
    let here: Vec<&Pod> = pods.iter().filter(|pod| pod.node == name).collect();
    let runs = |component: &str| here.iter().copied().find(|pod| pod.component == component && pod.runs);
    let disks = runs("storage").and_then(|pod| inside::disks(kubectl, &[pod]).pop());
    let devices = runs("device").map(|pod| inside::devices(kubectl, pod));
    let parts = describe::Parts {
        machine,
        node: nodes.iter().flatten().find(|node| node.name == name),
        disks: disks.map(|(_, answer)| answer),
        devices,
        pods: here,
    };
    let value = || {
        let pod = |pod: &&Pod| json!({"component": pod.component, "name": pod.name, "ready": pod.ready, "why": pod.trouble});
        json!({
            "node": nodes::to_json(std::slice::from_ref(machine))[0],
            "pods": parts.pods.iter().map(pod).collect::<Vec<_>>(),
            "disks": parts.disks.as_ref().and_then(|answer| answer.as_ref().ok()),
            "devices": parts.devices.as_ref().and_then(|answer| answer.as_ref().ok()),
        })
    };
    show(format, value, || describe::node(&parts, &inside, &users))
}
