//! `get disks`: what data is on, asked of each storage pod.

use super::json::{dash, list, number, text};
use super::kubectl::Problem;
use super::objects::Pod;
use crate::output;
use serde_json::{Value, json};
use sheep_api::Size;

/// Heads of the table.
const HEADS: [&str; 8] = ["NODE", "DISK", "STATE", "USED", "CAPACITY", "OBJECTS", "PATH", "TROUBLE"];

/// What each pod has answered.
pub(super) type Answers<'a> = [(&'a Pod, Result<Value, Problem>)];

/// A line for each disk, and for each node that does not answer.
pub(super) fn table(answers: &Answers<'_>, silent: &[&Pod]) -> String {
    let mut rows = Vec::new();
    let unknown = |pod: &Pod, why: String| {
        let dashes = std::iter::repeat_n("-".to_owned(), HEADS.len() - 2);
        [pod.node.clone()].into_iter().chain(dashes).chain([why]).collect::<Vec<_>>()
    };
    for (pod, answer) in answers {
        match answer {
            Ok(answer) => rows.extend(list(&answer["disks"]).iter().map(|disk| row(pod, disk))),
            Err(problem) => rows.push(unknown(pod, problem.to_string())),
        }
    }
    rows.extend(silent.iter().map(|pod| unknown(pod, pod.trouble.clone().unwrap_or_default())));
    rows.sort();
    output::table(&HEADS, rows)
}

fn row(pod: &Pod, disk: &Value) -> Vec<String> {
    vec![
        pod.node.clone(),
        text(&disk["id"]),
        text(&disk["state"]),
        Size(number(&disk["used_bytes"])).to_string(),
        Size(number(&disk["capacity_bytes"])).to_string(),
        number(&disk["objects"]).to_string(),
        dash(&text(&disk["path"])),
        dash(&text(&disk["error"])),
    ]
}

/// The same for programs.
pub(super) fn to_json(answers: &Answers<'_>, silent: &[&Pod]) -> Value {
    let asked = answers.iter().map(|(pod, answer)| match answer {
        Ok(answer) => json!({"node": pod.node, "pod": pod.name, "disks": answer["disks"]}),
        Err(problem) => json!({"node": pod.node, "pod": pod.name, "error": problem.to_string()}),
    });
    let silent = silent.iter().map(|pod| json!({"node": pod.node, "pod": pod.name, "error": pod.trouble}));
    Value::Array(asked.chain(silent).collect())
}
