//! `dog cluster check`: all nodes must have the same state at the same place of the log, and say what they miss.

use crate::cli::Format;
use crate::connect::{Connection, label};
use crate::copies::look_at_all;
use crate::output;
use anyhow::Result;
use serde_json::json;
use sheep_api::v1::{CheckReply, CheckRequest, Node};
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

/// Rounds until all nodes are caught at the same entry; a cluster at work moves on meanwhile.
const ROUNDS: usize = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// What one node answered.
struct Answer {
    node: String,
    reply: Result<CheckReply>,
}

/// Hashes by place, over all rounds: nodes need not be caught at the same moment.
#[derive(Default)]
struct Hashes {
    /// Applied index to node to hash.
    seen: BTreeMap<u64, BTreeMap<String, u64>>,
}

impl Hashes {
    fn add(&mut self, node: &str, reply: &CheckReply) {
        self.seen.entry(reply.applied_index).or_default().insert(node.to_owned(), reply.state_hash);
    }

    /// The last entry at which all of `count` nodes were seen.
    fn common(&self, count: usize) -> Option<u64> {
        self.seen.iter().rev().find(|(_, hashes)| hashes.len() == count).map(|(index, _)| *index)
    }

    /// Entries at which nodes have different states, as sentences.
    fn differences(&self) -> Vec<String> {
        let differ =
            self.seen.iter().filter(|(_, hashes)| hashes.values().collect::<BTreeSet<_>>().len() > 1);
        let list = |hashes: &BTreeMap<String, u64>| {
            hashes.iter().map(|(node, hash)| format!("{node} has {hash:016x}")).collect::<Vec<_>>().join(", ")
        };
        differ
            .map(|(index, hashes)| {
                format!(
                    "The nodes' states differ at entry {index}: {}. Stop writing and report this.",
                    list(hashes)
                )
            })
            .collect()
    }
}

async fn ask(all: &[(Node, Result<Connection>)], at_least_index: u64) -> Vec<Answer> {
    let mut answers = Vec::new();
    for (node, connection) in all {
        let reply = match connection {
            Ok(connection) => {
                let request = CheckRequest { at_least_index };
                connection.cluster().check(request).await.map(tonic::Response::into_inner).map_err(Into::into)
            }
            Err(error) => Err(anyhow::anyhow!(output::describe(error))),
        };
        answers.push(Answer { node: label(node), reply });
    }
    answers
}

pub(crate) async fn run(connection: &Connection, format: Format, copies: bool) -> Result<ExitCode> {
    let all = connection.all().await?;
    let mut hashes = Hashes::default();
    let mut at_least = 0;
    let mut answers = Vec::new();
    for _ in 0..ROUNDS {
        answers = ask(&all, at_least).await;
        let replies: Vec<_> =
            answers.iter().filter_map(|answer| Some((&answer.node, answer.reply.as_ref().ok()?))).collect();
        replies.iter().for_each(|(node, reply)| hashes.add(node, reply));
        // Those that are behind are waited for.
        at_least = replies.iter().map(|(_, reply)| reply.applied_index).max().unwrap_or(0);
        if hashes.common(replies.len()).is_some() {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    if all.is_empty() {
        // No state yet: what the asked node itself says.
        let reply = connection.cluster().check(CheckRequest::default()).await?.into_inner();
        answers = vec![Answer { node: reply.node.clone(), reply: Ok(reply) }];
    }
    let volumes = if copies { look_at_all(connection).await? } else { Vec::new() };
    report(&answers, &hashes, volumes, format)
}

fn findings(answers: &[Answer], hashes: &Hashes) -> Vec<String> {
    let mut findings = hashes.differences();
    let answered = answers.iter().filter(|answer| answer.reply.is_ok()).count();
    if answered > 1 && hashes.common(answered).is_none() {
        findings.push(
            "The nodes' states could not be compared, because they change too fast; check again.".into(),
        );
    }
    for answer in answers {
        match &answer.reply {
            Err(error) => {
                findings.push(format!("Node {} does not answer: {}.", answer.node, output::describe(error)))
            }
            Ok(reply) => {
                for finding in &reply.findings {
                    // What all see is told once.
                    if !findings.contains(finding) {
                        findings.push(finding.clone());
                    }
                }
            }
        }
    }
    findings
}

fn report(answers: &[Answer], hashes: &Hashes, volumes: Vec<String>, format: Format) -> Result<ExitCode> {
    let mut findings = findings(answers, hashes);
    findings.extend(volumes);
    let answered = answers.iter().filter(|answer| answer.reply.is_ok()).count();
    let common = hashes.common(answered);
    match format {
        Format::Json => output::json(&json!({
            "ok": findings.is_empty(),
            "nodes": answered,
            "compared_at_index": common,
            "findings": findings,
        }))?,
        Format::Table => {
            for finding in &findings {
                output::line(finding)?;
            }
            if findings.is_empty() {
                let at = common.map_or(String::new(), |index| format!(" (same state at entry {index})"));
                output::line(&format!("{answered} nodes checked{at}: everything is as it should be"))?;
            }
        }
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(node: &str, applied_index: u64, state_hash: u64, findings: &[&str]) -> Answer {
        let findings: Vec<String> = findings.iter().map(|text| (*text).to_owned()).collect();
        let reply = CheckReply {
            ok: findings.is_empty(),
            findings,
            state_hash,
            applied_index,
            ..CheckReply::default()
        };
        Answer { node: node.into(), reply: Ok(reply) }
    }

    fn hashes(answers: &[Answer]) -> Hashes {
        let mut hashes = Hashes::default();
        answers.iter().for_each(|answer| hashes.add(&answer.node, answer.reply.as_ref().unwrap()));
        hashes
    }

    #[test]
    fn equal_states_are_fine() {
        let answers = [answer("a", 5, 1, &[]), answer("b", 5, 1, &[])];
        assert_eq!(findings(&answers, &hashes(&answers)), Vec::<String>::new());
    }

    #[test]
    fn different_states_are_told_with_the_nodes() {
        let answers = [answer("a", 5, 1, &[]), answer("b", 5, 2, &[]), answer("c", 5, 1, &[])];
        let found = findings(&answers, &hashes(&answers));
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("entry 5") && found[0].contains("b has 0000000000000002"), "{found:?}");
    }

    #[test]
    fn different_places_are_no_difference() {
        let first = [answer("a", 5, 1, &[]), answer("b", 6, 2, &[])];
        let mut seen = hashes(&first);
        assert!(findings(&first, &seen)[0].contains("could not be compared"));
        // In a later round the slower one is where the other was.
        seen.add("a", answer("a", 6, 2, &[]).reply.as_ref().unwrap());
        assert_eq!(seen.common(2), Some(6));
        assert_eq!(findings(&first, &seen), Vec::<String>::new());
    }

    #[test]
    fn what_all_say_is_told_once_and_silence_too() {
        let mut answers =
            vec![answer("a", 5, 1, &["Node x is down."]), answer("b", 5, 1, &["Node x is down."])];
        let seen = hashes(&answers);
        answers.push(Answer { node: "c".into(), reply: Err(anyhow::anyhow!("refused")) });
        assert_eq!(findings(&answers, &seen), ["Node x is down.", "Node c does not answer: refused."]);
    }
}
