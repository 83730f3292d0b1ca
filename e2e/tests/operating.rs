//! What operators and clients see of a cluster in daily use: stops in order, hand-overs, waits, answers.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which may")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use sheep_e2e::cluster::NBD_PORT;
use sheep_e2e::dog::{count, text};
use sheep_e2e::oracle::BLOCK;
use sheep_e2e::process::{Spec, workspace_binary};
use sheep_e2e::{Cluster, Filesystem, LeakCheck, NbdClient, Scratch, Signal, serial, wait_until};

const LIMIT: Duration = Duration::from_secs(60);

/// The longest write within `time`.
fn longest_write(client: &mut NbdClient, time: Duration) -> Duration {
    let (begin, mut longest) = (Instant::now(), Duration::ZERO);
    while begin.elapsed() < time {
        let start = Instant::now();
        client.write(0, &[7; BLOCK], false).unwrap();
        longest = longest.max(start.elapsed());
    }
    longest
}

#[test]
fn a_stop_in_order_holds_writers_up_for_less_than_a_second() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(3).unwrap();
    cluster.create("disk", "64M", 3).unwrap();
    let mut client = NbdClient::unix(&cluster.node(1).nbd_socket(), "disk", LIMIT).unwrap();
    let mut pauses = Vec::new();
    for victim in [2, 3, 2, 3] {
        longest_write(&mut client, Duration::from_millis(500));
        cluster.node(victim).signal(Signal::Term).unwrap();
        pauses.push(longest_write(&mut client, Duration::from_secs(4)));
        let status = cluster.node(victim).process().unwrap().wait(LIMIT).unwrap();
        assert!(status.success(), "node {victim}: {status}");
        cluster.node(victim).start().unwrap();
        cluster.wait_recovered(LIMIT).unwrap();
    }
    println!("longest write while another node stops: {pauses:?}");
    // A crash costs more than two seconds each time. The machine may stall once, or a notice be lost.
    pauses.sort();
    assert!(pauses[1] < Duration::from_secs(1), "{pauses:?}");
    drop((client, cluster));
    check.finish().unwrap();
}

#[test]
fn a_shutdown_of_all_closes_volumes_before_anybody_leaves() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(3).unwrap();
    for round in 1..=3_u8 {
        let mut clients = Vec::new();
        for node in 1..=3 {
            let volume = format!("disk{node}");
            if round == 1 {
                cluster.create(&volume, "64M", 3).unwrap();
            }
            let socket = cluster.node(node).nbd_socket();
            let mut client = NbdClient::unix(&socket, &volume, LIMIT).unwrap();
            let mut buffer = vec![0; BLOCK];
            client.read(0, &mut buffer).unwrap();
            assert_eq!(buffer, vec![round - 1; BLOCK], "an answered write is gone after a shutdown in order");
            client.write(0, &vec![round; BLOCK], false).unwrap();
            clients.push(client);
        }
        cluster.node(round).dog().unwrap().run(&["cluster", "shutdown"]).unwrap();
        for node in 1..=3 {
            let status = cluster.node(node).process().unwrap().wait(LIMIT).unwrap();
            assert!(status.success(), "node {node}: {status}");
            let log = cluster.node(node).process().unwrap().log_text();
            assert!(!log.contains("could not be closed in order"), "node {node}:\n{log}");
        }
        drop(clients);
        let seen: Vec<usize> = cluster.nodes.iter().map(|node| node.times_ready()).collect();
        cluster.nodes.iter_mut().for_each(|node| node.launch(false).unwrap());
        cluster.nodes.iter_mut().zip(seen).for_each(|(node, seen)| assert!(node.wait_ready(seen).is_ok()));
        cluster.wait_up(3).unwrap();
    }
    drop(cluster);
    check.finish().unwrap();
}

#[test]
fn whoever_comes_next_gets_the_volume_although_it_is_still_being_given_back() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(3).unwrap();
    cluster.create("disk", "64M", 3).unwrap();
    for round in 0..30_u8 {
        let socket = cluster.node(round % 3 + 1).nbd_socket();
        let mut client = NbdClient::unix(&socket, "disk", LIMIT)
            .unwrap_or_else(|problem| panic!("round {round}: {problem:#}"));
        let mut buffer = vec![0; BLOCK];
        client.read(0, &mut buffer).unwrap();
        assert_eq!(buffer, vec![round; BLOCK], "what the one before has written");
        client.write(0, &vec![round + 1; BLOCK], false).unwrap();
    }
    // Who stays is not taken over.
    let _stays = NbdClient::unix(&cluster.node(1).nbd_socket(), "disk", LIMIT).unwrap();
    let refused = NbdClient::unix(&cluster.node(2).nbd_socket(), "disk", LIMIT).err().unwrap();
    assert!(refused.to_string().contains("locked by node"), "{refused:#}");
    drop((_stays, cluster));
    check.finish().unwrap();
}

