//! `kubectl sheepdog preflight`: whether Sheepdog can be installed here, and what to do if not.

mod checks;
mod numbers;

use super::claims::DRIVER;
use super::kubectl::{Kubectl, Problem, problem, versions};
use super::objects::{KubeNode, Wish};
use super::seen::{all_wishes, nodes};
use crate::output;
use serde_json::{Value, json};
use std::thread;

/// Where it is installed if nothing is said.
const NAMESPACE: &str = "sheepdog";
/// What an installation makes: in no namespace, and in its own. Helm keeps its record in a Secret.
const EVERYWHERE: [&str; 3] = [
    "customresourcedefinitions.apiextensions.k8s.io",
    "clusterroles.rbac.authorization.k8s.io",
    "clusterrolebindings.rbac.authorization.k8s.io",
];
const INSIDE: [&str; 7] = [
    "deployments.apps",
    "configmaps",
    "secrets",
    "serviceaccounts",
    "roles.rbac.authorization.k8s.io",
    "rolebindings.rbac.authorization.k8s.io",
    "networkpolicies.networking.k8s.io",
];

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// It works, but somebody should know.
    Warning,
    /// Nobody may know.
    Unknown,
    /// It does not work so.
    Problem,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Unknown => "unknown",
            Self::Problem => "problem",
        }
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Check {
    /// How it ended.
    pub(super) level: Level,
    /// What was looked at.
    pub(super) what: &'static str,
    /// What was found, and what to do.
    pub(super) words: String,
}

/// What the user may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rights {
    /// Everything.
    All,
    /// Everything that an installation makes, but not whatever there is.
    Enough,
    /// Not to make these.
    Lacking(Vec<String>),
}

/// What was found.
#[derive(Clone, Debug)]
pub(super) struct Findings {
    /// Namespace that it would be installed in.
    pub(super) namespace: String,
    /// Version of kubectl.
    pub(super) client: Option<String>,
    /// Version of Kubernetes, or why there is none.
    pub(super) server: Result<String, Problem>,
    /// Its nodes.
    pub(super) nodes: Result<Vec<KubeNode>, Problem>,
    /// Whether it has VolumeSnapshots.
    pub(super) snapshots: Result<bool, Problem>,
    /// The namespace; null if it is not there.
    pub(super) namespace_object: Result<Value, Problem>,
    /// SheepdogClusters.
    pub(super) wishes: Result<Vec<Wish>, Problem>,
    /// The CSIDriver of our name; null if there is none.
    pub(super) driver: Result<Value, Problem>,
    /// What the user may do.
    pub(super) rights: Result<Rights, Problem>,
}

impl Findings {
    /// Looks at everything; only at the versions if Kubernetes does not answer.
    pub(super) fn look(kubectl: &Kubectl) -> Self {
        let namespace = kubectl.namespace().unwrap_or(NAMESPACE).to_owned();
        let (client, server) = match kubectl.run(["version", "-o", "json"]) {
            Ok(said) => {
                let (client, server) = versions(&said.out);
                (client, server.ok_or_else(|| problem(&said.err)))
            }
            Err(problem) => (None, Err(problem)),
        };
        if let Err(problem) = &server {
            return Self::nothing(namespace, client, problem.clone());
        }
        thread::scope(|scope| {
            let rights = scope.spawn(|| rights(kubectl, &namespace));
            let snapshots = scope.spawn(|| snapshots(kubectl));
            let wishes = scope.spawn(|| all_wishes(kubectl));
            let nodes = nodes(kubectl);
            let namespace_object = kubectl.get(&["namespace", &namespace, "--ignore-not-found"]);
            let driver = kubectl.get(&["csidriver", DRIVER, "--ignore-not-found"]);
            let lost = || Problem::Other("a question was not finished".into());
            Self {
                client,
                server,
                nodes,
                snapshots: snapshots.join().unwrap_or_else(|_| Err(lost())),
                namespace_object,
                wishes: wishes.join().unwrap_or_else(|_| Err(lost())),
                driver,
                rights: rights.join().unwrap_or_else(|_| Err(lost())),
                namespace: namespace.clone(),
            }
        })
    }

