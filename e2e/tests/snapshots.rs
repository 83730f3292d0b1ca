//! Snapshots, clones and rollback as users have them: with `dog` and NBD, while somebody writes and nodes die.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which may")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use sheep_e2e::dog::{rows, text};
use sheep_e2e::nbd::Answered;
use sheep_e2e::process::run;
use sheep_e2e::{Cluster, LeakCheck, NbdClient, serial, wait_until};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: usize = 32 << 20;
const BLOCK: usize = 4096;
/// Places that are written, all over the volume.
const PLACES: u64 = 1024;
/// NBD transmission flag: the export is read-only.
const READ_ONLY: u16 = 1 << 1;

/// Where write number `number` goes.
fn place(number: u64) -> usize {
    (number * 677 % PLACES) as usize * (SIZE / PLACES as usize)
}

fn block(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(BLOCK / 8)
}

/// Contents after the writes 1 to `last`.
fn after(last: u64) -> Vec<u8> {
    let mut contents = vec![0; SIZE];
    for number in 1..=last {
        contents[place(number)..place(number) + BLOCK].copy_from_slice(&block(number));
    }
    contents
}

/// The last write that contents show, which are exactly those after it: every write before it is there, none behind.
fn instant(name: &str, contents: &[u8]) -> u64 {
    let number = |at: usize| u64::from_le_bytes(contents[at..at + 8].try_into().unwrap());
    let last = (0..PLACES).map(|n| number(place(n))).max().unwrap();
    assert!(contents == after(last), "{name} shows write {last}, but not all before it, or some behind it");
    last
}

/// Writes numbered blocks one by one until it is told to stop, or its server dies.
struct Writer {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Writer {
    fn start(cluster: &mut Cluster, node: u8, volume: &str) -> Writer {
        let mut client = NbdClient::unix(&cluster.node(node).nbd_socket(), volume, LIMIT).unwrap();
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (told, counter) = (Arc::clone(&stop), Arc::clone(&answered));
        let thread = std::thread::spawn(move || {
            for number in 1.. {
                let done = client.write(place(number) as u64, &block(number), number % 64 == 0);
                if done.is_err() || told.load(Ordering::SeqCst) {
                    return;
                }
                counter.store(number, Ordering::SeqCst);
            }
        });
        Writer { stop, answered, thread }
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }

    /// Waits until so much more is answered.
    fn go_on(&self, writes: u64) {
        let from = self.answered();
        wait_until("writes go on", LIMIT, Duration::from_millis(10), || Ok(self.answered() >= from + writes))
            .unwrap();
    }

    fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
    }
}

/// What a VDI reads as through a node.
fn read(cluster: &mut Cluster, node: u8, name: &str) -> Vec<u8> {
    let file: PathBuf = cluster.path().join("contents");
    let dog = cluster.node(node).dog().unwrap();
    dog.run(&["vdi", "read", name, "-f", &file.display().to_string()]).unwrap();
    std::fs::read(file).unwrap()
}

fn dog(cluster: &mut Cluster, node: u8, words: &str) -> String {
    let words: Vec<&str> = words.split(' ').collect();
    cluster.node(node).dog().unwrap().run(&words).unwrap()
}

fn names(cluster: &mut Cluster) -> Vec<String> {
    let mut names: Vec<String> = cluster
        .any_dog()
        .unwrap()
        .volumes()
        .unwrap()
        .iter()
        .map(|vdi| text(vdi, "name").to_owned())
        .collect();
    names.sort();
    names
}

/// Five snapshots of `disk` while it is written through node 1, taken through the others, of which one dies and comes
/// back. Gives contents of each, and of the volume at the end.
fn five_under_writes(cluster: &mut Cluster) -> Vec<Vec<u8>> {
    let writer = Writer::start(cluster, 1, "disk");
    let mut between = Vec::new();
    for number in 1..=5u8 {
        writer.go_on(200);
        if number == 3 {
            cluster.node(2).kill();
            writer.go_on(1);
        }
        let before = writer.answered();
        dog(cluster, 3, &format!("vdi snapshot disk s{number}"));
        // One more may be on its way.
        between.push(before..=writer.answered() + 1);
        if number == 4 {
            cluster.node(2).start().unwrap();
        }
    }
    writer.go_on(200);
    writer.stop();
    cluster.wait_closed("disk").unwrap();
    cluster.wait_recovered(LIMIT).unwrap();
    let mut all = Vec::new();
    for (number, between) in (1..).zip(between) {
        let name = format!("disk@s{number}");
        let contents = read(cluster, 1 + number % 3, &name);
        let shown = instant(&name, &contents);
        assert!(between.contains(&shown), "{name} shows write {shown}, not one of {between:?}");
        all.push(contents);
    }
    all.push(read(cluster, 2, "disk"));
    instant("disk", &all[5]);
    all
}

