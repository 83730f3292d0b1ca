//! Differences, backups and disk images as users have them: with `dog`, NBD and qemu-img, between two clusters.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which may")]

use std::time::Duration;

use serde_json::Value;
use sheep_e2e::dog::{Dog, count};
use sheep_e2e::process::{run, workspace_binary};
use sheep_e2e::{Cluster, LeakCheck, NbdClient, serial};

const LIMIT: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;
const SIZE: usize = 48 * MIB + 8192;
const BLOCK: usize = 4096;

/// Contents that differ everywhere, so that nothing goes unnoticed in a wrong place.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..len / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect()
}

struct World {
    cluster: Cluster,
    /// Contents of the volume now.
    now: Vec<u8>,
}

impl World {
    fn start() -> World {
        let mut cluster = Cluster::start(3).unwrap();
        cluster.create("disk", &SIZE.to_string(), 3).unwrap();
        World { cluster, now: vec![0; SIZE] }
    }

    fn client(&mut self) -> NbdClient {
        NbdClient::unix(&self.cluster.node(1).nbd_socket(), "disk", LIMIT).unwrap()
    }

    fn write(&mut self, client: &mut NbdClient, offset: usize, data: &[u8]) {
        for (number, piece) in data.chunks(MIB).enumerate() {
            client.write((offset + number * MIB) as u64, piece, false).unwrap();
        }
        self.now[offset..offset + data.len()].copy_from_slice(data);
    }

    fn zero(&mut self, client: &mut NbdClient, offset: usize, len: usize) {
        client.write_zeroes(offset as u64, len as u32).unwrap();
        self.now[offset..offset + len].fill(0);
    }

    fn dog(&mut self) -> Dog {
        self.cluster.node(2).dog().unwrap()
    }

    fn file(&self, name: &str) -> String {
        self.cluster.path().join(name).display().to_string()
    }
}

fn contents(dog: &Dog, file: &str, name: &str) -> Vec<u8> {
    dog.run(&["vdi", "read", name, "-f", file]).unwrap();
    std::fs::read(file).unwrap()
}

/// Offset, length and whether it reads as zeros, as `dog` says.
fn ranges(dog: &Dog, words: &[&str]) -> Vec<(u64, u64, bool)> {
    let said = dog.json(words).unwrap();
    let list = said["ranges"].as_array().unwrap();
    list.iter().map(|range| (count(range, "offset"), count(range, "length"), range["zero"] == true)).collect()
}

/// Snapshots `one` and `two`, and what both are.
fn two_snapshots(world: &mut World) -> (Vec<u8>, Vec<u8>) {
    let mut client = world.client();
    world.write(&mut client, 0, &noise(9 * MIB, 1));
    world.write(&mut client, 20 * MIB + BLOCK, &noise(3 * MIB, 2));
    client.flush().unwrap();
    let dog = world.dog();
    dog.run(&["vdi", "snapshot", "disk", "one"]).unwrap();
    let one = world.now.clone();
    // One block of an object, a part of a block, zeros, a new object, the end.
    world.write(&mut client, 5 * MIB + 3 * BLOCK, &noise(BLOCK, 3));
    world.write(&mut client, 6 * MIB + 512, &noise(1024, 4));
    world.zero(&mut client, 7 * MIB, 64 * BLOCK);
    world.write(&mut client, 40 * MIB, &noise(5 * BLOCK, 5));
    world.write(&mut client, SIZE - 8192, &noise(8192, 6));
    client.flush().unwrap();
    dog.run(&["vdi", "snapshot", "disk", "two"]).unwrap();
    drop(client);
    world.cluster.wait_closed("disk").unwrap();
    (one, world.now.clone())
}

fn changed() -> Vec<(u64, u64, bool)> {
    let block = |offset: usize, blocks: usize, zero| (offset as u64, (blocks * BLOCK) as u64, zero);
    vec![
        block(5 * MIB + 3 * BLOCK, 1, false),
        block(6 * MIB, 1, false),
        block(7 * MIB, 64, true),
        block(40 * MIB, 5, false),
        block(SIZE - 8192, 2, false),
    ]
}

/// The same said by the NBD export, in libnbd's words.
fn changed_by_nbd(world: &mut World) {
    let uri = world.cluster.node(3).nbd_uri("disk@two");
    let map = |tag: &str| {
        let context = format!("--map=sheepdog:changed-since:{tag}");
        run("nbdinfo", ["--json", &context, &uri])
    };
    let said: Value = serde_json::from_str(&map("one").unwrap()).unwrap();
    let extents = said.as_array().unwrap().iter().filter(|extent| count(extent, "type") != 0);
    let extents =
        extents.map(|extent| (count(extent, "offset"), count(extent, "length"), extent["type"] == 3));
    assert_eq!(extents.collect::<Vec<_>>(), changed());
    assert!(map("none").is_err(), "there is no such snapshot");
}

