//! What is installed in Kubernetes is what the programs say: files that are printed, and stored for people to read, do not drift.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which may")]

use sheep_e2e::process::{run, workspace_binary};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn stored(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn definitions_are_those_of_the_operator() {
    let printed = run(workspace_binary("sheep-operator").unwrap(), ["crds"]).unwrap();
    assert!(printed.contains("kind: CustomResourceDefinition"));
    for path in ["crds/sheepdogclusters.yaml", "charts/sheepdog/files/sheepdogclusters.yaml"] {
        assert!(
            stored(path).trim_end() == printed.trim_end(),
            "{path} is of another operator: make manifests"
        );
    }
}

#[test]
fn manifests_are_those_of_the_chart() {
    let printed = run("bash", [root().join("manifests/render.sh")]).unwrap();
    assert!(printed.contains("kind: Deployment") && printed.contains("kind: CustomResourceDefinition"));
    assert!(!printed.contains("helm.sh/hook"), "tests are for Helm");
    let path = "manifests/sheepdog.yaml";
    assert!(stored(path).trim_end() == printed.trim_end(), "{path} is of another chart: make manifests");
}
