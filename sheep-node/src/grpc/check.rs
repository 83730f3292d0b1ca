//! Looking at all copies of a volume, and giving up what is lost of it.

use super::volume::Volume;
use crate::handle::AcceptLossError;
use crate::health;
use sheep_api::v1::check_vdi_reply::What;
use sheep_api::v1::{
    AcceptLossReply, AcceptLossRequest, CheckNumbers, CheckVdiReply, CopyReport, LostBlocks, NotAccepted,
    ObjectReport,
};
use sheep_datapath::{CopyState, ObjectCheck};
use sheep_state::{ClusterState, VdiRecord};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Status;
use tracing::warn;

/// Copies that differ are looked at so often before they count as different: they may be written.
const LOOKS: usize = 4;
const PAUSE: Duration = Duration::from_millis(250);

/// What to say of an object; `None`: all is well.
fn verdict(check: &ObjectCheck) -> Option<&'static str> {
    let states: Vec<CopyState> = check.copies.values().copied().collect();
    let current: Vec<CopyState> =
        states.iter().copied().filter(|state| matches!(state, CopyState::Current { .. })).collect();
    // Copies are equal as far as both have the blocks; scrubs compare the rest.
    if check.lost.is_empty() && current.windows(2).any(|pair| pair[0] != pair[1]) {
        return Some("different");
    }
    match (current.len(), states.contains(&CopyState::Damaged)) {
        (0, _) if states.iter().all(|state| *state == CopyState::Lost) && check.may_hold.is_empty() => {
            Some("lost")
        }
        (0, _) => Some("unavailable"),
        (_, true) => Some("damaged"),
        _ if !check.lost.is_empty() => Some("damaged"),
        (good, false) if good < states.len() => Some("degraded"),
        _ => None,
    }
}

async fn look(volume: &Volume, map: bool, index: u32) -> Result<(ObjectCheck, Option<&'static str>), Status> {
    for _ in 1..LOOKS {
        let check = volume.check(map, index).await?;
        let verdict = verdict(&check).filter(|_| check.exists);
        if verdict.is_none() || verdict == Some("lost") {
            return Ok((check, verdict));
        }
        tokio::time::sleep(PAUSE).await;
    }
    let check = volume.check(map, index).await?;
    let verdict = verdict(&check).filter(|_| check.exists);
    Ok((check, verdict))
}

fn report(check: &ObjectCheck, range: (u64, u64), map: bool, index: u32, state: &str) -> ObjectReport {
    let copies = check.copies.iter().map(|(node, copy)| {
        let (state, version, sum) = match copy {
            CopyState::Current { version, sum } => ("current", *version, *sum),
            CopyState::Damaged => ("damaged", Default::default(), 0),
            CopyState::NotCurrent => ("not current", Default::default(), 0),
            CopyState::Lost => ("lost", Default::default(), 0),
            CopyState::Down => ("down", Default::default(), 0),
        };
        let (generation, sequence) = (version.generation.0, version.sequence);
        CopyReport { node: node.to_string(), state: state.into(), generation, sequence, sum }
    });
    let base = if map { 0 } else { range.0 };
    let lost = check.lost.iter();
    let lost = lost.map(|(at, len)| LostBlocks { offset: base + u64::from(*at), length: u64::from(*len) });
    ObjectReport {
        map,
        index,
        offset: range.0,
        length: range.1,
        state: state.into(),
        copies: copies.collect(),
        may_hold: check.may_hold.iter().map(ToString::to_string).collect(),
        lost: lost.collect(),
    }
}

/// The range of a volume that an object stands for.
fn range(size: u64, each: u64, index: u32) -> (u64, u64) {
    let offset = u64::from(index) * each;
    (offset, size.saturating_sub(offset).min(each))
}

fn count(numbers: &mut CheckNumbers, verdict: Option<&str>) {
    numbers.objects += 1;
    *match verdict {
        None => &mut numbers.good,
        Some("degraded") => &mut numbers.degraded,
        Some("different") => &mut numbers.different,
        Some("damaged") => &mut numbers.damaged,
        Some("lost") => &mut numbers.lost,
        Some(_) => &mut numbers.unavailable,
    } += 1;
}

/// Looks at one object, and tells what is not as it should be; false if the caller has gone.
async fn tell(
    volume: &Volume,
    (map, index, range): (bool, u32, (u64, u64)),
    all: bool,
    numbers: &mut CheckNumbers,
    to: &mpsc::Sender<Result<CheckVdiReply, Status>>,
) -> Result<bool, Status> {
    let (check, verdict) = look(volume, map, index).await?;
    // It was discarded meanwhile.
    if !check.exists {
        return Ok(true);
    }
    count(numbers, verdict);
    let Some(verdict) = verdict.or(all.then_some("good")) else { return Ok(true) };
    let report = report(&check, range, map, index, verdict);
    Ok(to.send(Ok(CheckVdiReply { what: Some(What::Object(report)) })).await.is_ok())
}