#[test]
fn only_what_changed_is_told() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut world = World::start();
    let (one, _) = two_snapshots(&mut world);
    let dog = world.dog();
    assert_eq!(ranges(&dog, &["vdi", "diff", "disk@two", "--since", "one"]), changed());
    assert_eq!(ranges(&dog, &["vdi", "diff", "disk", "--since", "disk@one"]), changed());
    assert_eq!(ranges(&dog, &["vdi", "diff", "disk", "--since", "two"]), []);
    let allocated = [(0, 9 * MIB as u64, false), ((20 * MIB + BLOCK) as u64, 3 * MIB as u64, false)];
    assert_eq!(ranges(&dog, &["vdi", "diff", "disk@one"]), allocated);
    changed_by_nbd(&mut world);
    // A clone differs from its origin by what is written to it.
    dog.run(&["vdi", "clone", "disk@one", "clone"]).unwrap();
    assert_eq!(ranges(&dog, &["vdi", "diff", "clone", "--since", "disk@one"]), []);
    let piece = world.file("piece");
    std::fs::write(&piece, noise(BLOCK, 9)).unwrap();
    dog.run(&["vdi", "write", "clone", "2M", "-f", &piece]).unwrap();
    let block = [(2 * MIB as u64, BLOCK as u64, false)];
    assert_eq!(ranges(&dog, &["vdi", "diff", "clone", "--since", "disk@one"]), block);
    let mut expected = one;
    expected[2 * MIB..2 * MIB + BLOCK].copy_from_slice(&noise(BLOCK, 9));
    assert!(contents(&dog, &world.file("clone"), "clone") == expected);
    // Volumes of different trees have nothing to compare.
    dog.create("other", "16M", 1).unwrap();
    dog.run(&["vdi", "snapshot", "other", "one"]).unwrap();
    let refusal = dog.refused(&["vdi", "diff", "disk", "--since", "other@one"]).unwrap();
    assert!(refusal.message.contains("nothing to compare"), "{}", refusal.message);
    drop(world);
    check.finish().unwrap();
}

#[test]
fn backups_come_back_in_another_cluster() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut world = World::start();
    let (one, two) = two_snapshots(&mut world);
    let dog = world.dog();
    let (full, more) = (world.file("full.backup"), world.file("more.backup"));
    dog.run(&["vdi", "backup", "disk@one", "-f", &full]).unwrap();
    dog.run(&["vdi", "backup", "disk@two", "--since", "one", "-f", &more]).unwrap();
    let length = std::fs::metadata(&more).unwrap().len();
    assert!(length < 12 * BLOCK as u64, "{length} bytes for nine blocks");
    goes_on(&dog, &full);

    let mut second = Cluster::start(1).unwrap();
    let other = second.node(1).dog().unwrap();
    bad_ones_are_refused(&other, &world.file("bad.backup"), &full);
    let server = second.node(1).dir.display().to_string();
    broken_off(&other, &server, &world.file("part.backup"), &full);
    // Differences need what they are against.
    let refused = |words: &[&str], why: &str| {
        let refusal = other.refused(words).unwrap();
        assert!(refusal.message.contains(why), "{why}: {}", refusal.message);
    };
    let restore_more = ["vdi", "restore", "copy", "-f", &more];
    refused(&restore_more, "restore a backup of that first");
    other.run(&["vdi", "create", "empty", "64M", "--copies", "1"]).unwrap();
    refused(&["vdi", "restore", "empty", "-f", &more], "has no snapshot that is disk@one");
    other.run(&["vdi", "restore", "copy", "-f", &full, "--copies", "1"]).unwrap();
    refused(&["vdi", "restore", "copy", "-f", &full], "has this already");
    // And that it has not changed since.
    let piece = world.file("piece");
    std::fs::write(&piece, noise(512, 9)).unwrap();
    other.run(&["vdi", "write", "copy", "1M", "-f", &piece]).unwrap();
    refused(&restore_more, "is not as it was");
    other.run(&["vdi", "rollback", "copy", "one"]).unwrap();
    other.run(&restore_more).unwrap();
    let file = world.file("contents");
    assert!(contents(&other, &file, "copy") == two);
    assert!(contents(&other, &file, "copy@one") == one);
    assert!(contents(&other, &file, "copy@two") == two);
    assert!(contents(&other, &file, "part") == one);
    drop(second);
    drop(world);
    check.finish().unwrap();
}

