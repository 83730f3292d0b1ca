//! One run: make a cluster and volumes, break things, stop breaking them, look at everything.

use crate::checks::Counts;
use crate::client::{Client, Place};
use crate::options::Options;
use crate::world::{Event, World};
use sheep_datapath::{OpenMode, View};
use sheep_state::{CacheMode, Command, CreateVdi, Outcome};
use sheep_store::Header;
use sheep_types::VdiId;
use std::collections::BTreeMap;
use std::sync::Arc;

const SECOND: u64 = 1_000_000_000;
/// Clients that only read.
const READERS: usize = 2;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// Hash of everything that happened.
    pub trace: u64,
    /// Events.
    pub events: u64,
    /// Counters.
    pub counts: Counts,
    /// What must not be and was, if anything.
    pub failure: Option<String>,
}

/// Runs a seed.
pub fn run(options: Options) -> Report {
    let mut world = World::new(options);
    let failure = phases(&mut world).err();
    for node in &world.nodes {
        if let Some(running) = &node.running {
            world.counts.terms += running.control.log().stats().terms;
        }
    }
    Report { trace: world.trace.hash(), events: world.trace.events(), counts: world.counts, failure }
}

fn phases(world: &mut World) -> Result<(), String> {
    wait(world, 60, "cluster to form", |w| w.is_whole())?;
    create_volumes(world)?;
    world.schedule(0, Event::Nemesis);
    let end = world.now + world.options.duration.as_nanos() as u64;
    world.run_until(end)?;
    world.stop_faults();
    let limit = world.options.recovery_limit.as_secs();
    wait(world, limit, "cluster to be whole again", |w| w.is_whole())?;
    if world.options.rot.any() {
        scrub(world)?;
        // Of what nobody else had, blocks stay errors.
        world.healed = !world.options.rot.unflushed;
    }
    verify(world)?;
    if world.options.snapshots {
        end_flattening(world)?;
        inspect(world)?;
    }
    check_copies(world)?;
    if world.options.snapshots && world.options.space {
        world.check_space()?;
        if world.options.seed.is_multiple_of(3) {
            delete_all(world)?;
            world.check_empty()?;
        }
    }
    Ok(())
}

/// What is to be flattened becomes flat, now that nothing is broken; in every other run it is called off.
fn end_flattening(world: &mut World) -> Result<(), String> {
    if world.options.seed.is_multiple_of(2) || world.options.rot.unflushed {
        for vdi in world.flattening() {
            world.order(0, &Command::Flatten { vdi, wanted: false });
        }
    }
    wait(world, 300, "clones to be flat", |w| w.flattening().is_empty())
}

/// Deletes everything, in some order.
fn delete_all(world: &mut World) -> Result<(), String> {
    let all: Vec<VdiId> = world.tree.alive().map(|(vdi, _)| vdi).collect();
    for vdi in all {
        let node = world.rng.index(world.nodes.len());
        let token = world.order_delete(node, vdi).ok_or("the log takes no command")?;
        wait(world, 20, "something to be deleted", |w| w.answers.contains_key(&token))?;
        if let Some(Err(refusal)) = world.answers.remove(&token) {
            return Err(format!("{vdi} could not be deleted: {refusal}"));
        }
    }
    Ok(())
}

/// A pass at every node. After it nothing is damaged but what nobody has, and copies are equal block by block; a second one
/// says so.
fn scrub(world: &mut World) -> Result<(), String> {
    for pass in 0..2 {
        let before: Vec<u64> = world.scrubs().iter().map(|scrub| scrub.passes).collect();
        world.begin_scrub();
        let ended = |w: &World| {
            let scrubs = w.scrubs();
            scrubs.len() == before.len()
                && scrubs.iter().zip(&before).all(|(scrub, before)| scrub.passes > *before)
        };
        wait(world, 300, "scrubs to end", ended)?;
        let good = |w: &World| w.scrubs().iter().all(|scrub| scrub.damaged_now + scrub.lost_blocks == 0);
        if !world.options.rot.unflushed {
            wait(world, 60, "copies to be made good", good)?;
        }
        for (node, scrub) in world.scrubs().into_iter().enumerate() {
            if scrub.mismatches + scrub.unresolved + scrub.behind > 0 {
                return Err(format!("node {node} found copies that differ: {scrub:?}"));
            }
            if pass == 1 {
                world.counts.damaged += scrub.damaged;
                world.counts.repaired += scrub.repaired;
                world.counts.lost_blocks += scrub.lost_blocks;
            }
        }
    }
    Ok(())
}

