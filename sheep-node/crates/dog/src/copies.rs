//! `dog vdi check` and `dog vdi accept-loss`.

use crate::cli::{AcceptLoss, Format};
use crate::connect::{Connection, label};
use crate::output;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sheep_api::v1::check_vdi_reply::What;
use sheep_api::v1::{
    AcceptLossReply, AcceptLossRequest, CheckNumbers, CheckVdiRequest, ListVdisRequest, LostBlocks, Node,
    ObjectReport,
};
use std::process::ExitCode;

/// Objects that are listed for people.
const LISTED: usize = 50;

/// What looking at a volume gave.
pub(crate) struct Looked {
    objects: Vec<ObjectReport>,
    numbers: CheckNumbers,
}

impl Looked {
    /// All is well: fewer copies than wanted is for others to tell.
    fn is_good(&self) -> bool {
        let numbers = &self.numbers;
        numbers.different + numbers.damaged + numbers.unavailable + numbers.lost == 0
    }

    /// What is wrong, as a sentence.
    pub(crate) fn finding(&self, name: &str) -> Option<String> {
        (!self.is_good()).then(|| format!("VDI {name}: {}.", summary(&self.numbers)))
    }
}

/// Looks at all copies of a volume, from the node that has it open, if one has.
pub(crate) async fn look(connection: &Connection, name: &str, all: bool) -> Result<Looked> {
    let request = CheckVdiRequest { name: name.to_owned(), all };
    let mut stream = connection.or_holder(async |node| node.vdis().check(request.clone()).await).await?;
    let (mut objects, mut numbers) = (Vec::new(), None);
    while let Some(reply) = stream.message().await? {
        match reply.what {
            Some(What::Object(object)) => objects.push(object),
            Some(What::Numbers(all)) => numbers = Some(all),
            None => {}
        }
    }
    Ok(Looked { objects, numbers: numbers.context("the check did not come to its end")? })
}

/// Looks at all volumes and says what is wrong with them.
pub(crate) async fn look_at_all(connection: &Connection) -> Result<Vec<String>> {
    let list = connection.vdis().list(ListVdisRequest::default()).await?.into_inner();
    let mut findings = Vec::new();
    for vdi in list.vdis {
        match look(connection, &vdi.name, false).await {
            Ok(looked) => findings.extend(looked.finding(&vdi.name)),
            Err(error) => {
                findings.push(format!("VDI {} can't be checked: {}.", vdi.name, output::describe(&error)));
            }
        }
    }
    Ok(findings)
}

fn summary(numbers: &CheckNumbers) -> String {
    let parts = [
        (numbers.good, "good"),
        (numbers.degraded, "with fewer copies"),
        (numbers.different, "with copies that differ"),
        (numbers.damaged, "with a damaged copy"),
        (numbers.unavailable, "not to be read now"),
        (numbers.lost, "lost"),
    ];
    let said: Vec<String> =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    format!("{} objects: {}", numbers.objects, if said.is_empty() { "none".into() } else { said.join(", ") })
}

fn line(object: &ObjectReport, nodes: &[Node]) -> String {
    let who = |id: &String| nodes.iter().find(|node| node.id == *id).map_or_else(|| id.clone(), label);
    let copies: Vec<String> = object
        .copies
        .iter()
        .map(|copy| match copy.state.as_str() {
            "current" => format!(
                "{} has version {}.{} ({:08x})",
                who(&copy.node),
                copy.generation,
                copy.sequence,
                copy.sum
            ),
            state => format!("{}: {state}", who(&copy.node)),
        })
        .collect();
    let kind = if object.map { "map object" } else { "object" };
    let end = object.offset + object.length.saturating_sub(1);
    let mut text =
        format!("{kind} {} (bytes {} to {end}) is {}: ", object.index, object.offset, object.state);
    text += &copies.join("; ");
    if !object.lost.is_empty() {
        let range =
            |lost: &LostBlocks| format!("{} to {}", lost.offset, lost.offset + lost.length.saturating_sub(1));
        let ranges: Vec<String> = object.lost.iter().map(range).collect();
        text += &format!("; a copy has lost bytes {}", ranges.join(", "));
    }
    if !object.may_hold.is_empty() {
        let nodes: Vec<String> = object.may_hold.iter().map(who).collect();
        text += &format!("; may be on {}, which does not run", nodes.join(", "));
    }
    text
}