#[test]
fn who_is_told_that_a_node_is_ready_is_served() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(2).unwrap();
    cluster.create("disk", "64M", 2).unwrap();
    let tcp = SocketAddr::new(cluster.node(2).address.into(), NBD_PORT);
    for new in [false, true, false] {
        cluster.node(2).process().unwrap().terminate(LIMIT).unwrap();
        if new {
            // A new node knows nothing of the cluster when it says that it is ready.
            std::fs::remove_dir_all(&cluster.node(2).dir).unwrap();
        }
        let seen = cluster.node(2).times_ready();
        cluster.node(2).launch(false).unwrap();
        cluster.node(2).wait_ready(seen).unwrap();
        drop(NbdClient::unix(&cluster.node(2).nbd_socket(), "disk", LIMIT).unwrap());
        drop(NbdClient::tcp(tcp, "disk", LIMIT).unwrap());
    }
    // A name that does not exist is refused all the same.
    let refused = NbdClient::tcp(tcp, "other", LIMIT).err().unwrap();
    assert!(!refused.to_string().is_empty());
    drop(cluster);
    check.finish().unwrap();
}

#[test]
fn an_answer_shows_what_was_ordered() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(1).unwrap();
    let dog = cluster.any_dog().unwrap();
    for delay in (10_000..40_000).step_by(1_000) {
        let words = ["cluster", "settings", "--out-delay-ms", &delay.to_string()];
        let settings = dog.json(&words).unwrap();
        assert_eq!(count(&settings, "out_delay_ms"), delay, "{settings}");
        dog.create(&format!("disk{delay}"), "1M", 1).unwrap();
        let volumes = dog.volumes().unwrap();
        assert!(volumes.iter().any(|vdi| text(vdi, "name") == format!("disk{delay}")));
    }
    drop(cluster);
    check.finish().unwrap();
}

#[test]
fn a_volume_that_waits_for_a_node_says_so() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(3).unwrap();
    cluster.create("disk", "64M", 3).unwrap();
    let missing = text(&cluster.node(3).dog().unwrap().json(&["node", "info"]).unwrap(), "id").to_owned();
    let mut client = NbdClient::unix(&cluster.node(1).nbd_socket(), "disk", LIMIT).unwrap();
    client.write(0, &[1; BLOCK], true).unwrap();
    cluster.kill_all();
    drop(client);
    for node in [1, 2] {
        let seen = cluster.node(node).times_ready();
        cluster.node(node).launch(false).unwrap();
        cluster.node(node).wait_ready(seen).unwrap();
    }
    let socket = cluster.node(1).nbd_socket();
    let waiting = std::thread::spawn(move || {
        let mut client = NbdClient::unix(&socket, "disk", Duration::from_secs(180))?;
        let mut buffer = vec![0; BLOCK];
        client.read(0, &mut buffer).map(|()| buffer)
    });
    let line = |text: &str| {
        let waits = |line: &&str| line.contains("WARN") && line.contains("VDI disk is not served yet");
        text.lines().filter(waits).any(|line| line.contains(&missing) && line.contains("out_delay_ms"))
    };
    wait_until("a word about the wait", LIMIT, Duration::from_millis(100), || {
        Ok(line(&cluster.node(1).process()?.log_text()))
    })
    .unwrap();
    let info = cluster.node(1).dog().unwrap().cluster_info().unwrap();
    assert!(text(&info, "message").contains("VDI disk is not served yet"), "{info}");
    let found = cluster.node(2).dog().unwrap().run(&["cluster", "check"]).unwrap_err().to_string();
    assert!(found.contains("VDI disk is not served yet"), "{found}");
    assert!(!waiting.is_finished(), "served without the node that may know of more");
    // It comes back, and the volume is served.
    cluster.node(3).start().unwrap();
    assert_eq!(waiting.join().unwrap().unwrap(), [1; BLOCK]);
    let info = cluster.node(1).dog().unwrap().cluster_info().unwrap();
    assert!(!text(&info, "message").contains("VDI disk is not served yet"), "{info}");
    drop(cluster);
    check.finish().unwrap();
}

/// `dog` as somebody types it, who says nothing about which node to ask.
fn dog_without_server(rendezvous: &Path) -> std::process::Output {
    let dog = Spec::new("dog", workspace_binary("dog").unwrap()).args(["node", "list"]);
    dog.env("SHEEP_RENDEZVOUS", rendezvous).command().env_remove("DOG_SERVER").output().unwrap()
}