/// Runs until something holds.
fn wait(world: &mut World, seconds: u64, what: &str, done: impl Fn(&World) -> bool) -> Result<(), String> {
    let end = world.now + seconds * SECOND;
    while !done(world) {
        if world.now >= end {
            let scrubs = world.options.rot.any().then(|| world.scrubs());
            let why =
                world.why_not_whole().or(scrubs.map(|scrubs| format!("{scrubs:?}"))).unwrap_or_default();
            if world.options.verbose {
                explain(world);
            }
            return Err(format!("waited {seconds} s in vain for {what}: {why}"));
        }
        let next = world.now + SECOND / 20;
        world.run_until(next)?;
    }
    Ok(())
}

/// Prints where clients are, and how all copies of what is not recovered stood in all epochs.
fn explain(world: &World) {
    for client in &world.clients {
        eprintln!("{:?}: {:?}, idle {}", client.vdi, client.place, client.is_idle());
    }
    for node in &world.nodes {
        let Some(running) = &node.running else { continue };
        let (control, volumes) = (&running.control, running.shard.as_ref().map(|s| s.gateway_status()));
        eprintln!("node {}: {} commands wait, {:?}", node.index, control.waiting(), control.log().stats());
        eprintln!("  volumes {volumes:?}");
    }

    let replicas = || {
        world.nodes.iter().filter_map(|node| {
            let running = node.running.as_ref()?;
            Some((node.index, running.shard.as_ref()?.replica()?, running.view.as_ref()?))
        })
    };
    for (index, replica, view) in replicas() {
        let dead = |id: sheep_types::ObjectId| !replicas().any(|(_, replica, _)| replica.is_current(id));
        let orphans = replica
            .store()
            .objects(sheep_types::ObjectId(0))
            .map(|h| h.id)
            .filter(|id| id.vid() != sheep_store::NOTES && dead(*id));
        for object in replica.unrecovered().into_iter().chain(orphans) {
            let set: Vec<_> = view.set(object);
            let places: Vec<_> =
                set.iter().map(|id| world.nodes.iter().find(|n| n.id == *id).map(|n| n.index)).collect();
            let exists = view
                .state
                .vdis()
                .iter()
                .map(|v| format!("{:?} {:?}", v.lock, v.is_clean()))
                .collect::<Vec<_>>();
            eprintln!("node {index} lacks {object}, set {places:?}, volumes {exists:?}");
            for at in view.oldest_epoch().0..=view.epoch().0 {
                let at = sheep_types::Epoch(at);
                let up = view.up_set_at(at, object);
                eprintln!("  epoch {at}: set {:?}, up {up:?}", view.set_at(at, object));
            }
            for node in view.state.nodes() {
                let index = world.nodes.iter().find(|n| n.id == node.node).map(|n| n.index);
                eprintln!("  {index:?} {} {:?} recovered {}", node.node, node.state, node.recovered);
            }
            for (other, replica, _) in replicas() {
                let oldest = view.oldest_epoch().0;
                let now = replica.store().header(object);
                let stood: Vec<String> = (oldest..=view.epoch().0)
                    .map(|at| match replica.standing_at(object, sheep_types::Epoch(at)) {
                        Some(standing) => format!("{:?}", standing.kind).chars().take(1).collect(),
                        None => "-".into(),
                    })
                    .collect();
                eprintln!("  node {other}: {} {now:?}", stood.concat());
            }
        }
    }
}

