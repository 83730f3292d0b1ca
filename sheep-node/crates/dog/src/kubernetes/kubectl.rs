//! Runs `kubectl`, which knows how to reach Kubernetes and as whom.

use super::cli::Access;
use super::json::text;
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{ErrorKind, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Longest time for one answer of the API server.
const REQUEST_TIMEOUT: &str = "--request-timeout=20s";
/// Longest time for one run of kubectl. Above that of a request, so that kubectl says what was wrong.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(5);
/// Longest text of a problem, in characters.
const LONGEST: usize = 300;

/// Why something is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// Kubernetes has no objects of this kind: their definition is not installed.
    NotServed,
    /// There is no such object.
    NotFound(String),
    /// The user may not do this.
    Forbidden(String),
    /// Anything else: Kubernetes cannot be reached, or kubectl not be run.
    Other(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotServed => f.write_str("Kubernetes has no such objects"),
            Self::NotFound(text) | Self::Forbidden(text) | Self::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Problem {}

/// What a run of kubectl has said.
pub(super) struct Said {
    /// How it ended.
    pub(super) status: ExitStatus,
    /// Its standard output.
    pub(super) out: String,
    /// Its standard error.
    pub(super) err: String,
}

/// `kubectl` for one Kubernetes.
pub(super) struct Kubectl {
    access: Access,
}

impl Kubectl {
    /// With the options that the user has given.
    pub(super) fn new(access: Access) -> Self {
        Self { access }
    }

    /// The namespace that the user has given.
    pub(super) fn namespace(&self) -> Option<&str> {
        self.access.namespace.as_deref()
    }

    fn command(&self) -> Command {
        let mut command = Command::new("kubectl");
        for (option, value) in
            [("--context", &self.access.context), ("--kubeconfig", &self.access.kubeconfig)]
        {
            if let Some(value) = value {
                command.args([option, value]);
            }
        }
        command
    }

    /// `kubectl get WORDS -o json`; null if there is no such object and it was said that this is no error.
    pub(super) fn get(&self, words: &[&str]) -> Result<Value, Problem> {
        let said = self.run(["get"].iter().chain(words).chain(&["-o", "json", REQUEST_TIMEOUT]))?;
        if !said.status.success() {
            return Err(problem(&said.err));
        }
        if said.out.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&said.out)
            .map_err(|error| Problem::Other(format!("kubectl does not answer with JSON: {error}")))
    }

    /// The items of a list in the namespace that the user has given, or in all.
    pub(super) fn list(&self, words: &[&str]) -> Result<Vec<Value>, Problem> {
        self.list_in(self.namespace(), words)
    }

    /// The items of a list in a namespace, or in all.
    pub(super) fn list_in(&self, namespace: Option<&str>, words: &[&str]) -> Result<Vec<Value>, Problem> {
        let place = namespace.map_or(vec!["--all-namespaces"], |namespace| vec!["--namespace", namespace]);
        match self.get(&[words, &place].concat())?["items"].take() {
            Value::Array(items) => Ok(items),
            _ => Err(Problem::Other("kubectl does not answer with a list".into())),
        }
    }

    /// Runs it without input, and waits for its end.
    pub(super) fn run(&self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Said, Problem> {
        let mut command = self.command();
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(cannot_run)?;
        let (out, err) = (read(child.stdout.take()), read(child.stderr.take()));
        let begin = Instant::now();
        loop {
            match child.try_wait().map_err(cannot_run)? {
                Some(status) => {
                    // Both end with it, unless somebody else has their other ends too.
                    let take = |from: Receiver<String>| from.recv_timeout(PATIENCE).unwrap_or_default();
                    return Ok(Said { status, out: take(out), err: take(err) });
                }
                None if begin.elapsed() > PATIENCE => {
                    let _ = child.kill();
                    let _ = child.wait();
                    let seconds = PATIENCE.as_secs();
                    return Err(Problem::Other(format!("kubectl has not answered within {seconds} s")));
                }
                None => thread::sleep(LOOK),
            }
        }
    }

    /// Becomes `kubectl exec`, with input if it is wanted. Returns only if that cannot be.
    pub(super) fn become_exec(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        input: bool,
        words: &[OsString],
    ) -> Problem {
        let mut command = self.command();
        command.args(["exec", "--namespace", namespace, pod, "--container", container]);
        if input {
            command.arg("--stdin");
        }
        cannot_run(command.arg("--").args(words).exec())
    }

    /// Runs `dog` in a pod, and reads what it prints as JSON. It may end with an error and have printed some all the same.
    pub(super) fn dog(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        words: &[&str],
    ) -> Result<Value, Problem> {
        let place = ["exec", "--namespace", namespace, pod, "--container", container, "--", "dog"];
        let said = self.run(place.iter().chain(&["--output", "json"]).chain(words))?;
        match serde_json::from_str(&said.out) {
            Ok(value) => Ok(value),
            Err(_) if !said.status.success() => Err(problem(&said.err)),
            Err(error) => Err(Problem::Other(format!("dog does not answer with JSON: {error}"))),
        }
    }
}

fn cannot_run(error: std::io::Error) -> Problem {
    Problem::Other(match error.kind() {
        ErrorKind::NotFound => "there is no kubectl on the PATH; install it first".into(),
        _ => format!("cannot run kubectl: {error}"),
    })
}

/// Reads to the end in the background: a child that cannot write on never ends.
fn read(from: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            let _ = from.read_to_end(&mut bytes);
        }
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

/// What kubectl means by what it says on standard error.
pub(super) fn problem(said: &str) -> Problem {
    let words = last_words(said);
    let has = |part: &str| said.contains(part);
    if has("the server doesn't have a resource type") || has("could not find the requested resource") {
        Problem::NotServed
    } else if has("(Forbidden)") {
        Problem::Forbidden(words)
    } else if has("(NotFound)") {
        Problem::NotFound(words)
    } else {
        Problem::Other(words)
    }
}

/// The last line that says something: before it stand log lines of kubectl, behind it may stand how `dog` ended.
fn last_words(said: &str) -> String {
    let is_log = |line: &str| {
        let mut letters = line.chars();
        letters.next().is_some_and(|letter| "EWIF".contains(letter))
            && letters.by_ref().take(4).filter(char::is_ascii_digit).count() == 4
    };
    let line = said.lines().map(str::trim).rfind(|line| {
        !line.is_empty()
            && !is_log(line)
            && !line.starts_with("command terminated")
            && !line.to_ascii_lowercase().starts_with("warning")
    });
    let line = line.unwrap_or("kubectl has failed and not said why");
    let mut line = line.strip_prefix("error: ").or_else(|| line.strip_prefix("dog: ")).unwrap_or(line);
    if line.starts_with("Error from server (")
        && let Some((_, rest)) = line.split_once("): ")
    {
        line = rest;
    }
    shorten(line)
}

/// Not longer than anybody reads.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or(text).trim_end()),
        None => text.to_owned(),
    }
}