/// An export of a snapshot can be read, and not be written.
fn served_read_only(cluster: &mut Cluster, name: &str, contents: &[u8]) {
    let socket = cluster.node(2).nbd_socket();
    let mut client = NbdClient::unix(&socket, name, LIMIT).unwrap();
    assert_ne!(client.flags & READ_ONLY, 0, "flags {:#x}", client.flags);
    assert_eq!(client.size, SIZE as u64);
    let refused = client.write(0, &block(7), false).unwrap_err();
    assert_eq!(refused.downcast_ref::<Answered>(), Some(&Answered(1)), "{refused:#}");
    let mut buffer = vec![0; BLOCK];
    client.read(place(9) as u64, &mut buffer).unwrap();
    assert_eq!(buffer, contents[place(9)..place(9) + BLOCK]);
    // Others may read it at the same time, but it cannot be deleted.
    drop(NbdClient::unix(&cluster.node(3).nbd_socket(), name, LIMIT).unwrap());
    let refused = cluster.node(3).dog().unwrap().refused(&["vdi", "delete", name]).unwrap();
    assert!(refused.code == 1 && refused.message.contains("being read by"), "{}", refused.message);
    let list = run("nbdinfo", ["--list", &format!("nbd+unix:///?socket={}", socket.display())]).unwrap();
    assert!(list.contains(&format!("export=\"{name}\"")), "{list}");
    drop(client);
}

/// A clone is written: it alone has that.
fn write_clone(cluster: &mut Cluster, name: &str, mut contents: Vec<u8>) -> Vec<u8> {
    assert!(read(cluster, 3, name) == contents, "a clone begins as what it was cloned from");
    let mut client = NbdClient::unix(&cluster.node(2).nbd_socket(), name, LIMIT).unwrap();
    for number in 1..200u64 {
        // Parts of blocks too.
        let at = (number as usize * 90_112 + 512) % (SIZE - BLOCK);
        client.write(at as u64, &vec![number as u8; 1024], false).unwrap();
        contents[at..at + 1024].fill(number as u8);
    }
    client.flush().unwrap();
    drop(client);
    cluster.wait_closed(name).unwrap();
    assert!(read(cluster, 1, name) == contents, "a clone has what was written to it");
    contents
}

fn refusals(cluster: &mut Cluster) {
    let dog = cluster.node(2).dog().unwrap();
    for (words, message) in [
        (&["vdi", "snapshot", "disk", "s1"][..], "a snapshot disk@s1 exists"),
        (&["vdi", "snapshot", "none", "s1"], "no VDI \"none\""),
        (&["vdi", "clone", "disk@none", "x"], "no VDI \"disk@none\""),
        (&["vdi", "clone", "disk@s1", "x", "--size", "1M"], "has at least its"),
        (&["vdi", "rollback", "disk", "none"], "no VDI \"disk@none\""),
        (&["vdi", "resize", "disk@s1", "64M"], "is a snapshot"),
    ] {
        let refused = dog.refused(words).unwrap();
        assert!(refused.code == 1 && refused.message.contains(message), "{words:?}: {}", refused.message);
    }
}

#[test]
fn snapshots_under_writes_are_cloned_rolled_back_to_and_deleted() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(3).unwrap();
    cluster.create("disk", "32M", 3).unwrap();
    let all = five_under_writes(&mut cluster);
    served_read_only(&mut cluster, "disk@s1", &all[0]);
    refusals(&mut cluster);

    dog(&mut cluster, 2, "vdi clone disk@s2 copy --copies 2");
    let copy = write_clone(&mut cluster, "copy", all[1].clone());
    dog(&mut cluster, 3, "vdi snapshot copy c1");
    dog(&mut cluster, 1, "vdi clone disk whole --size 64M");
    let whole = read(&mut cluster, 2, "whole");
    assert!(whole[..SIZE] == all[5] && whole[SIZE..].iter().all(|byte| *byte == 0));
    assert_eq!(
        names(&mut cluster),
        ["copy", "copy@c1", "disk", "disk@s1", "disk@s2", "disk@s3", "disk@s4", "disk@s5", "whole"]
    );
    let tree = rows(cluster.node(3).dog().unwrap().json(&["vdi", "tree"]).unwrap());
    assert_eq!(text(&tree[0]["snapshots"][1]["clones"][0], "name"), "copy", "{tree:?}");
    println!("{}", dog(&mut cluster, 3, "vdi tree"));
    println!("{}", dog(&mut cluster, 3, "vdi list"));

    dog(&mut cluster, 2, "vdi rollback disk s3");
    for name in ["disk@s1", "disk", "copy", "copy@c1", "whole"] {
        dog(&mut cluster, 3, &format!("vdi check {name}"));
    }
    // In no order of theirs; the rest stays as it is.
    let mut left = vec![("disk", &all[2]), ("disk@s1", &all[0]), ("disk@s2", &all[1]), ("disk@s3", &all[2])];
    left.extend([("disk@s4", &all[3]), ("disk@s5", &all[4]), ("copy", &copy), ("copy@c1", &copy)]);
    left.push(("whole", &whole));
    for victim in ["disk@s2", "disk", "disk@s4", "copy", "disk@s1", "whole", "disk@s5", "copy@c1", "disk@s3"]
    {
        for (name, contents) in &left {
            assert!(read(&mut cluster, 1, name) == **contents, "{name} before {victim} goes");
        }
        dog(&mut cluster, 2, &format!("vdi delete {victim}"));
        left.retain(|(name, _)| *name != victim);
    }
    assert!(names(&mut cluster).is_empty());
    cluster.wait_sound(LIMIT).unwrap();
    drop(cluster);
    check.finish().unwrap();
}