fn object_json(object: &ObjectReport) -> Value {
    json!({
        "map": object.map,
        "index": object.index,
        "offset": object.offset,
        "length": object.length,
        "state": object.state,
        "copies": object.copies.iter().map(|copy| json!({
            "node": copy.node,
            "state": copy.state,
            "generation": copy.generation,
            "sequence": copy.sequence,
            "sum": copy.sum,
        })).collect::<Vec<_>>(),
        "may_hold": object.may_hold,
        "lost": object.lost.iter().map(|lost| json!({
            "offset": lost.offset,
            "length": lost.length,
        })).collect::<Vec<_>>(),
    })
}

pub(crate) async fn check(
    connection: &Connection,
    format: Format,
    name: &str,
    all: bool,
) -> Result<ExitCode> {
    let looked = look(connection, name, all).await?;
    let numbers = &looked.numbers;
    match format {
        Format::Json => output::json(&json!({
            "ok": looked.is_good(),
            "objects": numbers.objects,
            "good": numbers.good,
            "degraded": numbers.degraded,
            "different": numbers.different,
            "damaged": numbers.damaged,
            "unavailable": numbers.unavailable,
            "lost": numbers.lost,
            "findings": looked.objects.iter().map(object_json).collect::<Vec<_>>(),
        }))?,
        Format::Table => {
            let nodes = connection.list().await?;
            let listed = if all { usize::MAX } else { LISTED };
            for object in looked.objects.iter().take(listed) {
                output::line(&line(object, &nodes))?;
            }
            if looked.objects.len() > listed {
                output::line(&format!("and {} more (all with -o json)", looked.objects.len() - LISTED))?;
            }
            output::line(&format!("VDI {name}: {}", summary(numbers)))?;
        }
    }
    Ok(if looked.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(crate) async fn accept_loss(
    connection: &Connection,
    format: Format,
    command: AcceptLoss,
) -> Result<ExitCode> {
    ensure!(
        command.yes,
        "what is lost of VDI {} would read as zeros from then on, for good; say --yes if that is what you want",
        command.name
    );
    ensure!(
        command.force != 1,
        "--force throws away what nodes that are down may have, although starting them could bring it back; say it twice \
         if that is what you want"
    );
    let request =
        AcceptLossRequest { name: command.name.clone(), objects: command.objects, force: command.force > 1 };
    let reply = connection.or_holder(async |node| node.vdis().accept_loss(request.clone()).await).await?;
    told(&command.name, format, &reply)?;
    Ok(if reply.refused.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn told(name: &str, format: Format, reply: &AcceptLossReply) -> Result<()> {
    match format {
        Format::Json => output::json(&json!({
            "accepted": reply.accepted,
            "refused": reply.refused.iter().map(|not| json!({"object": not.object, "reason": not.reason}))
                .collect::<Vec<_>>(),
        }))?,
        Format::Table => {
            for not in &reply.refused {
                output::line(&format!("object {} is not given up: {}", not.object, not.reason))?;
            }
            let count = reply.accepted.len();
            output::line(&format!("VDI {name}: {count} lost objects read as zeros from now on"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheep_api::v1::CopyReport;

    #[test]
    fn an_object_is_described_with_its_range_and_nodes() {
        let copy = |node: &str, state: &str| CopyReport {
            node: node.into(),
            state: state.into(),
            generation: 7,
            sequence: 9,
            sum: 0xab,
        };
        let object = ObjectReport {
            index: 3,
            offset: 12288,
            length: 4096,
            state: "different".into(),
            copies: vec![copy("aa", "current"), copy("bb", "down")],
            may_hold: vec!["bb".into()],
            lost: vec![LostBlocks { offset: 12288, length: 512 }],
            ..ObjectReport::default()
        };
        let nodes = [Node { id: "aa".into(), name: "one".into(), ..Node::default() }];
        assert_eq!(
            line(&object, &nodes),
            "object 3 (bytes 12288 to 16383) is different: one (aa) has version 7.9 (000000ab); bb: down; a copy has lost bytes \
             12288 to 12799; may be on bb, which does not run"
        );
    }

    #[test]
    fn fewer_copies_are_no_damage() {
        let numbers = CheckNumbers { objects: 5, good: 4, degraded: 1, ..CheckNumbers::default() };
        let mut looked = Looked { objects: vec![], numbers };
        assert_eq!(looked.finding("a"), None);
        looked.numbers.lost = 2;
        assert_eq!(looked.finding("a").unwrap(), "VDI a: 5 objects: 4 good, 1 with fewer copies, 2 lost.");
    }
}
