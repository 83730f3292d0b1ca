//! The rules of the repository, as tests: the dependency table, file sizes.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which may")]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn metadata() -> Value {
    let out = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version=1",
            "--locked",
            "--offline",
            "--filter-platform=x86_64-unknown-linux-gnu",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

struct Table {
    rows: BTreeMap<String, (bool, BTreeSet<String>)>,
    forbidden: BTreeSet<String>,
}

fn table() -> Table {
    let text = std::fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    let section = text.split("## Dependencies").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut rows = BTreeMap::new();
    for line in section.lines().filter(|line| line.starts_with("| sheep-")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let uses = cells[3].split(',').map(str::trim).filter(|s| !s.is_empty()).map(String::from).collect();
        rows.insert(cells[1].to_string(), (cells[2] == "yes", uses));
    }
    let list = section.split("may reach:").nth(1).unwrap();
    let forbidden = list.trim().trim_end_matches('.').split(',').map(|s| s.trim().to_string()).collect();
    Table { rows, forbidden }
}

/// Names of the packages that a package uses when it is built for use (not for its tests).
fn normal_edges(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let name_of: BTreeMap<&str, &str> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| (p["id"].as_str().unwrap(), p["name"].as_str().unwrap()))
        .collect();
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array().unwrap() {
        let uses = edges.entry(name_of[node["id"].as_str().unwrap()].to_string()).or_default();
        for dep in node["deps"].as_array().unwrap() {
            if dep["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].is_null()) {
                uses.insert(name_of[dep["pkg"].as_str().unwrap()].to_string());
            }
        }
    }
    edges
}

fn closure(edges: &BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut todo = vec![from.to_string()];
    while let Some(name) = todo.pop() {
        for next in edges.get(&name).into_iter().flatten() {
            if seen.insert(next.clone()) {
                todo.push(next.clone());
            }
        }
    }
    seen
}

#[test]
fn dependencies_match_the_architecture_page() {
    let (table, edges) = (table(), normal_edges(&metadata()));
    let ours: BTreeSet<&String> = edges.keys().filter(|name| name.starts_with("sheep-")).collect();
    assert_eq!(ours, table.rows.keys().collect(), "every crate has a row, every row a crate");
    for (name, (_, allowed)) in &table.rows {
        let used: BTreeSet<String> =
            edges[name].iter().filter(|n| n.starts_with("sheep-")).cloned().collect();
        let extra: Vec<_> = used.difference(allowed).collect();
        assert!(extra.is_empty(), "{name} uses {extra:?}, which docs/ARCHITECTURE.md does not allow");
    }
}

#[test]
fn core_crates_reach_no_clock_socket_thread_disk_or_random_source() {
    let (table, edges) = (table(), normal_edges(&metadata()));
    assert!(table.forbidden.contains("tokio") && table.forbidden.len() > 5);
    for (name, _) in table.rows.iter().filter(|(_, (core, _))| *core) {
        let reached: Vec<_> = closure(&edges, name).intersection(&table.forbidden).cloned().collect();
        assert!(reached.is_empty(), "{name} reaches {reached:?}");
    }
}

fn sources(under: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(under).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("target") && !path.ends_with(".git") {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The standard library can do what the table forbids, so core crates are searched for it by name.
#[test]
fn core_crates_do_not_name_the_outside_world() {
    let banned = [
        "std::net",
        "std::fs",
        "std::thread",
        "std::time::Instant",
        "std::time::SystemTime",
        "Instant::now",
        "SystemTime::now",
        "std::env",
        "std::process",
        "HashMap",
        "HashSet",
        "Mutex",
        "RwLock",
        "Condvar",
        "mpsc",
    ];
    // Buffers go back to their pool from whatever thread drops them last; nobody waits for anybody there.
    let shared = Path::new("frontend/src/buffer.rs");
    let core: Vec<String> = table().rows.into_iter().filter(|(_, (core, _))| *core).map(|(n, _)| n).collect();
    assert!(core.len() > 5);
    for name in core {
        let mut files = Vec::new();
        sources(
            &root().join("sheep-node/crates").join(name.trim_start_matches("sheep-")).join("src"),
            &mut files,
        );
        assert!(!files.is_empty(), "{name} has no sources");
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            for (number, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap();
                for word in banned {
                    // Addresses are data; only sockets are not.
                    let allowed = word == "std::net" && code.contains("std::net::") && code.contains("Addr")
                        || word == "Mutex" && file.ends_with(shared);
                    assert!(!code.contains(word) || allowed, "{}:{}: {word}", file.display(), number + 1);
                }
            }
        }
    }
}

#[test]
fn files_stay_readable() {
    let mut files = Vec::new();
    for dir in ["sheep-node", "csi-driver", "operator", "e2e"] {
        sources(&root().join(dir), &mut files);
    }
    let long: Vec<String> = files
        .iter()
        .map(|file| (file, std::fs::read_to_string(file).unwrap().lines().count()))
        .filter(|(_, lines)| *lines > 500)
        .map(|(file, lines)| format!("{} ({lines} lines)", file.display()))
        .collect();
    assert!(long.is_empty(), "files over 500 lines: {long:?}");
}
