//! The program as a plugin of kubectl, with a kubectl that answers from files. What the reference shows is what is printed here.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which may")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory of the program under its other name, and of answers.
struct Kubernetes {
    directory: PathBuf,
    answers: String,
}

fn files() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubernetes")
}

impl Kubernetes {
    /// One that answers from directories, the first first.
    fn new(answers: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("dog-kubectl-{}-{number}", std::process::id()));
        fs::create_dir_all(directory.join("bin")).unwrap();
        fs::create_dir_all(directory.join("own")).unwrap();
        symlink(env!("CARGO_BIN_EXE_dog"), directory.join("bin/kubectl-sheepdog")).unwrap();
        symlink(files().join("kubectl"), directory.join("bin/kubectl")).unwrap();
        let mut all = vec![directory.join("own").display().to_string()];
        all.extend(answers.iter().map(|name| files().join(name).display().to_string()));
        Self { directory, answers: all.join(" ") }
    }

    /// Another answer than the files have.
    fn with(self, name: &str, text: &str) -> Self {
        fs::write(self.directory.join("own").join(name), text).unwrap();
        self
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(self.directory.join("bin/kubectl-sheepdog"));
        command
            .args(words.split_whitespace())
            .env("PATH", format!("{}:/usr/bin:/bin", self.directory.join("bin").display()))
            .env("ANSWERS", &self.answers)
            .env("ASKED", self.directory.join("asked"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, words: &str) -> Output {
        self.command(words).output().unwrap()
    }

    /// Exit status and standard output.
    fn told(&self, words: &str) -> (i32, String) {
        let output = self.run(words);
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    }

    fn asked(&self) -> String {
        fs::read_to_string(self.directory.join("asked")).unwrap()
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn not_installed() -> Kubernetes {
    let empty = r#"{"items": []}"#;
    let unknown = |kind: &str| format!("error: the server doesn't have a resource type {kind:?}\n");
    Kubernetes::new(&["healthy"])
        .with("sheepdogclusters.error", &unknown("sheepdogclusters"))
        .with("volumesnapshotclasses.error", &unknown("volumesnapshotclasses"))
        .with("pods-ours.json", empty)
        .with("workloads.json", empty)
        .with("namespace.json", "")
        .with("csidriver.json", "")
}

/// What the reference shows: which answers, words and exit status.
fn shown() -> Vec<(Kubernetes, &'static str, i32)> {
    let healthy = || Kubernetes::new(&["healthy"]);
    vec![
        (healthy(), "status", 0),
        (Kubernetes::new(&["degraded", "healthy"]), "status", 1),
        (not_installed(), "status", 1),
        (healthy(), "get volumes", 0),
        (healthy(), "get snapshots", 0),
        (healthy(), "get nodes", 0),
        (healthy(), "get disks", 0),
        (healthy(), "describe volume default/first", 0),
        (healthy(), "describe node worker-1", 0),
        (not_installed(), "preflight", 0),
    ]
}

#[test]
fn the_reference_shows_what_is_printed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../docs/reference/kubectl.md");
    let reference = fs::read_to_string(path).unwrap();
    for (kubernetes, words, status) in shown() {
        let output = kubernetes.run(words);
        let text = String::from_utf8_lossy(&output.stdout);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{words}: {text}{said}");
        let block = format!("$ kubectl sheepdog {words}\n{text}");
        assert!(reference.contains(&block), "docs/reference/kubectl.md does not show:\n{block}\n{said}");
    }
}

#[test]
fn everything_can_be_had_as_json() {
    for (kubernetes, words, status) in shown() {
        let (code, text) = kubernetes.told(&format!("{words} -o json"));
        assert_eq!(code, status, "{words}: {text}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = match words {
            "status" => value["health"] == if status == 0 { "ok" } else { "not ok" },
            "get volumes" => value[0]["claim"] == "default/first" && value[0]["pods"][0] == "default/writer",
            "get snapshots" => value[0]["volume_snapshot"] == "default/monday",
            "get nodes" => value[0]["name"] == "worker-1" && value[0]["volumes"] == 1,
            "get disks" => value[2]["disks"][0]["state"] == "in use",
            "describe volume default/first" => value["nodes"][0] == "worker-1" && value["id"] == 3,
            "describe node worker-1" => value["devices"][0]["path"] == "/dev/loop0",
            "preflight" => value["result"] == "warning",
            _ => false,
        };
        assert!(expected, "{words}: {value:#}");
    }
}

#[test]
fn other_words_go_to_dog_in_a_storage_pod() {
    let kubernetes = Kubernetes::new(&["healthy"]);
    // The exit status is that of dog; words behind the first one are not ours.
    assert_eq!(kubernetes.told("vdi info -n 3 disk"), (3, "words: vdi info -n 3 disk\n".into()));
    let asked = kubernetes.asked();
    let exec = asked.lines().last().unwrap();
    assert_eq!(
        exec,
        "exec --namespace sheepdog sheepdog-storage-x7k2p --container sheep -- dog --server \
         /var/lib/sheepdog/storage/control.sock vdi info -n 3 disk"
    );
    // Only commands that read standard input get it.
    let mut child =
        kubernetes.command("vdi write disk").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"twelve bytes").unwrap();
    assert_eq!(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().trim(), "12");
    assert!(kubernetes.asked().contains("--container sheep --stdin -- dog"));
    assert!(!exec.contains("--stdin"));
    let (_, told) = kubernetes.told("-o json vdi delete disk");
    assert_eq!(told, "words: --output json vdi delete disk\n", "the option is handed over too");
}

#[test]
fn what_cannot_work_in_a_pod_is_refused_and_help_needs_none() {
    let kubernetes = Kubernetes::new(&[]);
    for (words, told) in [
        ("device list", "describe node"),
        ("vdi import image.qcow2 disk", "vdi write"),
        ("vdi read disk --file out", "standard input and output"),
        ("frobnicate", "--help"),
    ] {
        let output = kubernetes.run(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(told), "{words}: {said}");
    }
    let (code, told) = kubernetes.told("vdi snapshot --help");
    assert!(code == 0 && told.contains("Take a snapshot"), "{told}");
    let (code, told) = kubernetes.told("--help");
    assert!(code == 0 && told.contains("kubectl sheepdog") && told.contains("preflight"), "{told}");
    assert!(!kubernetes.directory.join("asked").exists(), "kubectl was run for this");
}

#[test]
fn context_and_namespace_reach_kubectl() {
    let kubernetes = Kubernetes::new(&["healthy"]);
    kubernetes.run("status -n storage --context far --kubeconfig /k");
    let asked = kubernetes.asked();
    assert!(asked.contains("--context far --kubeconfig /k get nodes"), "{asked}");
    assert!(asked.contains("get sheepdogclusters.sheepdog.io --namespace storage -o json"), "{asked}");
}

#[test]
fn it_says_what_it_cannot_know() {
    let refused =
        "The connection to the server 127.0.0.1:6443 was refused - did you specify the right host or port?\n";
    let names = ["sheepdogclusters", "pods-ours", "workloads", "nodes", "version"];
    let silent = names.iter().fold(Kubernetes::new(&["healthy"]), |kubernetes, name| {
        kubernetes.with(&format!("{name}.error"), refused)
    });
    for words in ["status", "preflight"] {
        let (code, told) = silent.told(words);
        assert!(code == 2 && told.contains("was refused"), "{words}: {told}");
    }
    let output = silent.run("vdi list");
    assert!(
        output.status.code() == Some(1) && String::from_utf8_lossy(&output.stderr).contains("was refused")
    );
    // No kubectl at all.
    let nothing = Kubernetes::new(&[]);
    let output = nothing.command("status").env("PATH", "/nowhere").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(2) && told.contains("no kubectl on the PATH"), "{told}");
    // The cluster does not answer, for a reason of kubectl's.
    let forbidden = "Error from server (Forbidden): pods \"sheepdog-storage-x7k2p\" is forbidden: User \"joe\" cannot create \
                     resource \"pods/exec\" in API group \"\" in the namespace \"sheepdog\"\n";
    let mute = Kubernetes::new(&["healthy"]).with("dog-cluster-info.error", forbidden);
    let (code, told) = mute.told("status");
    assert!(code == 2 && told.contains("pods/exec") && told.contains("worker-3"), "{told}");
}

#[test]
fn without_rights_nothing_can_be_installed() {
    let kubernetes = not_installed().with("may-not", "");
    let (code, told) = kubernetes.told("preflight");
    assert!(code == 1 && told.contains("you may not make customresourcedefinitions, clusterroles"), "{told}");
}