fn create_volumes(world: &mut World) -> Result<(), String> {
    for number in 0..world.options.clients {
        let size = world.options.volume_size;
        world.clients.push(Client::new(OpenMode::Write));
        let name = format!("volume{number}");
        let create = Command::CreateVdi(CreateVdi {
            name: name.clone(),
            size,
            copies: None,
            min_copies: None,
            cache: CacheMode::WriteBack,
            attributes: BTreeMap::new(),
            created_unix_ms: 0,
        });
        let node = world.rng.index(world.nodes.len());
        let token = world.order(node, &create).ok_or("the log takes no command")?;
        wait(world, 20, "a volume to be created", |w| w.answers.contains_key(&token))?;
        match world.answers.remove(&token) {
            Some(Ok(Outcome::Created { vdi, vid })) => {
                world.tree.made_blank(vdi, vid, name, size);
                world.tree.item(vdi).user = Some(number);
                world.clients[number].vdi = Some(vdi);
            }
            other => return Err(format!("creating a volume: {other:?}")),
        }
        world.schedule(0, Event::Client(number));
    }
    if world.options.snapshots {
        for _ in 0..READERS {
            world.clients.push(Client::new(OpenMode::Read));
            world.schedule(0, Event::Client(world.clients.len() - 1));
        }
        world.schedule(0, Event::Operator);
    }
    Ok(())
}

/// Reads every volume through every node, one after the other, so that every copy is read.
fn verify(world: &mut World) -> Result<(), String> {
    for number in 0..world.clients.len() {
        world.clients[number].verifying = Some(usize::MAX);
    }
    // What is left over from before.
    wait(world, 60, "clients to come to rest", |w| w.clients.iter().all(Client::is_at_rest))?;
    wait(world, 120, "commands to be answered", |w| w.is_out_of_limbo())?;
    world.end_of_limbo()?;
    // Those who only read make room for those who write.
    for number in (0..world.clients.len()).rev() {
        let uses = world.clients[number].vdi.filter(|vdi| !world.tree.is_dead(*vdi));
        if uses.is_none() || world.clients[number].mode == OpenMode::Read {
            wait(world, 60, "a client to come to rest", |w| w.clients[number].is_at_rest())?;
            world.close(number);
            wait(world, 60, "a volume to be closed", |w| w.clients[number].place == Place::Away)?;
            continue;
        }
        for node in 0..world.nodes.len() {
            wait(world, 60, "a client to come to rest", |w| w.clients[number].is_at_rest())?;
            world.close(number);
            wait(world, 60, "a volume to be closed", |w| w.clients[number].place == Place::Away)?;
            let Some(vdi) = world.clients[number].vdi else { continue };
            // A fault that was still to be noticed when faults ended may take the volume away once more.
            let mut tries = 0;
            while !is_read(world, number) {
                tries += 1;
                if tries > 3 {
                    return Err(format!("node {node} lost a volume three times although nothing is broken"));
                }
                open_for_reading(world, number, node, vdi)?;
                world.clients[number].verifying = Some(0);
                wait(world, 60, "a volume to be read", |w| {
                    is_read(w, number) || w.clients[number].place != Place::Open(node)
                })?;
            }
            world.clients[number].verifying = Some(usize::MAX);
        }
    }
    Ok(())
}

/// Reads everything that there is through every node at once, and looks whether all know the same tree.
fn inspect(world: &mut World) -> Result<(), String> {
    for number in 0..world.clients.len() {
        world.close(number);
        wait(world, 60, "a volume to be closed", |w| w.clients[number].place == Place::Away)?;
    }
    world.same_tree()?;
    world.agree()?;
    let first = world.clients.len();
    for _ in 0..world.nodes.len() {
        let mut inspector = Client::new(OpenMode::Read);
        inspector.verifying = Some(usize::MAX);
        world.clients.push(inspector);
        world.schedule(0, Event::Client(world.clients.len() - 1));
    }
    let all: Vec<VdiId> = world.tree.alive().map(|(vdi, _)| vdi).collect();
    for vdi in all {
        inspect_one(world, first, vdi)?;
        world.counts.inspected += 1;
    }
    Ok(())
}

