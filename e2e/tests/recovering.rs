//! How much moves when nodes go, come and are drained, counted in bytes; and that it is all there afterwards.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests, which may")]

use std::time::Duration;

use sheep_e2e::dog::{count, text};
use sheep_e2e::objects::{OBJECT, fill, verify};
use sheep_e2e::oracle::BLOCK;
use sheep_e2e::{Cluster, LeakCheck, NbdClient, Oracle, serial, wait_until};

const LIMIT: Duration = Duration::from_secs(60);
const RECOVERED: Duration = Duration::from_secs(240);

/// Bytes that each node has fetched from others since it started, by id. A node tells it twice a second.
fn fetched(cluster: &mut Cluster) -> Vec<(String, u64)> {
    std::thread::sleep(Duration::from_secs(1));
    let all = cluster.any_dog().unwrap().recoveries().unwrap();
    all.iter().map(|row| (text(row, "node").to_owned(), count(row, "bytes_fetched"))).collect()
}

fn id(cluster: &mut Cluster, node: u8) -> String {
    let info = cluster.node(node).dog().unwrap().json(&["node", "info"]).unwrap();
    text(&info, "id").to_owned()
}

fn fetched_by(cluster: &mut Cluster, node: u8) -> u64 {
    let id = id(cluster, node);
    fetched(cluster).into_iter().find(|(node, _)| *node == id).unwrap().1
}

#[test]
fn a_node_that_was_away_moves_kilobytes() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(3).unwrap();
    cluster.create("disk", "256M", 3).unwrap();
    let mut client = NbdClient::unix(&cluster.node(1).nbd_socket(), "disk", LIMIT).unwrap();
    fill(&mut client, 32).unwrap();
    for (run, (how, orderly)) in (1..).zip([("killed", false), ("stopped in order", true)]) {
        match orderly {
            true => cluster.node(3).process().unwrap().terminate(LIMIT).map(drop).unwrap(),
            false => cluster.node(3).kill(),
        }
        let mut oracle = Oracle::new(8, run);
        for block in 0..8 {
            let data = oracle.send(block);
            client.write(block as u64 * 4 * OBJECT + 7 * BLOCK as u64, &data, false).unwrap();
            oracle.answered(block);
        }
        client.flush().unwrap();
        cluster.node(3).start().unwrap();
        cluster.wait_recovered(RECOVERED).unwrap();
        let moved = fetched_by(&mut cluster, 3);
        println!("{how}: {moved} bytes moved of {}", 32 * OBJECT);
        // The data, and what the map's object shares a block with.
        assert!(moved >= 8 * BLOCK as u64, "{moved} bytes: what was missed cannot be there");
        assert!(moved <= 12 * BLOCK as u64, "{moved} bytes for 8 blocks");
        // It has them: nobody else is there to ask.
        for block in 0..8 {
            let mut buffer = vec![0; BLOCK];
            client.read(block as u64 * 4 * OBJECT + 7 * BLOCK as u64, &mut buffer).unwrap();
            oracle.check(block, &buffer).unwrap();
        }
    }
    drop((client, cluster));
    check.finish().unwrap();
}

#[test]
fn a_node_that_joins_or_is_drained_moves_its_share() {
    let _one = serial();
    let check = LeakCheck::start();
    let (objects, copies) = (96_u64, 2_u8);
    let mut cluster = Cluster::plan(5).unwrap();
    let late = cluster.nodes.split_off(4);
    cluster.start_all().unwrap();
    cluster.create("disk", "1G", copies).unwrap();
    let mut client = NbdClient::unix(&cluster.node(1).nbd_socket(), "disk", LIMIT).unwrap();
    fill(&mut client, objects).unwrap();
    cluster.wait_recovered(RECOVERED).unwrap();
    let before: u64 = fetched(&mut cluster).iter().map(|(_, bytes)| bytes).sum();
    cluster.nodes.extend(late);
    let seen = cluster.node(5).times_ready();
    cluster.node(5).launch(false).unwrap();
    cluster.node(5).wait_ready(seen).unwrap();
    cluster.wait_up(5).unwrap();
    cluster.wait_recovered(RECOVERED).unwrap();
    let moved = fetched(&mut cluster).iter().map(|(_, bytes)| bytes).sum::<u64>() - before;
    let all = objects * u64::from(copies) * OBJECT;
    let share = moved as f64 / all as f64;
    println!("a fifth node: {:.1}% of all copies moved; its share is 20%", share * 100.0);
    assert!((0.08..0.35).contains(&share), "{share}");
    let on_five = fetched_by(&mut cluster, 5);
    assert!(on_five * 10 >= moved * 8, "{on_five} of {moved} bytes went to the new node");
    verify(&mut client, objects).unwrap();

    let (five, dog) = (id(&mut cluster, 5), cluster.any_dog().unwrap());
    dog.run(&["node", "drain", &five]).unwrap();
    wait_until("a node that is drained", RECOVERED, Duration::from_millis(200), || {
        let nodes = dog.nodes()?;
        let leaving = nodes.iter().any(|node| text(node, "state") == "leaving");
        Ok(leaving && dog.has_recovered()?)
    })
    .unwrap();
    cluster.node(5).process().unwrap().terminate(LIMIT).unwrap();
    wait_until("its end to be seen", LIMIT, Duration::from_millis(100), || {
        let nodes = dog.nodes()?;
        Ok(nodes.iter().any(|node| text(node, "id") == five && text(node, "state") == "down"))
    })
    .unwrap();
    // Not forced: nothing is lost with it.
    dog.run(&["node", "remove", &five]).unwrap();
    cluster.wait_recovered(RECOVERED).unwrap();
    verify(&mut client, objects).unwrap();
    drop((client, cluster));
    check.finish().unwrap();
}

#[test]
fn recovery_pauses_and_goes_on_when_told() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(3).unwrap();
    cluster.create("disk", "256M", 3).unwrap();
    let mut client = NbdClient::unix(&cluster.node(1).nbd_socket(), "disk", LIMIT).unwrap();
    fill(&mut client, 16).unwrap();
    cluster.any_dog().unwrap().run(&["cluster", "recovery", "pause"]).unwrap();
    cluster.node(3).kill();
    // Both others have it, which takes them a moment to agree on.
    client.write(0, &[9; BLOCK], true).unwrap();
    cluster.node(3).start().unwrap();
    cluster.wait_up(3).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(fetched_by(&mut cluster, 3), 0, "a pause");
    let info = cluster.any_dog().unwrap().cluster_info().unwrap();
    assert_eq!(text(&info, "health"), "recovering");
    assert!(text(&info, "message").contains("paused"), "{info}");
    // Who is asked for it gets it all the same.
    client.write(BLOCK as u64, &[8; BLOCK], true).unwrap();
    let moved = || Ok(fetched_by(&mut cluster, 3) > 0);
    wait_until("what a write waited for", LIMIT, Duration::from_millis(100), moved).unwrap();
    cluster.any_dog().unwrap().run(&["cluster", "recovery", "resume"]).unwrap();
    cluster.wait_recovered(RECOVERED).unwrap();
    drop((client, cluster));
    check.finish().unwrap();
}
