//! Rot on a disk is found and made good without a client's reading it; what is lost for good is an error of just
//! that part, until an operator gives it up.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which may")]

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use sheep_e2e::cluster::NodeOptions;
use sheep_e2e::dog::{Dog, count, rows, text};
use sheep_e2e::{Cluster, LeakCheck, NbdClient, serial, wait_until};

const LIMIT: Duration = Duration::from_secs(60);
const OBJECT: u64 = 4 << 20;
const BLOCK: usize = 4096;
const OBJECTS: u64 = 16;
/// Blocks that are written of each object.
const BLOCKS: usize = 32;

fn block(volume: u8, object: u64, number: usize) -> Vec<u8> {
    let tag = (u64::from(volume) << 56) | (object << 16) | number as u64 | 1 << 40;
    tag.to_le_bytes().repeat(BLOCK / 8)
}

fn contents(volume: u8, object: u64) -> Vec<u8> {
    (0..BLOCKS).flat_map(|number| block(volume, object, number)).collect()
}

fn fill(cluster: &mut Cluster, name: &str, volume: u8) {
    let mut client = NbdClient::unix(&cluster.node(1).nbd_socket(), name, LIMIT).unwrap();
    for object in 0..OBJECTS {
        client.write(object * OBJECT, &contents(volume, object), false).unwrap();
    }
    client.flush().unwrap();
    drop(client);
    cluster.wait_closed(name).unwrap();
}

/// What each object reads as through a node: `None` is an I/O error.
fn all(cluster: &mut Cluster, node: u8, name: &str) -> Vec<Option<Vec<u8>>> {
    let mut client = NbdClient::unix(&cluster.node(node).nbd_socket(), name, LIMIT).unwrap();
    let objects = (0..OBJECTS).map(|object| {
        let mut buffer = vec![0xee; BLOCKS * BLOCK];
        client.read(object * OBJECT, &mut buffer).ok().map(|()| buffer)
    });
    let objects = objects.collect();
    drop(client);
    cluster.wait_closed(name).unwrap();
    objects
}

/// Flips a byte in every third block that holds contents of a volume. Gives how many.
fn rot(file: &Path, volume: u8) -> usize {
    let file = OpenOptions::new().read(true).write(true).open(file).unwrap();
    let blocks = file.metadata().unwrap().len() / BLOCK as u64;
    let (mut found, mut flipped) = (0, 0);
    let mut chunk = vec![0; 256 * BLOCK];
    for first in (0..blocks).step_by(256) {
        let read = file.read_at(&mut chunk, first * BLOCK as u64).unwrap();
        for (number, bytes) in chunk[..read].chunks_exact(BLOCK).enumerate() {
            let ours = bytes[7] == volume && bytes[..8] == bytes[BLOCK - 8..] && bytes[5] == 1;
            found += usize::from(ours);
            if ours && found % 3 == 0 {
                let at = (first + number as u64) * BLOCK as u64 + 1000;
                file.write_all_at(&[bytes[1000] ^ 0x10], at).unwrap();
                flipped += 1;
            }
        }
    }
    file.sync_all().unwrap();
    flipped
}

fn scrub(dog: &Dog) -> Vec<serde_json::Value> {
    rows(dog.json(&["cluster", "scrub", "start", "--wait"]).unwrap())
}

fn sum(replies: &[serde_json::Value], field: &str) -> u64 {
    replies.iter().map(|reply| count(reply, field)).sum()
}

#[test]
fn rot_is_found_and_made_good() {
    let _one = serial();
    let check = LeakCheck::start();
    let small = NodeOptions { extra: vec!["--capacity".into(), "1G".into()], ..NodeOptions::default() };
    let mut cluster = Cluster::plan(3).unwrap().with_options(&small);
    cluster.start_all().unwrap();
    cluster.create("disk", "64M", 3).unwrap();
    fill(&mut cluster, "disk", 7);
    let dog = cluster.any_dog().unwrap();
    dog.run(&["cluster", "settings", "--scrub-rate", "1G"]).unwrap();
    let before = scrub(&dog);
    assert_eq!((sum(&before, "damaged"), sum(&before, "passes")), (0, 3), "{before:?}");
    // Of the node's own map object and of every object something.
    assert!(sum(&before, "bytes_read") >= 3 * OBJECTS * (BLOCKS * BLOCK) as u64, "{before:?}");
    let file = cluster.node(2).dir.join("objects/blocks");
    let flipped = rot(&file, 7);
    assert!(flipped >= 100, "{flipped} blocks");
    let after = scrub(&dog);
    println!("{flipped} blocks rotted: {after:?}");
    assert_eq!(sum(&after, "damaged"), OBJECTS, "every object of one node: {after:?}");
    assert_eq!((sum(&after, "repaired"), sum(&after, "damaged_now")), (OBJECTS, 0), "{after:?}");
    assert_eq!(sum(&after, "mismatched") + sum(&after, "unresolved") + sum(&after, "lost"), 0, "{after:?}");
    dog.run(&["vdi", "check", "disk"]).unwrap();
    // The repaired copies are the only ones that are left.
    cluster.node(1).kill();
    cluster.node(3).signal(sheep_e2e::Signal::Term).unwrap();
    cluster.node(3).process().unwrap().wait(LIMIT).unwrap();
    cluster.node(1).start().unwrap();
    cluster.node(3).start().unwrap();
    cluster.wait_recovered(LIMIT).unwrap();
    for (object, found) in (0..).zip(all(&mut cluster, 2, "disk")) {
        assert_eq!(found.as_deref(), Some(contents(7, object).as_slice()), "object {object}");
    }
    assert_eq!(sum(&scrub(&dog), "damaged_now"), 0);
    drop(cluster);
    check.finish().unwrap();
}

