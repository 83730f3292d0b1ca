//! All nodes lose everything in memory at once, and come back by themselves.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which may")]

use std::time::Duration;

use sheep_e2e::oracle::{BLOCK, Random};
use sheep_e2e::{Cluster, LeakCheck, NbdClient, Oracle, serial};

const LIMIT: Duration = Duration::from_secs(60);
const BLOCKS: usize = 2048;
const RECOVERED: Duration = Duration::from_secs(240);

fn offset(block: usize) -> u64 {
    // Spread over several objects.
    block as u64 * 3 * BLOCK as u64
}

fn read_all(client: &mut NbdClient, oracle: &mut Oracle) {
    let mut buffer = vec![0; BLOCK];
    for block in 0..oracle.len() {
        client.read(offset(block), &mut buffer).unwrap();
        oracle.check(block, &buffer).unwrap();
    }
}

#[test]
fn flushed_data_survives_the_loss_of_all_nodes_at_once() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(3).unwrap();
    cluster.create("disk", "256M", 3).unwrap();
    let mut oracle = Oracle::new(BLOCKS, 21);
    let mut random = Random::new(21);
    for round in 0..4_u8 {
        let socket = cluster.node(round % 3 + 1).nbd_socket();
        let mut client = NbdClient::unix(&socket, "disk", LIMIT).unwrap();
        read_all(&mut client, &mut oracle);
        for step in 0..1500 {
            let block = random.below(BLOCKS as u64) as usize;
            let data = oracle.send(block);
            client.write(offset(block), &data, false).unwrap();
            oracle.answered(block);
            // The last 300 writes of a round are not flushed: they may go, but not in halves.
            if step % 100 == 99 && step < 1200 {
                client.flush().unwrap();
                oracle.flushed();
            }
        }
        cluster.kill_all();
        oracle.power_lost();
        drop(client);
        // All at once and in no order, as when the power comes back.
        let seen: Vec<usize> = cluster.nodes.iter().map(|node| node.times_ready()).collect();
        cluster.nodes.iter_mut().for_each(|node| node.launch(false).unwrap());
        cluster.nodes.iter_mut().zip(seen).for_each(|(node, seen)| assert!(node.wait_ready(seen).is_ok()));
        cluster.wait_up(3).unwrap();
    }
    cluster.wait_recovered(RECOVERED).unwrap();
    for node in 1..=3 {
        cluster.wait_closed("disk").unwrap();
        let mut client = NbdClient::unix(&cluster.node(node).nbd_socket(), "disk", LIMIT).unwrap();
        read_all(&mut client, &mut oracle);
    }
    cluster.wait_sound(RECOVERED).unwrap();
    drop(cluster);
    check.finish().unwrap();
}

#[test]
fn a_majority_that_returns_serves_when_the_rest_is_given_up() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(3).unwrap();
    let dog = cluster.any_dog().unwrap();
    dog.create("disk", "64M", 3).unwrap();
    // The missing node may have been cut off only, with answered writes in its memory that nobody else has: the
    // others wait for it until it is out.
    dog.run(&["cluster", "settings", "--out-delay-ms", "5000"]).unwrap();
    let mut client = NbdClient::unix(&cluster.node(1).nbd_socket(), "disk", LIMIT).unwrap();
    client.write(0, &[9; BLOCK], true).unwrap();
    cluster.kill_all();
    drop(client);
    for node in [2, 3] {
        cluster.node(node).launch(false).unwrap();
    }
    for node in [2, 3] {
        cluster.node(node).wait_ready(1).unwrap();
        cluster.node(node).wait_member().unwrap();
    }
    let mut client = NbdClient::unix(&cluster.node(3).nbd_socket(), "disk", LIMIT).unwrap();
    let mut buffer = vec![0; BLOCK];
    client.read(0, &mut buffer).unwrap();
    assert_eq!(buffer, [9; BLOCK]);
    client.write(0, &[10; BLOCK], true).unwrap();
    drop(client);
    // The one that was away longest must not bring the old state back.
    cluster.node(1).start().unwrap();
    cluster.wait_recovered(RECOVERED).unwrap();
    cluster.wait_closed("disk").unwrap();
    let mut client = NbdClient::unix(&cluster.node(1).nbd_socket(), "disk", LIMIT).unwrap();
    client.read(0, &mut buffer).unwrap();
    assert_eq!(buffer, [10; BLOCK]);
    drop((client, cluster));
    check.finish().unwrap();
}
