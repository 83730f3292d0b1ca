//! What users, operators and strangers get wrong: a clear error each time, and a cluster that goes on.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which may")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use sheep_e2e::cluster::{NBD_PORT, Node};
use sheep_e2e::dog::text;
use sheep_e2e::oracle::Random;
use sheep_e2e::process::{Spec, run, workspace_binary};
use sheep_e2e::{Cluster, Dog, LeakCheck, NbdClient, Scratch, serial, wait_until};

const LIMIT: Duration = Duration::from_secs(60);

/// Runs a failing command and checks status and that the message names what was wrong.
fn refused(dog: &Dog, words: &[&str], code: i32, hint: &str) {
    let refusal = dog.refused(words).unwrap();
    assert_eq!(refusal.code, code, "dog {}: {}", words.join(" "), refusal.message);
    let said = refusal.message.to_lowercase();
    assert!(said.contains(hint), "dog {}: the message does not say {hint:?}: {said}", words.join(" "));
    assert!(!said.contains("panicked"), "{said}");
}

/// Starts a node that must refuse to run, and returns its status and what it says.
fn fails_to_start(node: &mut Node, new: bool) -> (Option<i32>, String) {
    node.launch(new).unwrap();
    let process = node.process().unwrap();
    let status = process.wait(LIMIT).unwrap_or_else(|error| panic!("{error}: {}", process.log_tail(10)));
    let said = process.log_text();
    assert!(!said.contains("panicked"), "{said}");
    (status.code(), said.to_lowercase())
}

fn writes_still_work(cluster: &mut Cluster, volume: &str) {
    let mut client = NbdClient::unix(&cluster.node(1).nbd_socket(), volume, LIMIT).unwrap();
    client.write(0, &[5; 4096], true).unwrap();
    let mut buffer = vec![0; 4096];
    client.read(0, &mut buffer).unwrap();
    assert_eq!(buffer, [5; 4096]);
}

#[test]
fn names_and_sizes() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(1).unwrap();
    let dog = cluster.any_dog().unwrap();
    dog.create("disk", "64M", 1).unwrap();
    refused(&dog, &["vdi", "create", "disk", "64M"], 1, "exists");
    refused(&dog, &["vdi", "create", "", "64M"], 1, "name");
    refused(&dog, &["vdi", "create", "/a", "64M"], 1, "name");
    refused(&dog, &["vdi", "create", &"x".repeat(300), "64M"], 1, "name");
    refused(&dog, &["vdi", "create", "small", "1k"], 1, "size");
    refused(&dog, &["vdi", "create", "large", "2P"], 1, "size");
    refused(&dog, &["vdi", "create", "odd", "potato"], 2, "potato");
    refused(&dog, &["vdi", "create", "odd"], 2, "size");
    refused(&dog, &["vdi", "create", "none", "64M", "--copies", "0"], 2, "copies");
    refused(&dog, &["vdi", "create", "many", "64M", "--copies", "200"], 2, "copies");
    refused(&dog, &["vdi", "delete", "missing"], 1, "missing");
    refused(&dog, &["vdi", "resize", "missing", "1G"], 1, "missing");
    refused(&dog, &["vdi", "resize", "disk", "32M"], 1, "smaller");
    refused(&dog, &["vdi", "frobnicate"], 2, "frobnicate");
    refused(&dog, &["node", "kill", "no-such-node"], 1, "no-such-node");
    let nowhere = Dog::new("127.0.0.1:1".to_owned()).unwrap();
    refused(&nowhere, &["node", "list"], 1, "127.0.0.1:1");
    // Limits that are allowed.
    dog.create("smallest", "1M", 1).unwrap();
    dog.create("largest", "1P", 1).unwrap();
    assert_eq!(dog.volumes().unwrap().len(), 3);
    let unknown = NbdClient::unix(&cluster.node(1).nbd_socket(), "missing", LIMIT);
    assert!(unknown.err().unwrap().to_string().contains("missing"));
    writes_still_work(&mut cluster, "disk");
    drop(cluster);
    check.finish().unwrap();
}

#[test]
fn too_few_nodes_is_said_and_served() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(1).unwrap();
    let dog = cluster.any_dog().unwrap();
    dog.create("disk", "64M", 3).unwrap();
    let said = dog.run(&["cluster", "info"]).unwrap().to_lowercase();
    assert!(said.contains("degraded"), "{said}");
    writes_still_work(&mut cluster, "disk");
    drop(cluster);
    check.finish().unwrap();
}