    fn nothing(namespace: String, client: Option<String>, problem: Problem) -> Self {
        Self {
            namespace,
            client,
            nodes: Err(problem.clone()),
            snapshots: Err(problem.clone()),
            namespace_object: Err(problem.clone()),
            wishes: Err(problem.clone()),
            driver: Err(problem.clone()),
            rights: Err(problem.clone()),
            server: Err(problem),
        }
    }
}

fn snapshots(kubectl: &Kubectl) -> Result<bool, Problem> {
    match kubectl.list_in(None, &["volumesnapshotclasses.snapshot.storage.k8s.io"]) {
        // Who may not see them knows that there are such things.
        Ok(_) | Err(Problem::Forbidden(_)) => Ok(true),
        Err(Problem::NotServed) => Ok(false),
        Err(problem) => Err(problem),
    }
}

fn may(kubectl: &Kubectl, verb: &str, what: &str, place: &[&str]) -> Result<bool, Problem> {
    let said = kubectl.run(["auth", "can-i", verb, what].iter().chain(place))?;
    match said.out.trim() {
        "yes" => Ok(true),
        answer if answer.starts_with("no") => Ok(false),
        _ => Err(problem(&said.err)),
    }
}

fn rights(kubectl: &Kubectl, namespace: &str) -> Result<Rights, Problem> {
    if may(kubectl, "*", "*", &["--all-namespaces"])? {
        return Ok(Rights::All);
    }
    let mut lacking = Vec::new();
    let everywhere = EVERYWHERE.iter().map(|what| (*what, vec!["--all-namespaces"]));
    let inside = INSIDE.iter().map(|what| (*what, vec!["--namespace", namespace]));
    for (what, place) in everywhere.chain(inside) {
        if !may(kubectl, "create", what, &place)? {
            lacking.push(what.split('.').next().unwrap_or(what).to_owned());
        }
    }
    Ok(if lacking.is_empty() { Rights::Enough } else { Rights::Lacking(lacking) })
}

/// All checks.
pub(super) fn checks(findings: &Findings) -> Vec<Check> {
    checks::all(findings)
}

/// The worst that was found.
pub(super) fn worst(checks: &[Check]) -> Level {
    let has = |level| checks.iter().any(|check| check.level == level);
    [Level::Problem, Level::Unknown, Level::Warning]
        .into_iter()
        .find(|level| has(*level))
        .unwrap_or(Level::Ok)
}

/// A line for each check, and a sentence.
pub(super) fn text(findings: &Findings, checks: &[Check]) -> String {
    let rows = checks
        .iter()
        .map(|check| vec![check.level.word().to_owned(), check.what.to_owned(), check.words.clone()]);
    let table = output::table(&["", "CHECK", "FOUND"], rows);
    let number = |level| checks.iter().filter(|check| check.level == level).count();
    let end = match worst(checks) {
        Level::Problem => {
            format!("Not yet: {}.", super::json::count(number(Level::Problem), "problem"))
        }
        Level::Unknown => "Whether it can be installed is not known.".into(),
        Level::Ok | Level::Warning => format!(
            "Sheepdog can be installed: \
             helm install sheepdog charts/sheepdog --namespace {} --create-namespace",
            findings.namespace
        ),
    };
    format!("{table}\n\n{end}")
}

/// The same for programs.
pub(super) fn to_json(findings: &Findings, checks: &[Check]) -> Value {
    let check =
        |check: &Check| json!({"result": check.level.word(), "check": check.what, "found": check.words});
    json!({
        "result": worst(checks).word(),
        "namespace": findings.namespace,
        "checks": checks.iter().map(check).collect::<Vec<_>>(),
    })
}
