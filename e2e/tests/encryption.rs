//! Nodes with certificates: the control API speaks TLS only, and data between nodes is encrypted.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which may")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, SystemTime};

use sheep_e2e::certificates;
use sheep_e2e::dog::Dog;
use sheep_e2e::{Cluster, LeakCheck, NbdClient, Scratch, serial, wait_until};
use sheep_tls::authority::Authority;
use sheep_tls::{Pem, Role};

const LIMIT: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);
const SOON: Duration = Duration::from_millis(200);

/// A command with these options.
fn with<'a>(options: &'a [String], words: &[&'a str]) -> Vec<&'a str> {
    options.iter().map(String::as_str).chain(words.iter().copied()).collect()
}

fn metric(cluster: &mut Cluster, index: u8, name: &str) -> u64 {
    let mut stream = TcpStream::connect((cluster.node(index).address, 7003)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).unwrap();
    line.parse().unwrap()
}

fn log(cluster: &mut Cluster, index: u8) -> String {
    cluster.node(index).process().unwrap().log_text()
}

/// Three nodes that encrypt, and a fourth that is not started.
fn encrypted(authority: &Authority) -> Cluster {
    let mut cluster = Cluster::plan(4).unwrap();
    let directory = cluster.path().to_path_buf();
    for index in 1..=3 {
        let name = format!("node{index}");
        certificates::write(&directory, &name, &authority.issue(Role::Node, DAY).unwrap()).unwrap();
        cluster.options(index).extra = certificates::options(&directory, &name);
        cluster.options(index).extra.push("--encrypt-data".into());
        cluster.node(index).launch(index == 1).unwrap();
        cluster.node(index).wait_ready(0).unwrap();
    }
    cluster.wait_up(3).unwrap();
    cluster
}

fn filled(fill: u8) -> Vec<u8> {
    vec![fill; 1 << 20]
}

fn write_through(cluster: &mut Cluster, node: u8, offset: u64, fill: u8) {
    let mut client = NbdClient::unix(&cluster.node(node).nbd_socket(), "disk", LIMIT).unwrap();
    client.write(offset, &filled(fill), true).unwrap();
    drop(client);
    cluster.wait_closed("disk").unwrap();
}

fn read_through(cluster: &mut Cluster, node: u8, offset: u64, fill: u8) {
    let mut client = NbdClient::unix(&cluster.node(node).nbd_socket(), "disk", LIMIT).unwrap();
    let mut buffer = vec![0; 1 << 20];
    client.read(offset, &mut buffer).unwrap();
    assert!(buffer == filled(fill), "at {offset} through node {node}");
    drop(client);
    cluster.wait_closed("disk").unwrap();
}

#[test]
fn data_is_encrypted_between_nodes_and_outlives_one_of_them() {
    let _one = serial();
    let check = LeakCheck::start();
    let authority = Authority::make("e2e", DAY).unwrap();
    let mut cluster = encrypted(&authority);
    cluster.create("disk", "64M", 3).unwrap();
    write_through(&mut cluster, 1, 0, 1);
    read_through(&mut cluster, 2, 0, 1);
    wait_until("node 1 counts encrypted connections", LIMIT, SOON, || {
        Ok(metric(&mut cluster, 1, "sheepdog_data_connections_encrypted") >= 2)
    })
    .unwrap();
    assert_eq!(metric(&mut cluster, 1, "sheepdog_data_connections_refused_total"), 0);

    cluster.node(3).kill();
    write_through(&mut cluster, 2, 1 << 20, 2);
    read_through(&mut cluster, 1, 1 << 20, 2);
    // It comes back with another certificate of the same CA.
    let directory = cluster.path().to_path_buf();
    certificates::write(&directory, "node3", &authority.issue(Role::Node, DAY).unwrap()).unwrap();
    cluster.node(3).start().unwrap();
    cluster.wait_recovered(LIMIT).unwrap();
    read_through(&mut cluster, 3, 1 << 20, 2);

    // A node that cannot encrypt is refused, and both sides say why.
    cluster.node(4).launch(false).unwrap();
    cluster.node(4).wait_ready(0).unwrap();
    wait_until("both say why", LIMIT, SOON, || {
        let others = (1..=3).map(|index| log(&mut cluster, index)).collect::<String>();
        Ok(others.contains("has no certificate, and data between nodes are to be encrypted")
            && log(&mut cluster, 4).contains("wants data to be encrypted, and this node has no certificate"))
    })
    .unwrap();
    read_through(&mut cluster, 2, 0, 1);
    drop(cluster);
    check.finish().unwrap();
}

#[test]
fn the_control_api_wants_to_see_a_certificate_and_says_so() {
    let _one = serial();
    let check = LeakCheck::start();
    let (authority, other) = (Authority::make("e2e", DAY).unwrap(), Authority::make("e2e", DAY).unwrap());
    let mut cluster = encrypted(&authority);
    let directory = cluster.path().to_path_buf();
    certificates::write(&directory, "client", &authority.issue(Role::Client, DAY).unwrap()).unwrap();
    certificates::write(&directory, "foreign", &other.issue(Role::Client, DAY).unwrap()).unwrap();
    let now = SystemTime::now();
    certificates::write(
        &directory,
        "past",
        &authority.issue_for(Role::Node, now - 2 * DAY..now - DAY).unwrap(),
    )
    .unwrap();
    let client = certificates::options(&directory, "client");

    let dog = Dog::new(format!("{}:7002", cluster.node(1).address)).unwrap();
    let info = ["cluster", "info"];
    let refused = dog.refused(&info).unwrap();
    assert!(refused.message.contains("speaks TLS only"), "{}", refused.message);
    assert!(refused.message.contains("--tls-ca, --tls-certificate and --tls-key"), "{}", refused.message);
    for (name, words) in [("foreign", "of another CA"), ("past", "has expired")] {
        let refused = dog.refused(&with(&certificates::options(&directory, name), &info)).unwrap();
        assert!(refused.message.contains(words), "{name}: {}", refused.message);
    }
    dog.run(&with(&client, &info)).unwrap();
    let all = dog.run(&with(&client, &["node", "recovery"])).unwrap();
    assert_eq!(all.lines().count(), 4, "it is shown to other nodes too: {all}");
    cluster.node(2).dog().unwrap().run(&info).unwrap();

    // A certificate is renewed while the node runs.
    std::fs::write(directory.join("node1.crt"), "half").unwrap();
    let said = |cluster: &mut Cluster, words: &str| {
        wait_until(words, LIMIT, Duration::from_secs(1), || {
            dog.run(&with(&client, &info))?;
            Ok(log(cluster, 1).contains(words))
        })
        .unwrap();
    };
    said(&mut cluster, "the new certificate is not used, the former one stays");
    certificates::write(&directory, "node1", &authority.issue(Role::Node, DAY).unwrap()).unwrap();
    said(&mut cluster, "new connections use the new certificate");

    // One that has expired is not begun with.
    cluster.options(4).extra = certificates::options(&directory, "past");
    cluster.node(4).launch(false).unwrap();
    let process = cluster.node(4).process().unwrap();
    assert_ne!(process.wait(LIMIT).unwrap().code(), Some(0));
    let text = process.log_text();
    assert!(text.contains("the certificate cannot be used: it has expired"), "{text}");
    drop(cluster);
    check.finish().unwrap();
}

/// What is read in docs/operations.md makes what nodes and clients need.
#[test]
fn the_commands_in_the_documents_make_certificates() {
    let text = include_str!("../../docs/operations.md");
    let section = text.split_once("\n## Certificates\n").unwrap().1;
    let commands = section.split("```\n").nth(1).unwrap();
    assert!(commands.starts_with("openssl req"), "{commands}");
    let scratch = Scratch::new("openssl").unwrap();
    let made = Command::new("bash").args(["-ec", commands]).current_dir(scratch.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let read = |name: &str| std::fs::read(scratch.path().join(name)).unwrap();
    for (role, name) in [(Role::Node, "node"), (Role::Client, "client")] {
        let (certificate, key) = (read(&format!("{name}.crt")), read(&format!("{name}.key")));
        let pem = Pem { ca: read("ca.crt"), certificate, key };
        pem.check(role, SystemTime::now()).unwrap();
        assert!(pem.check(role, SystemTime::now() + 366 * DAY).is_err());
    }
    let authority = Authority::read(&read("ca.crt"), &read("ca.key")).unwrap();
    assert!(authority.ends() > SystemTime::now() + 3_600 * DAY);
}