/// Looks at everything, and tells what is not as it should be. Ends early when the caller has gone.
pub(super) async fn run(
    volume: &Volume,
    state: &ClusterState,
    record: &VdiRecord,
    all: bool,
    to: &mpsc::Sender<Result<CheckVdiReply, Status>>,
) -> Result<(), Status> {
    let each = u64::from(state.geometry().object_size());
    let of_map = each * u64::from(state.geometry().entries_per_map());
    let mut numbers = CheckNumbers::default();
    let maps = state.vid(record.vid).map(|vid| Arc::clone(&vid.maps)).unwrap_or_default();
    for index in maps.keys().copied() {
        let map = (true, index, range(record.size, of_map, index));
        if !tell(volume, map, all, &mut numbers, to).await? {
            return Ok(());
        }
    }
    // Fails where the map can't be read: that is told by now.
    for index in volume.objects(each).await? {
        let object = (false, index, range(record.size, each, index));
        if !tell(volume, object, all, &mut numbers, to).await? {
            return Ok(());
        }
    }
    let _ = to.send(Ok(CheckVdiReply { what: Some(What::Numbers(numbers)) })).await;
    Ok(())
}

/// Gives up objects: those that are named, or all that are lost.
pub(super) async fn accept_loss(
    volume: &Volume,
    state: &ClusterState,
    record: &VdiRecord,
    request: &AcceptLossRequest,
) -> Result<AcceptLossReply, Status> {
    let each = u64::from(state.geometry().object_size());
    let all = request.objects.is_empty();
    let objects = if all { volume.objects(each).await? } else { request.objects.clone() };
    let mut reply = AcceptLossReply::default();
    for object in objects {
        let check = volume.check(false, object).await?;
        let has = |copy: &CopyState| matches!(copy, CopyState::Current { .. } | CopyState::Damaged);
        if all && (!check.exists || check.copies.values().any(has)) {
            continue;
        }
        let reason = match volume.accept_loss(object, request.force).await {
            Ok(()) => {
                let (offset, length) = range(record.size, each, object);
                let forced = if request.force { ", forced" } else { "" };
                warn!(
                    "object {object} of VDI {} (bytes {offset} to {}) was given up by order and reads as zeros from \
                     now on{forced}",
                    record.name,
                    offset + length.saturating_sub(1)
                );
                reply.accepted.push(object);
                continue;
            }
            Err(AcceptLossError::NotLost) => "it is not lost: a node has it".to_owned(),
            Err(AcceptLossError::MayComeBack) if check.may_hold.is_empty() => {
                "it is not proven that no node has it; wait until all nodes have recovered".to_owned()
            }
            Err(AcceptLossError::MayComeBack) => {
                let nodes: Vec<String> =
                    check.may_hold.iter().map(|node| health::name(Some(state), *node)).collect();
                format!("{} may have it; start it again, or remove it from the cluster", nodes.join(" and "))
            }
            Err(AcceptLossError::Access(error)) => error.to_string(),
        };
        reply.refused.push(NotAccepted { object, reason });
    }
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheep_types::{NodeId, Version};

    fn check(copies: &[CopyState], may_hold: &[u64]) -> ObjectCheck {
        ObjectCheck {
            exists: true,
            copies: (1..).map(NodeId).zip(copies.iter().copied()).collect(),
            may_hold: may_hold.iter().copied().map(NodeId).collect(),
            lost: Vec::new(),
        }
    }

    #[test]
    fn the_worst_that_is_sure_is_said() {
        let good = |sum| CopyState::Current { version: Version::default(), sum };
        use CopyState::{Damaged, Down, Lost, NotCurrent};
        for (copies, may_hold, expected) in [
            ([good(1), good(1)], &[][..], None),
            ([good(1), good(2)], &[], Some("different")),
            ([good(1), Damaged], &[], Some("damaged")),
            ([good(1), Down], &[2], Some("degraded")),
            ([good(1), NotCurrent], &[], Some("degraded")),
            ([Damaged, Damaged], &[], Some("unavailable")),
            ([Lost, Lost], &[], Some("lost")),
            ([Lost, Lost], &[3], Some("unavailable")),
            ([Lost, NotCurrent], &[], Some("unavailable")),
        ] {
            assert_eq!(verdict(&check(&copies, may_hold)), expected, "{copies:?}");
        }
    }

    #[test]
    fn lost_blocks_are_told_with_their_place() {
        let copy = |sum| CopyState::Current { version: Version::default(), sum };
        let mut found = check(&[copy(1), copy(2)], &[]);
        found.lost = vec![(4096, 8192)];
        assert_eq!(verdict(&found), Some("damaged"));
        let report = report(&found, (1 << 22, 1 << 22), false, 1, "damaged");
        assert_eq!(report.lost, [LostBlocks { offset: (1 << 22) + 4096, length: 8192 }]);
    }

    #[test]
    fn the_last_object_ends_with_the_volume() {
        assert_eq!(range(10, 4, 0), (0, 4));
        assert_eq!(range(10, 4, 2), (8, 2));
        assert_eq!(range(10, 4, 3), (12, 0));
    }
}
