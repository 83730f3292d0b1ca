//! Clones that are flattened while they are written, or while nobody uses them; and other numbers of copies.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which may")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use sheep_e2e::dog::text;
use sheep_e2e::{Cluster, LeakCheck, NbdClient, serial, wait_until};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: usize = 64 << 20;
const OBJECT: usize = 4 << 20;
const WRITE: usize = 12 << 10;

/// Where write number `number` goes: all over the volume, not on borders of blocks.
fn place(number: u64) -> usize {
    (number * 7919 % ((SIZE - WRITE) as u64 / 512)) as usize * 512
}

fn apply(contents: &mut [u8], number: u64) {
    contents[place(number)..place(number) + WRITE].fill(number as u8);
}

struct Writer {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Writer {
    fn start(cluster: &mut Cluster, node: u8, volume: &str) -> Self {
        let mut client = NbdClient::unix(&cluster.node(node).nbd_socket(), volume, LIMIT).unwrap();
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (told, counter) = (Arc::clone(&stop), Arc::clone(&answered));
        let thread = std::thread::spawn(move || {
            for number in 1.. {
                client.write(place(number) as u64, &vec![number as u8; WRITE], number % 50 == 0).unwrap();
                counter.store(number, Ordering::SeqCst);
                if told.load(Ordering::SeqCst) {
                    return client.flush().unwrap();
                }
            }
        });
        Self { stop, answered, thread }
    }

    fn go_on(&self, writes: u64) {
        let from = self.answered.load(Ordering::SeqCst);
        let reached = || Ok(self.answered.load(Ordering::SeqCst) >= from + writes);
        wait_until("writes go on", LIMIT, Duration::from_millis(10), reached).unwrap();
    }

    /// Makes the contents what they are now.
    fn stop(self, contents: &mut [u8]) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
        (1..=self.answered.load(Ordering::SeqCst)).for_each(|number| apply(contents, number));
    }
}

fn dog(cluster: &mut Cluster, node: u8, words: &str) -> String {
    let words: Vec<&str> = words.split(' ').collect();
    cluster.node(node).dog().unwrap().run(&words).unwrap()
}

fn read(cluster: &mut Cluster, node: u8, name: &str) -> Vec<u8> {
    let file = cluster.path().join("contents");
    let dog = cluster.node(node).dog().unwrap();
    dog.run(&["vdi", "read", name, "-f", &file.display().to_string()]).unwrap();
    std::fs::read(file).unwrap()
}

/// A volume with whole objects, parts of objects, and nothing.
fn golden(cluster: &mut Cluster) -> Vec<u8> {
    cluster.create("golden", "64M", 2).unwrap();
    let mut contents = vec![0; SIZE];
    let mut client = NbdClient::unix(&cluster.node(1).nbd_socket(), "golden", LIMIT).unwrap();
    for object in [0usize, 3, 4, 9] {
        let bytes: Vec<u8> = (0..OBJECT).map(|at| (at / 512 + object) as u8).collect();
        client.write((object * OBJECT) as u64, &bytes, false).unwrap();
        contents[object * OBJECT..(object + 1) * OBJECT].copy_from_slice(&bytes);
    }
    for number in 0..40usize {
        let at = (10 * OBJECT) + number * 300 * 1024 / 512 * 512;
        client.write(at as u64, &[77; 8192], false).unwrap();
        contents[at..at + 8192].fill(77);
    }
    client.flush().unwrap();
    contents
}

#[test]
fn clones_are_flattened_while_they_are_written_and_while_nobody_uses_them() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(3).unwrap();
    let golden = golden(&mut cluster);
    cluster.wait_closed("golden").unwrap();
    dog(&mut cluster, 1, "vdi snapshot golden base");
    for name in ["open", "idle"] {
        dog(&mut cluster, 2, &format!("vdi clone golden@base {name}"));
    }
    let mut open = golden.clone();
    let writer = Writer::start(&mut cluster, 2, "open");
    writer.go_on(20);
    dog(&mut cluster, 1, "vdi flatten idle --detach");
    println!("{}", dog(&mut cluster, 3, "vdi list"));
    println!("{}", dog(&mut cluster, 1, "vdi flatten open"));
    writer.go_on(100);
    // Who comes to the other one is not refused, wherever it is being flattened.
    for node in 1..=3 {
        assert!(read(&mut cluster, node, "idle") == golden, "node {node}");
    }
    println!("{}", dog(&mut cluster, 3, "vdi flatten idle"));
    writer.stop(&mut open);
    cluster.wait_closed("open").unwrap();
    for victim in ["golden@base", "golden"] {
        dog(&mut cluster, 3, &format!("vdi delete {victim}"));
    }
    for (name, contents) in [("open", &open), ("idle", &golden)] {
        assert!(read(&mut cluster, 3, name) == *contents, "{name}");
        dog(&mut cluster, 1, &format!("vdi check {name}"));
        let list = cluster.any_dog().unwrap().volumes().unwrap();
        let shown = list.iter().find(|vdi| text(vdi, "name") == name).unwrap();
        assert!(shown["cloned"] == false && shown["flattening"] == false, "{shown}");
    }
    // Other numbers of copies, under writes.
    let writer = Writer::start(&mut cluster, 1, "open");
    for copies in [3, 1, 2] {
        println!(
            "{}",
            dog(&mut cluster, 2, &format!("vdi alter-copy open --copies {copies} --min-copies 1"))
        );
        writer.go_on(20);
    }
    writer.stop(&mut open);
    cluster.wait_closed("open").unwrap();
    assert!(read(&mut cluster, 2, "open") == open);
    dog(&mut cluster, 1, "vdi check open");
    cluster.wait_sound(LIMIT).unwrap();
    drop(cluster);
    check.finish().unwrap();
}

/// What lay beyond the end is gone, also in the middle of a block, and for a larger clone of a snapshot taken between.
#[test]
fn what_a_smaller_volume_has_lost_does_not_come_back() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(3).unwrap();
    let mut contents = golden(&mut cluster);
    cluster.wait_closed("golden").unwrap();
    dog(&mut cluster, 1, "vdi snapshot golden before");
    let end = 10 * OBJECT + 1536;
    let used = |cluster: &mut Cluster| {
        let nodes = cluster.any_dog().unwrap().json(&["node", "list"]).unwrap();
        sheep_e2e::dog::rows(nodes).iter().filter_map(|node| node["used_bytes"].as_u64()).sum::<u64>()
    };
    let before = used(&mut cluster);
    dog(&mut cluster, 2, &format!("vdi resize golden {end} --shrink"));
    dog(&mut cluster, 3, "vdi snapshot golden small");
    dog(&mut cluster, 1, "vdi resize golden 64M");
    dog(&mut cluster, 2, "vdi clone golden@small larger --size 64M");
    dog(&mut cluster, 2, "vdi clone golden@before whole");
    assert!(read(&mut cluster, 1, "whole") == contents, "the snapshot before has it");
    contents[end..].fill(0);
    for (node, name) in [(1, "golden"), (3, "larger")] {
        assert!(read(&mut cluster, node, name) == contents, "{name}");
    }
    dog(&mut cluster, 3, "vdi flatten larger");
    assert!(read(&mut cluster, 3, "larger") == contents);
    println!("{before} bytes before, {} after", used(&mut cluster));
    for name in ["golden", "larger", "whole"] {
        dog(&mut cluster, 1, &format!("vdi check {name}"));
    }
    drop(cluster);
    check.finish().unwrap();
}