/// Numbers of data objects that a node has, and whether it has the map.
fn holds(dog: &Dog, node: &str) -> (BTreeSet<u64>, bool) {
    let looked = dog.json(&["vdi", "check", "thin", "--all"]).unwrap();
    let mine =
        looked["findings"].as_array().unwrap().iter().filter(|object| {
            object["copies"].as_array().unwrap().iter().any(|copy| text(copy, "node") == node)
        });
    let (maps, data): (Vec<_>, Vec<_>) = mine.partition(|object| object["map"] == true);
    (data.into_iter().map(|object| count(object, "index")).collect(), !maps.is_empty())
}

#[test]
fn what_is_lost_is_told_and_can_be_given_up() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(3).unwrap();
    cluster.create("thin", "64M", 1).unwrap();
    fill(&mut cluster, "thin", 9);
    let dog = cluster.node(1).dog().unwrap();
    let ids: Vec<String> = dog.nodes().unwrap().iter().map(|node| text(node, "id").to_owned()).collect();
    let own = dog.json(&["node", "info"]).unwrap();
    let others = ids.iter().filter(|id| **id != text(&own, "id"));
    let victim = others.clone().find(|id| !holds(&dog, id).1).unwrap().clone();
    let (lost, _) = holds(&dog, &victim);
    assert!(!lost.is_empty() && (lost.len() as u64) < OBJECTS, "{lost:?}");
    let index = (2..=3).find(|index| {
        let info = cluster.node(*index).dog().unwrap().json(&["node", "info"]).unwrap();
        text(&info, "id") == victim
    });
    cluster.node(index.unwrap()).kill();
    let state = |id: &str| {
        let nodes = dog.nodes().unwrap();
        nodes.iter().find(|node| text(node, "id") == id).map(|node| text(node, "state").to_owned())
    };
    wait_until("the node to be down", LIMIT, Duration::from_millis(100), || {
        Ok(state(&victim).as_deref() == Some("down"))
    })
    .unwrap();
    // It may come back: nothing is given up.
    let refused = dog.refused(&["vdi", "accept-loss", "thin", "--all"]).unwrap();
    assert!(refused.message.contains("--yes"), "{}", refused.message);
    let kept = dog.run(&["vdi", "accept-loss", "thin", "--all", "--yes"]).unwrap_err().to_string();
    assert!(kept.contains(&victim) && kept.contains("0 lost objects"), "{kept}");
    dog.run(&["node", "remove", &victim, "--force"]).unwrap();
    let found = wait_for_loss(&dog, &lost);
    println!("{found}");
    let read = all(&mut cluster, 1, "thin");
    for (object, found) in (0..).zip(&read) {
        let expected = (!lost.contains(&object)).then(|| contents(9, object));
        assert!(*found == expected, "object {object}, lost {lost:?}");
    }
    let complaint = dog.run(&["cluster", "check"]).unwrap_err().to_string();
    println!("{complaint}");
    assert!(complaint.contains("VDI thin has lost objects"), "{complaint}");
    let given = dog.json(&["vdi", "accept-loss", "thin", "--all", "--yes"]).unwrap();
    assert_eq!(given["accepted"].as_array().map(Vec::len), Some(lost.len()), "{given}");
    for (object, found) in (0..).zip(all(&mut cluster, 1, "thin")) {
        let zeros = vec![0; BLOCKS * BLOCK];
        let expected = if lost.contains(&object) { zeros } else { contents(9, object) };
        assert!(found == Some(expected), "object {object} after the loss was accepted");
    }
    dog.run(&["vdi", "check", "thin"]).unwrap();
    drop(cluster);
    check.finish().unwrap();
}

/// Waits until it is proven that just these are lost. Gives what was said.
fn wait_for_loss(dog: &Dog, lost: &BTreeSet<u64>) -> String {
    let mut said = String::new();
    wait_until("the loss to be known", LIMIT, Duration::from_millis(300), || {
        let Err(error) = dog.run(&["vdi", "check", "thin", "-o", "json"]) else { return Ok(false) };
        said = error.to_string();
        let json = &said[said.find('{').unwrap()..=said.rfind('}').unwrap()];
        let looked: serde_json::Value = serde_json::from_str(json)?;
        let findings = looked["findings"].as_array().unwrap();
        let found: BTreeSet<u64> = findings
            .iter()
            .filter(|object| text(object, "state") == "lost")
            .map(|object| count(object, "index"))
            .collect();
        Ok(found == *lost && count(&looked, "unavailable") == 0)
    })
    .unwrap();
    said
}