/// A backup that broke off is continued, and is the same in the end.
fn goes_on(dog: &Dog, full: &str) {
    let whole = std::fs::read(full).unwrap();
    let backup = ["vdi", "backup", "disk@one", "-f", full, "--resume"];
    let refusal = dog.refused(&backup).unwrap();
    assert!(refusal.message.contains("finished"), "{}", refusal.message);
    // Within a record, with something behind it that never belonged to it.
    let mut part = whole[..whole.len() / 2].to_vec();
    part.extend(noise(BLOCK, 8));
    std::fs::write(full, part).unwrap();
    let other = ["vdi", "backup", "disk@two", "-f", full, "--resume"];
    let refusal = dog.refused(&other).unwrap();
    assert!(refusal.message.contains("something else"), "{}", refusal.message);
    dog.run(&backup).unwrap();
    assert!(std::fs::read(full).unwrap() == whole);
    let refusal = dog.refused(&["vdi", "backup", "disk@one", "-f", full]).unwrap();
    assert!(refusal.message.contains("cannot make"), "nothing is overwritten: {}", refusal.message);
}

/// What is damaged or cut makes no volume.
fn bad_ones_are_refused(dog: &Dog, bad: &str, full: &str) {
    let whole = std::fs::read(full).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 4;
    for (bytes, why) in [
        (&flipped[..], "damaged"),
        (&whole[..whole.len() - 1], "breaks off"),
        (&whole[..whole.len() / 3], "breaks off"),
        (&whole[..10], "breaks off"),
        (&whole[100..], "no backup"),
    ] {
        std::fs::write(bad, bytes).unwrap();
        let refusal = dog.refused(&["vdi", "restore", "bad", "-f", bad]).unwrap();
        assert!(refusal.message.contains(why), "{why}: {}", refusal.message);
    }
    assert!(dog.volumes().unwrap().is_empty(), "nothing was made");
}

/// A restore whose input ended early is continued with the whole.
fn broken_off(dog: &Dog, server: &str, part: &str, full: &str) {
    let whole = std::fs::read(full).unwrap();
    std::fs::write(part, &whole[..whole.len() - 5 * MIB / 2]).unwrap();
    let script = "exec \"$1\" -s \"$2\" vdi restore part --copies 1 < \"$3\"";
    let program = workspace_binary("dog").unwrap().display().to_string();
    let words = ["-c", script, "sh", &program, server, part];
    assert!(run("sh", words).unwrap_err().to_string().contains("breaks off"));
    let refusal = dog.refused(&["vdi", "restore", "part", "-f", full]).unwrap();
    assert!(refusal.message.contains("--resume"), "{}", refusal.message);
    dog.run(&["vdi", "restore", "part", "-f", full, "--resume"]).unwrap();
}

#[test]
fn disk_images_go_in_and_out() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut world = World::start();
    let (one, two) = two_snapshots(&mut world);
    let dog = world.dog();
    let (raw, qcow2) = (world.file("two.raw"), world.file("one.qcow2"));
    dog.run(&["vdi", "export", "disk@two", &raw]).unwrap();
    dog.run(&["vdi", "export", "disk@one", &qcow2]).unwrap();
    assert!(std::fs::read(&raw).unwrap() == two);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&raw).unwrap());
    assert!(blocks * 512 < 16 << 20, "{blocks} sectors for 12 MiB");
    assert!(std::fs::metadata(&qcow2).unwrap().len() < 16 << 20);
    let plain = world.file("one.raw");
    std::fs::write(&plain, &one).unwrap();
    run("qemu-img", ["check", "-q", "-f", "qcow2", &qcow2]).unwrap();
    run("qemu-img", ["compare", "-q", "-f", "qcow2", "-F", "raw", &qcow2, &plain]).unwrap();
    let refusal = dog.refused(&["vdi", "export", "disk", &raw]).unwrap();
    assert!(refusal.message.contains("there already"), "{}", refusal.message);

    let packed = world.file("packed.qcow2");
    run("qemu-img", ["convert", "-c", "-f", "raw", "-O", "qcow2", &raw, &packed]).unwrap();
    let file = world.file("contents");
    for (image, name, expected) in [(&raw, "a", &two), (&qcow2, "b", &one), (&packed, "c", &two)] {
        dog.run(&["vdi", "import", image, name]).unwrap();
        assert!(&contents(&dog, &file, name) == expected, "{name}");
    }
    // Holes stay holes.
    let bytes: u64 = ranges(&dog, &["vdi", "diff", "b"]).iter().map(|range| range.1).sum();
    assert_eq!(bytes, 12 * MIB as u64);
    // What an image refers to is not read.
    let child = world.file("child.qcow2");
    run("qemu-img", ["create", "-q", "-f", "qcow2", "-b", &raw, "-F", "raw", &child]).unwrap();
    let refusal = dog.refused(&["vdi", "import", &child, "d"]).unwrap();
    assert!(refusal.message.contains("qemu-img convert"), "{}", refusal.message);
    drop(world);
    check.finish().unwrap();
}
