//! Disks of nodes that fail under them, while other nodes restart.

use super::Scenario;
use super::script::{Script, Setup, Verdict, ensure};
use crate::world::Event;
use sheep_datapath::VolumeOp;
use sheep_types::{ObjectId, VdiId};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a-lost-disk-proves-nothing",
        rule: "a node that has lost a disk does not say that there was nothing on it",
        mutants: &["datapath:never-with-lost-disk"],
        run: a_lost_disk_proves_nothing,
    },
    Scenario {
        name: "a-disk-that-is-back-has-forgotten",
        rule: "a disk that was opened anew has lost what was not flushed, and gets it again",
        mutants: &["datapath:gateway-forgets-lost-disk"],
        run: a_disk_that_is_back_has_forgotten,
    },
    Scenario {
        name: "a-lost-disk-flushes-nothing",
        rule: "a node whose disk has failed answers nothing in an epoch that counts on the disk",
        mutants: &["datapath:serves-with-lost-disk"],
        run: a_lost_disk_flushes_nothing,
    },
];

/// Two copies, one needed, on two disks per node. Object 0 shows 1, durable; gives a node that is not of its set, and
/// the two that are.
fn stage(mutant: Option<&str>) -> Result<(Script, VdiId, usize, [usize; 2]), String> {
    let setup = Setup { disks: 2, ..Setup::nodes(4).copies(2, 1) };
    let mut s = Script::new(setup, mutant)?;
    let vdi = s.create(0, "volume")?;
    let set = s.set(0, vdi, 0)?;
    let &[one, other] = set.as_slice() else { return Err(format!("a set of two is {set:?}")) };
    let outside = (0..4).find(|node| !set.contains(node)).ok_or("nobody is outside the set")?;
    Ok((s, vdi, outside, [one, other]))
}

/// The disk of a node that has object 0.
fn disk_of(s: &Script, node: usize, vdi: VdiId) -> Result<usize, String> {
    let object = ObjectId::data(s.record(node, vdi)?.vid, 0);
    let machine = &s.world.nodes[node];
    let slot = machine.replica().and_then(|replica| replica.store().located(object)).map(|found| found.0);
    let disk = machine.disks.iter().position(|disk| slot.is_some() && disk.slot == slot);
    disk.ok_or_else(|| format!("node {node} has no copy"))
}

/// Pulls a disk, and says so to its node.
fn pull(s: &mut Script, node: usize, disk: usize) {
    let pulled = &mut s.world.nodes[node].disks[disk];
    pulled.pulled = true;
    pulled.disk.crash_seeded(0);
    let slot = pulled.slot.unwrap_or_default();
    let at = s.world.nodes[node].clock(s.world.now);
    s.world.with_shard(node, |shard| {
        if let Some(replica) = shard.replica_mut() {
            replica.close_disk(at, slot);
        }
    });
}

fn a_lost_disk_proves_nothing(mutant: Option<&str>) -> Verdict {
    let (mut s, vdi, gateway, [one, other]) = stage(mutant)?;
    let session = s.open(gateway, vdi)?;
    s.write(session, 0, 1)?;
    s.flush(session)?;
    // One is away while the other one takes a write.
    s.crash(other, None);
    s.run(3_000)?;
    s.write(session, 0, 2)?;
    s.flush(session)?;
    s.close(session)?;
    let disk = disk_of(&s, one, vdi)?;
    pull(&mut s, one, disk);
    s.world.schedule(0, Event::Start(other));
    s.run(5_000)?;
    // Neither may say now what the object is.
    let session = s.open(gateway, vdi)?;
    let read = s.begin_read(session, 0);
    s.run(3_000)?;
    if let Some(result) = s.result(read).cloned() {
        let shown = Script::shown(result).map_err(|error| error.to_string())?;
        ensure(shown == 2, &format!("shows {shown}, from before what was flushed"))?;
    }
    s.world.disk_back(one, disk);
    s.whole()?;
    s.close(session)?;
    s.all_show(vdi, 0, 2)
}

fn a_disk_that_is_back_has_forgotten(mutant: Option<&str>) -> Verdict {
    let (mut s, vdi, gateway, [one, other]) = stage(mutant)?;
    let session = s.open(gateway, vdi)?;
    s.write(session, 0, 1)?;
    s.flush(session)?;
    s.write(session, 0, 2)?;
    let disk = disk_of(&s, one, vdi)?;
    // Both have it in memory only, and forget it at the same time: the gateway has it still.
    pull(&mut s, one, disk);
    s.crash(other, Some(20));
    s.run(5)?;
    s.world.disk_back(one, disk);
    s.run(2_000)?;
    s.whole()?;
    // Only this copy is left.
    s.crash(other, None);
    s.run(3_000)?;
    let shown = s.read(session, 0)?;
    ensure(shown == 2, &format!("shows {shown} instead of what was answered"))?;
    s.world.schedule(0, Event::Start(other));
    s.whole()?;
    s.close(session)?;
    s.all_show(vdi, 0, 2)
}

fn a_lost_disk_flushes_nothing(mutant: Option<&str>) -> Verdict {
    let (mut s, vdi, gateway, [one, other]) = stage(mutant)?;
    let session = s.open(gateway, vdi)?;
    s.write(session, 0, 1)?;
    s.flush(session)?;
    s.crash(other, None);
    s.run(3_000)?;
    s.write(session, 0, 2)?;
    // The only copy goes with its disk, and the flush meets the node before any epoch says so.
    let disk = disk_of(&s, one, vdi)?;
    pull(&mut s, one, disk);
    let flush = s.begin(session, VolumeOp::Flush);
    s.run(3_000)?;
    s.world.disk_back(one, disk);
    s.world.schedule(0, Event::Start(other));
    s.whole()?;
    s.finish(flush)?.map_err(|error| format!("flushing: {error}"))?;
    let shown = s.read(session, 0)?;
    ensure(shown == 2, &format!("shows {shown} instead of what was flushed"))?;
    s.close(session)?;
    s.all_show(vdi, 0, 2)
}