#[test]
fn a_second_writer_and_deleting_an_open_volume() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(3).unwrap();
    let dog = cluster.any_dog().unwrap();
    dog.create("disk", "64M", 3).unwrap();
    let mut first = NbdClient::unix(&cluster.node(1).nbd_socket(), "disk", LIMIT).unwrap();
    first.write(0, &[1; 4096], false).unwrap();
    let second = NbdClient::unix(&cluster.node(2).nbd_socket(), "disk", LIMIT);
    let said = second.err().expect("two nodes write the same volume").to_string();
    assert!(said.contains("locked by node"), "{said}");
    refused(&dog, &["vdi", "delete", "disk"], 1, "in use");
    first.write(4096, &[2; 4096], true).unwrap();
    drop(first);
    // The lock goes with its holder, so the other node may have it now.
    let socket = cluster.node(2).nbd_socket();
    wait_until("lock released", LIMIT, Duration::from_millis(100), || {
        Ok(NbdClient::unix(&socket, "disk", LIMIT).is_ok())
    })
    .unwrap();
    wait_until("volume deleted", LIMIT, Duration::from_millis(100), || {
        Ok(dog.run(&["vdi", "delete", "disk"]).is_ok())
    })
    .unwrap();
    assert!(NbdClient::unix(&socket, "disk", LIMIT).is_err());
    drop(cluster);
    check.finish().unwrap();
}

#[test]
fn newer_and_occupied_directories_and_a_wrong_key() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(2).unwrap();

    // The directory of a running node.
    let mut twin = Cluster::plan(1).unwrap();
    twin.node(1).dir = cluster.node(1).dir.clone();
    let log = twin.path().join("twin.log");
    let twin_args = twin.node(1).arguments(false);
    let mut process =
        Spec::new("twin", workspace_binary("sheep").unwrap()).args(twin_args).log(&log).spawn().unwrap();
    assert_ne!(process.wait(LIMIT).unwrap().code(), Some(0));
    assert!(process.log_text().to_lowercase().contains("use"), "{}", process.log_text());

    // A directory that has a cluster already.
    cluster.node(2).kill();
    let (code, said) = fails_to_start(cluster.node(2), true);
    assert_ne!(code, Some(0));
    assert!(said.contains("already"), "{said}");

    // A newer format.
    let format = cluster.node(2).dir.join("FORMAT");
    let old = std::fs::read_to_string(&format).unwrap();
    std::fs::write(&format, old.replacen(|c: char| c.is_ascii_digit(), "9", 1)).unwrap();
    let (code, said) = fails_to_start(cluster.node(2), false);
    assert_ne!(code, Some(0));
    assert!(said.contains("format"), "{said}");
    std::fs::write(&format, old).unwrap();

    // A wrong key.
    let wrong = cluster.path().join("wrong.key");
    std::fs::write(&wrong, "0".repeat(64)).unwrap();
    cluster.options(2).extra = vec!["--key".to_owned(), wrong.display().to_string()];
    let (code, said) = fails_to_start(cluster.node(2), false);
    assert_ne!(code, Some(0));
    assert!(said.contains("key"), "{said}");
    cluster.options(2).extra.clear();
    cluster.node(2).start().unwrap();
    cluster.wait_up(2).unwrap();
    drop((process, twin, cluster));
    check.finish().unwrap();
}

/// Waits until a node's log says something.
fn says(node: &mut Node, hint: &str) {
    let process = node.process().unwrap();
    let what = format!("{} says {hint:?}", process.name());
    wait_until(&what, LIMIT, Duration::from_millis(100), || Ok(process.log_text().contains(hint)))
        .unwrap_or_else(|error| panic!("{error}: {}", process.log_tail(20)));
}

