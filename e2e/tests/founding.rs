//! A cluster is made of nodes that run already, as the operator does it.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which may")]

use std::time::Duration;

use sheep_e2e::dog::text;
use sheep_e2e::{Cluster, Filesystem, LeakCheck, NbdClient, serial, wait_until};

const LIMIT: Duration = Duration::from_secs(60);

/// Nodes that know a key and each other, and have no cluster.
fn without_cluster(nodes: u8) -> Cluster {
    let mut cluster = Cluster::plan(nodes).unwrap();
    let key = cluster.path().join("key");
    std::fs::write(&key, "5e".repeat(32)).unwrap();
    let seeds: Vec<String> =
        (1..=nodes).map(|index| format!("{}:7000", cluster.node(index).address)).collect();
    for index in 1..=nodes {
        let options = cluster.options(index);
        options.extra = vec!["--key".to_owned(), key.display().to_string()];
        options.seeds.clone_from(&seeds);
        cluster.node(index).launch(false).unwrap();
    }
    for index in 1..=nodes {
        cluster.node(index).wait_ready(0).unwrap();
    }
    cluster
}

/// The nodes' ring forms, and keeps numbers in their logs, all the while. Whenever the order comes, the log of the new
/// cluster begins with the genesis entry, and is whole when the node comes back.
#[test]
fn it_begins_at_any_moment_and_outlives_its_first_node() {
    let _one = serial();
    let check = LeakCheck::start();
    for wait_ms in [0, 40, 150, 400, 1500] {
        let mut cluster = without_cluster(3);
        std::thread::sleep(Duration::from_millis(wait_ms));
        let dog = cluster.node(2).dog().unwrap();
        dog.run(&["cluster", "format", "--copies", "3"]).unwrap();
        let again = dog.refused(&["cluster", "format", "--copies", "3"]).unwrap();
        assert!(again.message.contains("belongs to cluster"), "{}", again.message);
        cluster.wait_up(3).unwrap();
        cluster.create("disk", "64M", 3).unwrap();
        let mut client = NbdClient::unix(&cluster.node(2).nbd_socket(), "disk", LIMIT).unwrap();
        client.write(0, &[6; 4096], true).unwrap();
        drop(client);
        cluster.node(2).kill();
        cluster.node(2).start().unwrap();
        cluster.wait_up(3).unwrap();
        let socket = cluster.node(2).nbd_socket();
        let mut buffer = vec![0; 4096];
        wait_until("the lock of the former run is free", LIMIT, Duration::from_millis(200), || {
            let client = NbdClient::unix(&socket, "disk", LIMIT);
            Ok(client.is_ok_and(|mut client| client.read(0, &mut buffer).is_ok()))
        })
        .unwrap();
        assert_eq!(buffer, [6; 4096]);
        drop(cluster);
    }
    check.finish().unwrap();
}

/// A filesystem that is nearly full is refused by a sentence before there is a node that could fail.
#[test]
fn a_node_says_that_there_is_no_room_for_a_store() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::plan(1).unwrap();
    let disk = Filesystem::new(&cluster.node(1).dir, 48).unwrap();
    cluster.node(1).launch(true).unwrap();
    let process = cluster.node(1).process().unwrap();
    assert_ne!(process.wait(LIMIT).unwrap().code(), Some(0));
    let said = process.log_text();
    assert!(said.contains("a store needs 64 MiB") && !said.contains("panicked"), "{said}");
    drop((disk, cluster));

    // However full a large filesystem is: what is left is what counts.
    let mut cluster = Cluster::plan(1).unwrap();
    let disk = Filesystem::new(&cluster.path().join("disk"), 4096).unwrap();
    cluster.node(1).dir = disk.path().join("n1");
    let ballast = disk.path().join("ballast");
    let filled =
        std::process::Command::new("fallocate").args(["-l", "3700M"]).arg(&ballast).status().unwrap();
    assert!(filled.success());
    cluster.start_all().unwrap();
    let nodes = cluster.any_dog().unwrap().nodes().unwrap();
    assert_eq!(text(&nodes[0], "state"), "up");
    drop((disk, cluster));
    check.finish().unwrap();
}