fn inspect_one(world: &mut World, first: usize, vdi: VdiId) -> Result<(), String> {
    if !world.is_clean(vdi) {
        // Whoever had it last is gone: opening it settles it.
        (world.clients[first].mode, world.clients[first].vdi) = (OpenMode::Write, Some(vdi));
        open_for_reading(world, first, 0, vdi)?;
        world.close(first);
        wait(world, 60, "a volume to be closed", |w| w.clients[first].place == Place::Away)?;
        world.clients[first].mode = OpenMode::Read;
    }
    let numbers = first..first + world.nodes.len();
    for number in numbers.clone() {
        (world.clients[number].vdi, world.clients[number].verifying) = (Some(vdi), Some(0));
    }
    let end = world.now + 120 * SECOND;
    while !numbers.clone().all(|number| is_read(world, number)) {
        for number in numbers.clone() {
            if world.clients[number].place == Place::Away {
                world.clients[number].verifying = Some(0);
                world.open_at(number, number - first, vdi);
            }
        }
        if world.now >= end {
            return Err(format!("waited 120 s in vain for {vdi} to be read through every node"));
        }
        let next = world.now + SECOND / 50;
        world.run_until(next)?;
    }
    for number in numbers.clone() {
        world.clients[number].verifying = Some(usize::MAX);
        world.close(number);
    }
    wait(world, 60, "a volume to be closed", |w| {
        numbers.clone().all(|number| w.clients[number].place == Place::Away)
    })
}

/// Whether a client has read all of its volume, where it is open.
fn is_read(world: &World, number: usize) -> bool {
    let client = &world.clients[number];
    let len = client.vdi.map_or(0, |vdi| world.tree.len(vdi));
    let all = client.verifying.is_some_and(|at| at >= len && at != usize::MAX);
    all && client.is_idle() && matches!(client.place, Place::Open(_))
}

/// Opens a volume at a node, again if that fails: a lock may still be held, or the node catch up.
fn open_for_reading(world: &mut World, number: usize, node: usize, vdi: VdiId) -> Result<(), String> {
    let end = world.now + 60 * SECOND;
    while world.clients[number].place != Place::Open(node) {
        if world.clients[number].place == Place::Away {
            world.open_at(number, node, vdi);
        }
        if world.now >= end {
            return Err("waited 60 s in vain for a volume to be opened".into());
        }
        let next = world.now + SECOND / 20;
        world.run_until(next)?;
    }
    Ok(())
}

/// Every object has all its copies, equal and current.
fn check_copies(world: &mut World) -> Result<(), String> {
    wait(world, 60, "cluster to be whole", |w| w.is_whole())?;
    let view = |w: &World, node: usize| -> Option<Arc<View>> { w.nodes[node].running.as_ref()?.view.clone() };
    let Some(view) = view(world, 0) else { return Err("node 0 has no view".into()) };
    let mut copies: BTreeMap<u64, Vec<(usize, Header, bool)>> = BTreeMap::new();
    for node in &world.nodes {
        let replica = node.running.as_ref().and_then(|r| r.shard.as_ref()).and_then(|s| s.replica());
        let Some(replica) = replica else { continue };
        if let Some(object) = crate::disks::doubled(node) {
            return Err(format!("node {} has {object} twice", node.index));
        }
        world.counts.moved += replica.moved().0;
        for header in replica.store().objects(sheep_types::ObjectId(0)) {
            let current = replica.is_current(header.id);
            copies.entry(header.id.0).or_default().push((node.index, *header, current));
        }
    }
    for (id, found) in copies {
        let object = sheep_types::ObjectId(id);
        let wanted = view.copies(object);
        let current: Vec<_> = found.iter().filter(|(_, _, current)| *current).collect();
        if current.is_empty() {
            // An orphan of a write that nobody acknowledged: no map names it.
            continue;
        }
        let members = view.up_set(object);
        if current.len() < wanted.min(members.len()) {
            return Err(format!(
                "object {object} has {} current copies of {wanted}: {found:?}",
                current.len()
            ));
        }
        let versions: std::collections::BTreeSet<_> =
            current.iter().map(|(_, header, _)| header.version).collect();
        if versions.len() > 1 {
            return Err(format!("current copies of object {object} differ: {current:?}"));
        }
    }
    Ok(())
}