#[test]
fn a_volume_whose_writer_died_is_settled_for_its_snapshot() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(3).unwrap();
    cluster.create("disk", "32M", 3).unwrap();
    let writer = Writer::start(&mut cluster, 1, "disk");
    writer.go_on(300);
    dog(&mut cluster, 2, "vdi snapshot disk before");
    writer.go_on(300);
    let answered = writer.answered();
    cluster.node(1).kill();
    let dog_2 = cluster.node(2).dog().unwrap();
    // Until the others know that it died, the volume is that node's.
    wait_until("a snapshot without the writer", LIMIT, Duration::from_millis(200), || {
        Ok(dog_2.run(&["vdi", "snapshot", "disk", "after"]).is_ok())
    })
    .unwrap();
    writer.stop();
    let contents = read(&mut cluster, 3, "disk@after");
    assert!(instant("disk@after", &contents) >= answered, "an answered write is gone");
    assert!(read(&mut cluster, 2, "disk") == contents);
    dog(&mut cluster, 3, "vdi rollback disk before");
    let before = read(&mut cluster, 2, "disk");
    assert!(instant("disk", &before) < answered && read(&mut cluster, 3, "disk@before") == before);
    dog(&mut cluster, 2, "vdi clone disk@after again");
    cluster.node(1).start().unwrap();
    cluster.wait_recovered(LIMIT).unwrap();
    assert!(read(&mut cluster, 1, "again") == contents);
    assert!(read(&mut cluster, 1, "disk") == before);
    cluster.wait_sound(LIMIT).unwrap();
    drop(cluster);
    check.finish().unwrap();
}

/// Writes a number to one volume, and when that is answered to another one at another node, and so on. Gives the last
/// number that was answered by both.
fn write_in_turn(cluster: &mut Cluster) -> Writer {
    let client = |cluster: &mut Cluster, node: u8, name: &str| {
        NbdClient::unix(&cluster.node(node).nbd_socket(), name, LIMIT).unwrap()
    };
    let (mut first, mut second) = (client(cluster, 1, "first"), client(cluster, 2, "second"));
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (told, counter) = (Arc::clone(&stop), Arc::clone(&answered));
    let thread = std::thread::spawn(move || {
        for number in 1.. {
            first.write(0, &block(number), false).unwrap();
            second.write(0, &block(number), false).unwrap();
            counter.store(number, Ordering::SeqCst);
            if told.load(Ordering::SeqCst) {
                return;
            }
        }
    });
    Writer { stop, answered, thread }
}

#[test]
fn a_group_is_one_instant_over_volumes_at_different_nodes() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(3).unwrap();
    cluster.create("first", "4M", 3).unwrap();
    cluster.create("second", "4M", 3).unwrap();
    let writer = write_in_turn(&mut cluster);
    let mut before = Vec::new();
    for number in 1..=10 {
        writer.go_on(50);
        before.push(writer.answered());
        dog(&mut cluster, 3, &format!("vdi snapshot first second --tag g{number}"));
    }
    writer.go_on(50);
    for (number, before) in (1..).zip(before) {
        let shown = |contents: Vec<u8>| u64::from_le_bytes(contents[..8].try_into().unwrap());
        let first = shown(read(&mut cluster, 3, &format!("first@g{number}")));
        let second = shown(read(&mut cluster, 3, &format!("second@g{number}")));
        println!("group {number}: {before} answered before, {first} and {second} are in it");
        assert!(second >= before && (first == second || first == second + 1), "{first} and {second}");
    }
    // Who asked for a group dies: nobody stands still for ever.
    let asks = cluster.node(3).dog().unwrap();
    let asker = std::thread::spawn(move || {
        (1..).find(|number| {
            asks.run(&["vdi", "snapshot", "first", "second", "--tag", &format!("x{number}")]).is_err()
        })
    });
    writer.go_on(100);
    cluster.node(3).kill();
    asker.join().unwrap();
    writer.go_on(200);
    writer.stop();
    cluster.node(3).start().unwrap();
    cluster.wait_recovered(LIMIT).unwrap();
    let all = names(&mut cluster);
    for name in all.iter().filter_map(|name| name.strip_prefix("first@")) {
        assert!(all.contains(&format!("second@{name}")), "half a group: {all:?}");
    }
    cluster.wait_sound(LIMIT).unwrap();
    drop(cluster);
    check.finish().unwrap();
}