#[test]
fn dog_passes_over_nodes_that_are_dead() {
    let _one = serial();
    let check = LeakCheck::start();
    let scratch = Scratch::new("dog").unwrap();
    let write = |name: &str, address: &str| {
        std::fs::write(scratch.path().join(name), format!("127.0.0.1:1\n{address}\n")).unwrap();
    };
    // One that nobody listens at, and one where somebody takes calls and never answers: its port is another's now.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    write("0000000000000001", "127.0.0.1:1");
    write("0000000000000002", &silent.local_addr().unwrap().to_string());
    std::fs::write(scratch.path().join("0000000000000003"), "half a li").unwrap();
    let output = dog_without_server(scratch.path());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        assert!(said.contains("no node of this machine answers"), "{said}");
        assert!(said.contains("127.0.0.1:1: ") && said.contains("no answer within"), "{said}");
    }
    let mut cluster = Cluster::start(1).unwrap();
    let grpc = format!("{}:7002", cluster.node(1).address);
    write("0000000000000009", &grpc);
    let output = dog_without_server(scratch.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    drop((cluster, scratch, silent));
    check.finish().unwrap();
}

/// Names of the metrics that a node gives.
fn metrics(address: SocketAddr) -> BTreeSet<String> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: sheep\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let names = answer.lines().filter(|line| line.starts_with("sheepdog_"));
    names.map(|line| line.split(['{', ' ']).next().unwrap().to_owned()).collect()
}

#[test]
fn the_page_of_metrics_has_every_metric_and_no_other() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(1).unwrap();
    let address = SocketAddr::new(cluster.node(1).address.into(), 7003);
    let mut given = BTreeSet::new();
    wait_until("metrics of the store", LIMIT, Duration::from_millis(100), || {
        given = metrics(address);
        Ok(given.contains("sheepdog_replica_requests_waiting"))
    })
    .unwrap();
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/metrics.md");
    let page = std::fs::read_to_string(page).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| `sheepdog_"));
    let names = rows.flat_map(|row| row.split('|').nth(1).unwrap().split(", "));
    let names = names.map(|name| name.trim().trim_matches('`').split('{').next().unwrap().to_owned());
    let told: BTreeSet<String> = names.collect();
    let missing: Vec<_> = given.difference(&told).collect();
    let gone: Vec<_> = told.difference(&given).collect();
    assert!(missing.is_empty() && gone.is_empty(), "not on the page: {missing:?}; only there: {gone:?}");
    drop(cluster);
    check.finish().unwrap();
}

/// What fills the filesystem is not ours, so the store has no say: the log, and with it the node, must go on all the same.
#[test]
fn a_node_goes_on_and_starts_on_a_full_filesystem() {
    const MIB: usize = 1 << 20;
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::plan(3).unwrap();
    let disk = Filesystem::new(&cluster.node(3).dir, 512).unwrap();
    cluster.start_all().unwrap();
    cluster.create("disk", "1G", 3).unwrap();
    let socket = cluster.node(1).nbd_socket();
    let mut client = NbdClient::unix(&socket, "disk", LIMIT).unwrap();
    let data = vec![5; MIB];
    (0..16).for_each(|at| client.write(at << 20, &data, true).unwrap());
    disk.fill().unwrap();

    let dog = cluster.any_dog().unwrap();
    let orders = |count: usize| {
        for number in 0..count {
            dog.create(&format!("v{number}"), "64M", 3).unwrap();
            dog.run(&["vdi", "delete", &format!("v{number}")]).unwrap();
        }
    };
    orders(40);
    let log = cluster.node(3).log_path();
    assert!(cluster.node(3).is_running(), "{}", std::fs::read_to_string(&log).unwrap_or_default());
    let full = (16..600).find(|at| client.write(at << 20, &data, true).is_err());
    assert!(full.is_some(), "600 MiB fit into 512 MiB");

    cluster.node(3).kill();
    cluster.node(3).start().unwrap();
    cluster.wait_up(3).unwrap();
    orders(10);
    let mut buffer = vec![0; MIB];
    for at in 0..16 {
        client.read(at << 20, &mut buffer).unwrap();
        assert_eq!(buffer, data, "MiB {at}");
    }
    disk.free().unwrap();
    wait_until("writes again", LIMIT, Duration::from_millis(200), || {
        Ok(client.write(20 << 20, &data, true).is_ok())
    })
    .unwrap();
    assert!(cluster.node(3).is_running());
    cluster.wait_sound(LIMIT).unwrap();
    drop(client);
    // The mount before the directory that it is in.
    drop((disk, cluster));
    check.finish().unwrap();
}
