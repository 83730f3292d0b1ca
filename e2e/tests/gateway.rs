//! A node without a store serves volumes whose copies are on the others.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which may")]

use std::time::Duration;

use sheep_e2e::dog::{count, text};
use sheep_e2e::oracle::BLOCK;
use sheep_e2e::{Cluster, LeakCheck, NbdClient, serial};

const LIMIT: Duration = Duration::from_secs(60);
/// Blocks that are written, in several objects.
const BLOCKS: u64 = 512;
const STRIDE: u64 = 9 * BLOCK as u64;

fn contents(block: u64) -> Vec<u8> {
    vec![u8::try_from(block % 251).unwrap() + 1; BLOCK]
}

fn all_there(cluster: &mut Cluster, node: u8) {
    cluster.wait_closed("disk").unwrap();
    let mut client = NbdClient::unix(&cluster.node(node).nbd_socket(), "disk", LIMIT).unwrap();
    let mut buffer = vec![0; BLOCK];
    for block in 0..BLOCKS {
        client.read(block * STRIDE, &mut buffer).unwrap();
        assert_eq!(buffer, contents(block), "block {block} through node {node}");
    }
}

#[test]
fn a_gateway_serves_what_others_store_and_its_restart_is_no_new_epoch() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::plan(4).unwrap();
    cluster.options(4).gateway = true;
    cluster.start_all().unwrap();
    let dog = cluster.any_dog().unwrap();
    dog.create("disk", "64M", 3).unwrap();
    let nodes = dog.nodes().unwrap();
    let gateways: Vec<_> = nodes.iter().filter(|node| text(node, "role") == "gateway").collect();
    assert_eq!((nodes.len(), gateways.len()), (4, 1), "{nodes:?}");
    assert_eq!(gateways[0]["voter"], false);
    let epoch = |cluster: &mut Cluster| count(&cluster.any_dog().unwrap().cluster_info().unwrap(), "epoch");
    let before = epoch(&mut cluster);

    let mut client = NbdClient::unix(&cluster.node(4).nbd_socket(), "disk", LIMIT).unwrap();
    for block in 0..BLOCKS / 2 {
        client.write(block * STRIDE, &contents(block), false).unwrap();
    }
    client.flush().unwrap();
    // It dies with the lock, is started again, and goes on.
    cluster.node(4).kill();
    drop(client);
    cluster.node(4).start().unwrap();
    let mut client = NbdClient::unix(&cluster.node(4).nbd_socket(), "disk", LIMIT).unwrap();
    for block in BLOCKS / 2..BLOCKS {
        client.write(block * STRIDE, &contents(block), false).unwrap();
    }
    assert_eq!(epoch(&mut cluster), before, "a gateway's restart made everybody look for missing copies");
    drop(client);
    all_there(&mut cluster, 4);
    all_there(&mut cluster, 2);
    // Nothing of it is at the gateway.
    let stored = cluster.node(4).dog().unwrap().json(&["node", "info"]).unwrap();
    assert_eq!((count(&stored, "objects"), count(&stored, "used_bytes")), (0, 0), "{stored}");
    let files = std::fs::read_dir(cluster.node(4).dir.join("objects")).map_or(0, Iterator::count);
    assert_eq!(files, 0, "a gateway keeps files of objects");
    cluster.wait_recovered(LIMIT).unwrap();
    drop(cluster);
    check.finish().unwrap();
}