#[test]
fn nodes_and_stores_of_another_cluster_stay_out() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(1).unwrap();
    let mut other = Cluster::start(1).unwrap();
    let nodes = |cluster: &mut Cluster| cluster.node(1).dog().unwrap().nodes().unwrap().len();
    let key = cluster.node(1).dir.join("key");
    other.node(1).kill();
    other.options(1).seeds = vec![format!("{}:7000", cluster.node(1).address)];

    // With this cluster's key on the command line.
    other.options(1).extra = vec!["--key".to_owned(), key.display().to_string()];
    let (code, said) = fails_to_start(other.node(1), false);
    assert_ne!(code, Some(0));
    assert!(said.contains("is not the key of the cluster"), "{said}");

    // With its own key, sent here: both sides go on alone, and this one says why.
    other.options(1).extra.clear();
    other.node(1).launch(false).unwrap();
    says(cluster.node(1), "not sealed with this cluster's key");
    other.node(1).kill();

    // With this cluster's key put into its directory.
    let own_key = std::fs::read(other.node(1).dir.join("key")).unwrap();
    std::fs::copy(&key, other.node(1).dir.join("key")).unwrap();
    other.node(1).launch(false).unwrap();
    says(cluster.node(1), "nodes of another cluster with the same key");
    other.node(1).kill();
    assert_eq!(nodes(&mut cluster), 1);

    // A disk that was moved here from there.
    std::fs::write(other.node(1).dir.join("key"), own_key).unwrap();
    other.options(1).seeds.clear();
    let (from, to) = (cluster.node(1).dir.join("objects"), other.node(1).dir.join("objects"));
    cluster.node(1).kill();
    std::fs::remove_dir_all(&to).unwrap();
    run("cp", ["-a".as_ref(), from.as_os_str(), to.as_os_str()]).unwrap();
    let (code, said) = fails_to_start(other.node(1), false);
    assert_ne!(code, Some(0));
    assert!(said.contains("the store belongs to cluster"), "{said}");
    drop((other, cluster));
    check.finish().unwrap();
}

#[test]
fn a_new_node_with_a_wrong_key_stays_out_and_both_sides_say_so() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(1).unwrap();
    let mut stray = Cluster::plan(1).unwrap();
    let wrong = stray.path().join("wrong.key");
    std::fs::write(&wrong, "0".repeat(64)).unwrap();
    stray.options(1).extra = vec!["--key".to_owned(), wrong.display().to_string()];
    stray.options(1).seeds = vec![format!("{}:7000", cluster.node(1).address)];
    stray.node(1).launch(false).unwrap();
    says(cluster.node(1), "not sealed with this cluster's key");
    says(stray.node(1), "no cluster has answered yet");
    assert_eq!(cluster.any_dog().unwrap().nodes().unwrap().len(), 1);
    drop((stray, cluster));
    check.finish().unwrap();
}

