//! Every dependency may be used under a licence on this list, and comes from crates.io. `deny.toml` says the same to
//! cargo-deny, which also knows advisories; this test needs nothing installed.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

/// Permissive licences that ask for no more than a notice.
const ALLOWED: [&str; 9] = [
    "Apache-2.0",
    "MIT",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "BSL-1.0",
    "Unlicense",
];
/// Exceptions only add permissions.
const ALLOWED_EXCEPTIONS: [&str; 1] = ["LLVM-exception"];

/// Whether an SPDX expression can be satisfied with allowed licences. Precedence as in SPDX: WITH, AND, OR; the old
/// notation `MIT/Apache-2.0` means OR.
fn acceptable(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    any_of(&words, &mut at) == Some(true) && at == words.len()
}

// Each of these takes its part of the expression from `at` on; `None` means that the expression is malformed.

fn any_of(words: &[&str], at: &mut usize) -> Option<bool> {
    let mut result = all_of(words, at)?;
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        // Not short-circuited: the words have to be consumed.
        result |= all_of(words, at)?;
    }
    Some(result)
}

fn all_of(words: &[&str], at: &mut usize) -> Option<bool> {
    let mut result = one(words, at)?;
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        result &= one(words, at)?;
    }
    Some(result)
}

fn one(words: &[&str], at: &mut usize) -> Option<bool> {
    let word = words.get(*at)?;
    *at += 1;
    if *word == "(" {
        let inner = any_of(words, at)?;
        (words.get(*at)? == &")").then_some(())?;
        *at += 1;
        return Some(inner);
    }
    let mut result = ALLOWED.contains(word);
    if words.get(*at) == Some(&"WITH") {
        result &= ALLOWED_EXCEPTIONS.contains(words.get(*at + 1)?);
        *at += 2;
    }
    Some(result)
}

#[test]
fn expressions_are_understood() {
    for good in [
        "MIT",
        "MIT OR GPL-3.0",
        "GPL-3.0 OR MIT",
        "MIT/Apache-2.0",
        "(MIT OR Apache-2.0) AND Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
    ] {
        assert!(acceptable(good), "{good}");
    }
    for bad in [
        "",
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "MIT OR",
        "(MIT",
        "MIT)",
        "MIT WITH Other-exception",
        "MIT Apache-2.0",
    ] {
        assert!(!acceptable(bad), "{bad}");
    }
}

#[test]
fn every_dependency_has_an_allowed_licence_and_source() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform=x86_64-unknown-linux-gnu"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    // Packages that are only built for other systems are listed, but not resolved.
    let used: BTreeSet<&str> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["id"].as_str().unwrap())
        .collect();
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        if !used.contains(package["id"].as_str().unwrap()) {
            continue;
        }
        let name = format!("{} {}", package["name"], package["version"]);
        let licence = package["license"].as_str().unwrap_or("");
        if !acceptable(licence) {
            wrong.push(format!("{name}: licence {licence:?}"));
        }
        let source = package["source"].as_str();
        if source.is_some_and(|source| {
            !source.starts_with("registry+https://github.com/rust-lang/crates.io-index")
        }) {
            wrong.push(format!("{name}: from {source:?}"));
        }
    }
    assert!(used.len() > 5, "no dependencies found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
