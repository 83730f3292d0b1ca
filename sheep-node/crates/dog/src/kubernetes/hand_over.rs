//! Everything that `dog` does itself: it is run in a storage pod with the words as they are.

use super::inside::{command, container, to_ask};
use super::kubectl::Kubectl;
use super::seen::storage_pods;
use crate::cli::{Cli as Dog, Format};
use anyhow::{Result, bail};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use std::ffi::OsString;
use std::process::ExitCode;

/// Commands that read what comes in when they name no file.
const READERS: [[&str; 2]; 2] = [["vdi", "write"], ["vdi", "restore"]];

/// Settings that the operator keeps: options of `dog cluster settings`, and fields of the SheepdogCluster's spec.
const FIELDS: [(&str, &str); 5] = [
    ("--copies", "redundancy.copies"),
    ("--min-copies", "redundancy.minCopies"),
    ("--out-delay-ms", "recovery.delay"),
    ("--recovery-rate", "recovery.bandwidthPerNode"),
    ("--scrub-interval-ms", "recovery.scrubInterval"),
];

/// Hands over. Returns only if it cannot.
pub(super) fn run(kubectl: &Kubectl, format: Format, words: &[OsString]) -> Result<ExitCode> {
    if let Some(problem) = refusal(words) {
        bail!("{problem}");
    }
    // The help is the same here; the pod knows better what is wrong with words, it may be of another version.
    if let Err(error) = Dog::try_parse_from([OsString::from("dog")].iter().chain(words))
        && matches!(
            error.kind(),
            ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        )
    {
        let _ = error.print();
        return Ok(ExitCode::from(u8::from(error.kind() != ErrorKind::DisplayHelp) * 2));
    }
    let pods = storage_pods(kubectl)?;
    let Some(pod) = to_ask(&pods).first().copied() else {
        bail!("no storage pod runs; `kubectl sheepdog status` says why");
    };
    let mut all: Vec<OsString> = command().map(OsString::from).into();
    if format == Format::Json {
        all.extend(["--output", "json"].map(OsString::from));
    }
    all.extend_from_slice(words);
    Err(kubectl.become_exec(&pod.namespace, &pod.name, container(), reads(words), &all).into())
}

/// Whether the command reads standard input. Others must not have it: what stands there may be for somebody else.
fn reads(words: &[OsString]) -> bool {
    READERS.iter().any(|reader| words.iter().zip(reader).filter(|(word, part)| word == part).count() == 2)
}

/// What cannot work in a pod, with what does.
pub(super) fn refusal(words: &[OsString]) -> Option<String> {
    let text: Vec<&str> = words.iter().map(|word| word.to_str().unwrap_or_default()).collect();
    let known = Dog::command();
    let first = text.first().copied().unwrap_or_default();
    if known.find_subcommand(first).is_none() && !first.starts_with('-') {
        return Some(format!("there is no command {first:?}; `kubectl sheepdog --help` names all"));
    }
    let file = |word: &&str| word.starts_with("-f") || word.starts_with("--file");
    match text[..] {
        ["device", ..] => Some(
            "devices belong to machines: `kubectl sheepdog describe node NAME` shows those of a node, and the CSI driver \
             makes them"
                .into(),
        ),
        ["vdi", "import" | "export", ..] => {
            Some("a storage pod has no disk images: use `vdi write` and `vdi read`, which take raw ones from standard input and give them to standard output".into())
        }
        ["vdi", "read" | "write" | "backup" | "restore", ..] if text.iter().any(file) => {
            Some("the file would be one of the storage pod: use standard input and output instead of --file".into())
        }
        ["cluster", "recovery", "pause" | "resume", ..] => Some(kept_by_operator("recovery.paused")),
        ["cluster", "settings", ref rest @ ..] => {
            let field = |word: &&str| {
                let flag = word.split('=').next().unwrap_or_default();
                FIELDS.iter().find(|(of, _)| *of == flag).map(|(_, field)| *field)
            };
            rest.iter().find_map(field).map(kept_by_operator)
        }
        ["cluster", "format", ..] => Some("the operator makes the cluster: `kubectl sheepdog status` says how far it is".into()),
        ["cluster", "shutdown", ..] => {
            Some("Kubernetes would start the pods again: `helm uninstall` ends them, and leaves the data".into())
        }
        _ => None,
    }
}

/// What the operator would change back.
fn kept_by_operator(field: &str) -> String {
    format!(
        "the operator keeps this as spec.{field} of the SheepdogCluster says: `kubectl edit sheepdogcluster`, or `helm upgrade`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_operator_would_change_back_is_refused_with_where_it_is_kept() {
        let refused = |line: &str| refusal(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for (line, field) in [
            ("cluster recovery pause", "spec.recovery.paused"),
            ("cluster settings --copies 2", "spec.redundancy.copies"),
            ("cluster settings --max-voters=5 --scrub-interval-ms=1", "spec.recovery.scrubInterval"),
            ("cluster format", "the operator makes the cluster"),
            ("cluster shutdown", "helm uninstall"),
        ] {
            assert!(refused(line).is_some_and(|said| said.contains(field)), "{line}: {:?}", refused(line));
        }
        for line in
            ["cluster recovery", "cluster settings", "cluster settings --max-voters 5", "cluster check"]
        {
            assert_eq!(refused(line), None, "{line}");
        }
    }
}
