//! A node with two disks, of which one fails, comes back, is emptied and taken away, while a client writes.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests, which may")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sheep_e2e::dog::{count, rows, text};
use sheep_e2e::objects::{OBJECT, fill, verify};
use sheep_e2e::oracle::BLOCK;
use sheep_e2e::{Cluster, Filesystem, LeakCheck, NbdClient, Oracle, serial, wait_until};

const LIMIT: Duration = Duration::from_secs(60);
const RECOVERED: Duration = Duration::from_secs(240);
const OBJECTS: u64 = 24;

/// State and objects of a disk of node 2, by its path.
fn disk(cluster: &mut Cluster, path: &str) -> Option<(String, u64)> {
    let list = cluster.node(2).dog().unwrap().json(&["node", "md", "list"]).ok()?;
    let found = rows(list["disks"].clone()).into_iter().find(|disk| text(disk, "path") == path)?;
    Some((text(&found, "state").to_owned(), count(&found, "objects")))
}

fn wait_disk(cluster: &mut Cluster, path: &str, what: &str, is: impl Fn(&Option<(String, u64)>) -> bool) {
    let mut last = None;
    let waited = wait_until(what, RECOVERED, Duration::from_millis(200), || {
        last = disk(cluster, path);
        Ok(is(&last))
    });
    assert!(waited.is_ok(), "{what}: {last:?}");
}

fn is(state: &'static str) -> impl Fn(&Option<(String, u64)>) -> bool {
    move |disk| disk.as_ref().is_some_and(|(found, _)| found == state)
}

/// Ends the writer whatever becomes of the test: its thread is waited for.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes the first block of objects in turn until it is told to stop; gives how often.
fn write_on(client: &mut NbdClient, oracle: &mut Oracle, stop: &AtomicBool) -> u64 {
    let mut writes = 0;
    while !stop.load(Ordering::Relaxed) {
        let index = (writes % OBJECTS) as usize;
        let data = oracle.send(index);
        client.write(index as u64 * OBJECT, &data, writes.is_multiple_of(7)).unwrap();
        oracle.answered(index);
        writes += 1;
    }
    writes
}

#[test]
fn a_disk_fails_comes_back_and_is_emptied_while_a_client_writes() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::plan(3).unwrap();
    let second = Filesystem::new(&cluster.path().join("second"), 1024).unwrap();
    let path = second.path().display().to_string();
    cluster.options(2).extra = ["--disk", &path, "--capacity", "800M"].map(str::to_owned).to_vec();
    cluster.start_all().unwrap();
    cluster.create("disk", "256M", 3).unwrap();
    let mut client = NbdClient::unix(&cluster.node(1).nbd_socket(), "disk", LIMIT).unwrap();
    fill(&mut client, OBJECTS).unwrap();
    wait_disk(&mut cluster, &path, "its share of objects", |disk| {
        disk.as_ref().is_some_and(|(state, objects)| state == "in use" && *objects > 0)
    });

    let (mut oracle, stop) = (Oracle::new(OBJECTS as usize, 3), AtomicBool::new(false));
    let writes = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_on(&mut client, &mut oracle, &stop));
        let ends = Stop(&stop);
        second.break_down().unwrap();
        wait_disk(&mut cluster, &path, "its failure", is("failed"));
        cluster.wait_up(3).unwrap();
        // Its objects are made anew on the other disk of the node.
        wait_until("copies made anew", RECOVERED, Duration::from_millis(200), || {
            cluster.any_dog()?.has_recovered()
        })
        .unwrap();
        let info = cluster.any_dog().unwrap().cluster_info().unwrap();
        println!("with a failed disk: {} ({})", text(&info, "health"), text(&info, "message"));

        second.repair().unwrap();
        cluster.node(2).dog().unwrap().run(&["node", "md", "plug", &path]).unwrap();
        wait_disk(&mut cluster, &path, "objects on the disk that is back", |disk| {
            disk.as_ref().is_some_and(|(state, objects)| state == "in use" && *objects > 0)
        });
        cluster.wait_recovered(RECOVERED).unwrap();

        cluster.node(2).dog().unwrap().run(&["node", "md", "unplug", &path]).unwrap();
        wait_disk(&mut cluster, &path, "an empty disk to go", Option::is_none);
        drop(ends);
        writer.join().unwrap()
    });
    println!("{writes} writes, none of which failed");
    assert!(writes > 100, "{writes}");
    cluster.wait_recovered(RECOVERED).unwrap();
    drop(second);

    // Without the disk it starts, and it has everything.
    cluster.node(2).kill();
    cluster.node(2).start().unwrap();
    assert_eq!(disk(&mut cluster, &path), None, "it was taken away for good");
    cluster.wait_recovered(RECOVERED).unwrap();
    verify(&mut client, OBJECTS).unwrap();
    drop(client);
    cluster.wait_closed("disk").unwrap();
    // A node reads what it has itself.
    let mut reader = NbdClient::unix(&cluster.node(2).nbd_socket(), "disk", LIMIT).unwrap();
    verify(&mut reader, OBJECTS).unwrap();
    let mut block = vec![0; BLOCK];
    for index in 0..OBJECTS {
        reader.read(index * OBJECT, &mut block).unwrap();
        oracle.check(index as usize, &block).unwrap();
    }
    drop((reader, cluster));
    check.finish().unwrap();
}

#[test]
fn a_disk_that_lost_its_contents_is_not_believed() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(3).unwrap();
    cluster.create("disk", "128M", 2).unwrap();
    let mut client = NbdClient::unix(&cluster.node(1).nbd_socket(), "disk", LIMIT).unwrap();
    fill(&mut client, 16).unwrap();
    drop(client);
    cluster.wait_closed("disk").unwrap();
    // Node 3 is away, and comes back without its objects: it must not say that there were none.
    cluster.node(3).kill();
    let blocks = cluster.node(3).dir.join("objects").join("blocks");
    std::fs::remove_file(blocks).unwrap();
    cluster.node(3).start().unwrap();
    let dog = cluster.node(3).dog().unwrap();
    let mut lost = None;
    wait_until("the lost disk to be noticed", LIMIT, Duration::from_millis(100), || {
        let disks = rows(dog.json(&["node", "md", "list"])?["disks"].clone());
        let state = |state| disks.iter().find(|disk| text(disk, "state") == state);
        lost = state("failed").map(|disk| text(disk, "id").to_owned());
        Ok(lost.is_some() && state("in use").is_some())
    })
    .unwrap();
    let mut client = NbdClient::unix(&cluster.node(1).nbd_socket(), "disk", LIMIT).unwrap();
    verify(&mut client, 16).unwrap();
    // Only an operator knows that it does not come back.
    dog.run(&["node", "md", "unplug", "--force", &lost.unwrap()]).unwrap();
    cluster.wait_recovered(RECOVERED).unwrap();
    verify(&mut client, 16).unwrap();
    drop((client, cluster));
    check.finish().unwrap();
}
