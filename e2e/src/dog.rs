//! The command line tool `dog`, run as a user would, with its answers as JSON.

use std::process::Output;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{Spec, workspace_binary};

/// `dog -s SERVER`.
#[derive(Clone)]
pub struct Dog {
    program: std::path::PathBuf,
    server: String,
    netns_of: Option<u32>,
}

/// What a failed command left: status and message.
pub struct Refusal {
    /// Exit status: 1 the operation failed, 2 the command line was wrong.
    pub code: i32,
    /// Standard error.
    pub message: String,
}

impl Dog {
    /// For a node's directory (its control socket) or gRPC address.
    ///
    /// # Errors
    /// `dog` has not been built.
    pub fn new(server: String) -> Result<Dog> {
        Ok(Dog { program: workspace_binary("dog")?, server, netns_of: None })
    }

    /// Runs it in the network namespace of another process: some commands talk to all nodes.
    pub fn in_namespace_of(mut self, pid: Option<u32>) -> Dog {
        self.netns_of = pid;
        self
    }

    fn output(&self, words: &[&str]) -> Result<Output> {
        let spec = Spec::new("dog", &self.program).args(["-s", &self.server]).args(words);
        let spec = spec.in_namespace_of(self.netns_of);
        spec.command().output().with_context(|| format!("running dog {}", words.join(" ")))
    }

    /// Runs a command and returns what it prints.
    ///
    /// # Errors
    /// It fails; the error carries its message.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let output = self.output(words)?;
        if !output.status.success() {
            // `cluster check` says on standard output what is wrong.
            let said = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
            bail!("dog {}: {}: {}", words.join(" "), output.status, said.concat().trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a command that must fail.
    ///
    /// # Errors
    /// It succeeds, or dies of a signal.
    pub fn refused(&self, words: &[&str]) -> Result<Refusal> {
        let output = self.output(words)?;
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => bail!("dog {} succeeded", words.join(" ")),
            Some(code) => Ok(Refusal { code, message }),
            None => bail!("dog {} died: {}", words.join(" "), output.status),
        }
    }

    /// Runs a command with `-o json`.
    ///
    /// # Errors
    /// It fails, or prints something else than JSON.
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        let mut all = words.to_vec();
        all.extend(["-o", "json"]);
        let printed = self.run(&all)?;
        serde_json::from_str(&printed).with_context(|| format!("dog {}: not JSON: {printed}", all.join(" ")))
    }

    /// The nodes.
    ///
    /// # Errors
    /// As [`Dog::json`].
    pub fn nodes(&self) -> Result<Vec<Value>> {
        self.json(&["node", "list"]).map(rows)
    }

    /// The volumes.
    ///
    /// # Errors
    /// As [`Dog::json`].
    pub fn volumes(&self) -> Result<Vec<Value>> {
        self.json(&["vdi", "list"]).map(rows)
    }

    /// What each storage node still has to bring up to date.
    ///
    /// # Errors
    /// As [`Dog::json`].
    pub fn recoveries(&self) -> Result<Vec<Value>> {
        self.json(&["node", "recovery"]).map(rows)
    }

    /// Whether every storage node that runs has all that it must hold.
    ///
    /// # Errors
    /// As [`Dog::json`].
    pub fn has_recovered(&self) -> Result<bool> {
        Ok(self.recoveries()?.iter().all(|row| row["complete"] == true))
    }

    /// State of the cluster.
    ///
    /// # Errors
    /// As [`Dog::json`].
    pub fn cluster_info(&self) -> Result<Value> {
        self.json(&["cluster", "info"])
    }

    /// Makes a volume.
    ///
    /// # Errors
    /// As [`Dog::run`].
    pub fn create(&self, name: &str, size: &str, copies: u8) -> Result<()> {
        self.run(&["vdi", "create", name, size, "--copies", &copies.to_string()]).map(drop)
    }
}

/// The rows of a list, given as an array or as an object with one array in it.
pub fn rows(value: Value) -> Vec<Value> {
    match value {
        Value::Array(rows) => rows,
        Value::Object(fields) => fields
            .into_iter()
            .find_map(|(_, field)| if let Value::Array(rows) = field { Some(rows) } else { None })
            .unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// A text field, empty if missing.
pub fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or("")
}

/// A numeric field, given as number or as digits; 0 if missing.
pub fn count(value: &Value, field: &str) -> u64 {
    match value.get(field) {
        Some(Value::Number(number)) => number.as_u64().unwrap_or(0),
        Some(Value::String(digits)) => digits.parse().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_bare_or_wrapped() {
        let bare = serde_json::json!([{"name": "a"}, {"name": "b"}]);
        let wrapped = serde_json::json!({"epoch": 3, "nodes": [{"name": "a"}, {"name": "b"}]});
        assert_eq!(rows(bare).len(), 2);
        assert_eq!(
            rows(wrapped).iter().map(|row| text(row, "name").to_owned()).collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert_eq!(rows(serde_json::json!(7)).len(), 0);
    }

    #[test]
    fn numbers_may_be_digits() {
        let value = serde_json::json!({"a": 5, "b": "18446744073709551615", "c": "x"});
        assert_eq!((count(&value, "a"), count(&value, "b"), count(&value, "c")), (5, u64::MAX, 0));
    }
}