#[test]
fn wrong_command_lines_of_sheep() {
    let _one = serial();
    let scratch = Scratch::new("args").unwrap();
    let dir = scratch.path().join("n").display().to_string();
    let sheep = workspace_binary("sheep").unwrap();
    let cases: [(&[&str], &str); 5] = [
        (&[], "dir"),
        (&["--new", &dir, "--ring-port", "70000"], "ring-port"),
        (&["--new", &dir, "--node-listen", "nowhere"], "node-listen"),
        (&["--new", &dir, "--frobnicate"], "frobnicate"),
        (&["--new", "/proc/no/such/place", "--node-listen", "127.9.9.9"], "/proc/no/such/place"),
    ];
    for (args, hint) in cases {
        let output = Spec::new("sheep", &sheep).args(args).command().output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
        assert!(!output.status.success(), "{args:?}");
        assert!(said.contains(hint), "{args:?} does not say {hint:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn garbage_on_every_port() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(3).unwrap();
    cluster.create("disk", "64M", 3).unwrap();
    let mut random = Random::new(99);
    let mut noise = |length: u64| (0..length).map(|_| random.below(256) as u8).collect::<Vec<u8>>();
    let target = cluster.node(1).address;
    let udp = UdpSocket::bind((target, 0)).unwrap();
    for length in [0, 1, 16, 40, 64, 256, 1400, 9000, 60_000] {
        for _ in 0..40 {
            udp.send_to(&noise(length), (target, 7000)).unwrap();
        }
    }
    for port in [7000, 7002, 7003, NBD_PORT] {
        for length in [0, 1, 64, 4096, 1 << 20] {
            let address = SocketAddr::from((target, port));
            let mut stream = TcpStream::connect_timeout(&address, LIMIT).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
            // The server may hang up in the middle, which is right.
            let _ = stream.write_all(&noise(length));
            let _ = stream.read(&mut [0; 512]);
        }
    }
    // Connections that say nothing at all must not use up what others need.
    let idle: Vec<TcpStream> =
        (0..200).filter_map(|_| TcpStream::connect_timeout(&(target, NBD_PORT).into(), LIMIT).ok()).collect();
    writes_still_work(&mut cluster, "disk");
    drop(idle);
    cluster.wait_up(3).unwrap();
    for node in &mut cluster.nodes {
        assert!(node.is_running(), "node {} died of garbage", node.index);
        assert!(!node.process().unwrap().log_text().contains("panicked"));
        assert!(node.process().unwrap().resident_bytes() < 1 << 30, "node {} has grown", node.index);
    }
    drop(cluster);
    check.finish().unwrap();
}

#[test]
fn a_full_disk_fails_writes_and_not_the_cluster() {
    let _one = serial();
    let check = LeakCheck::start();
    // A small file system, in a mount namespace that only the node lives in.
    let mut cluster = Cluster::plan(1).unwrap();
    let dir = cluster.node(1).dir.clone();
    std::fs::create_dir_all(&dir).unwrap();
    let sheep = workspace_binary("sheep").unwrap();
    let script = "mount -t tmpfs -o size=192M tmpfs \"$1\" && shift && exec \"$@\"";
    let log = cluster.node(1).log_path();
    let mut process = Spec::new("sheep", "unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
        .arg(&dir)
        .arg(&sheep)
        .args(cluster.node(1).arguments(true))
        .log(&log)
        .spawn()
        .unwrap();
    wait_until("ready", LIMIT, Duration::from_millis(50), || {
        Ok(process.is_running() && process.log_text().contains("sheep ready"))
    })
    .unwrap();
    // The control socket is inside the node's mount namespace; its gRPC port is not.
    let dog = Dog::new(format!("{}:7002", cluster.node(1).address)).unwrap();
    wait_until("up", LIMIT, Duration::from_millis(50), || {
        Ok(dog.nodes().unwrap_or_default().iter().any(|node| text(node, "state") == "up"))
    })
    .unwrap();
    dog.create("disk", "1G", 1).unwrap();
    let socket = cluster.node(1).nbd_socket();
    let mut client = NbdClient::unix(&socket, "disk", Duration::from_secs(60)).unwrap();
    let data = vec![3; 1 << 20];
    let failed_at = (0..400).find(|at| client.write(at << 20, &data, true).is_err());
    let failed_at = failed_at.expect("400 MiB fit into 192 MiB");
    assert!(failed_at > 16, "full after {failed_at} MiB");
    assert!(process.is_running(), "{}", process.log_tail(20));
    // What fitted is there, also for others.
    drop(client);
    let mut client = NbdClient::unix(&socket, "disk", LIMIT).unwrap();
    let mut buffer = vec![0; 1 << 20];
    for at in 0..failed_at {
        client.read(at << 20, &mut buffer).unwrap();
        assert_eq!(buffer, data, "MiB {at}");
    }
    // There is a way out: deleting makes room.
    drop(client);
    let mut last = None;
    wait_until("deleted", LIMIT, Duration::from_millis(200), || {
        last = dog.run(&["vdi", "delete", "disk"]).err();
        Ok(last.is_none())
    })
    .unwrap_or_else(|error| panic!("{error}: {last:?}: {}", process.log_tail(20)));
    dog.create("again", "64M", 1).unwrap();
    wait_until("room again", Duration::from_secs(60), Duration::from_millis(500), || {
        Ok(NbdClient::unix(&socket, "again", LIMIT).is_ok_and(|mut c| c.write(0, &data, true).is_ok()))
    })
    .unwrap();
    drop((process, cluster));
    check.finish().unwrap();
}

#[test]
fn metrics_and_health_are_served() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(1).unwrap();
    let url = |path: &str, cluster: &mut Cluster| format!("http://{}:7003{path}", cluster.node(1).address);
    let fetch =
        "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())";
    let metrics = run("python3", ["-c", fetch, &url("/metrics", &mut cluster)]).unwrap();
    assert!(metrics.lines().any(|line| line.starts_with("sheepdog_")), "{metrics}");
    run("python3", ["-c", fetch, &url("/livez", &mut cluster)]).unwrap();
    run("python3", ["-c", fetch, &url("/readyz", &mut cluster)]).unwrap();
    assert!(run("python3", ["-c", fetch, &url("/nothing", &mut cluster)]).is_err());
    drop(cluster);
    check.finish().unwrap();
}