/// Version of kubectl, and that of Kubernetes if it answers, as `v1.35.4`.
pub(super) fn versions(said: &str) -> (Option<String>, Option<String>) {
    let value: Value = serde_json::from_str(said).unwrap_or_default();
    let of = |side: &str| Some(text(&value[side]["gitVersion"])).filter(|version| !version.is_empty());
    (of("clientVersion"), of("serverVersion"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubectl_means() {
        // As kubectl 1.32 to 1.35 print it.
        for (said, meant) in [
            ("error: the server doesn't have a resource type \"sheepdogclusters\"\n", Problem::NotServed),
            (
                "Error from server (NotFound): the server could not find the requested resource\n",
                Problem::NotServed,
            ),
            (
                "Error from server (Forbidden): pods is forbidden: User \"joe\" cannot list\n",
                Problem::Forbidden("pods is forbidden: User \"joe\" cannot list".into()),
            ),
            (
                "Error from server (NotFound): namespaces \"x\" not found\n",
                Problem::NotFound("namespaces \"x\" not found".into()),
            ),
            (
                "E1123 22:52:06.595604    5593 memcache.go:265] \"Unhandled Error\" err=\"couldn't get\"\n\
                 The connection to the server 127.0.0.1:26444 was refused - did you specify the right host or port?\n",
                Problem::Other(
                    "The connection to the server 127.0.0.1:26444 was refused - did you specify the right host or port?"
                        .into(),
                ),
            ),
            (
                "Warning: old\ndog: no VDI \"x\"\ncommand terminated with exit code 1\n",
                Problem::Other("no VDI \"x\"".into()),
            ),
            ("", Problem::Other("kubectl has failed and not said why".into())),
        ] {
            assert_eq!(problem(said), meant, "{said}");
        }
        assert_eq!(shorten(&"ä".repeat(301)).chars().count(), 303);
    }

    #[test]
    fn versions_of_both_sides_or_of_one() {
        let said =
            r#"{"clientVersion": {"gitVersion": "v1.35.4"}, "serverVersion": {"gitVersion": "v1.33.0"}}"#;
        assert_eq!(versions(said), (Some("v1.35.4".into()), Some("v1.33.0".into())));
        let said = r#"{"clientVersion": {"gitVersion": "v1.35.4"}, "kustomizeVersion": "v5.5.0"}"#;
        assert_eq!(versions(said), (Some("v1.35.4".into()), None));
        assert_eq!(versions(""), (None, None));
    }
}
