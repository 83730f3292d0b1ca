//! What cannot work, as sentences for the person who wrote it.

use super::{Config, LEASE_PER_TOKEN_LOSS, Source};
use sheep_state::{Refusal, limits};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

/// Longest path of a Unix socket (the kernel's `sun_path` with its final zero), bytes.
const MAX_SOCKET_PATH: usize = 107;
/// Least that a store can work in, bytes.
pub(crate) const MIN_CAPACITY: u64 = 64 << 20;

/// Everything that is wrong.
pub(super) fn problems(config: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    directories(config, &mut problems);
    names(config, &mut problems);
    addresses(config, &mut problems);
    timers(config, &mut problems);
    roles(config, &mut problems);
    secrecy(config, &mut problems);
    if let Err(refusal) = config.first.settings.validate() {
        problems.push(match refusal {
            // The lease is not set here, but follows from the token loss, which has its own check.
            Refusal::BadSetting { setting, .. } if setting == "lease_ms" => String::new(),
            other => other.to_string(),
        });
    }
    problems.retain(|problem| !problem.is_empty());
    problems
}

fn directories(config: &Config, problems: &mut Vec<String>) {
    if config.dir.as_os_str().is_empty() {
        problems.push(
            "no directory is given: run `sheep --new DIR` for a new cluster, or `sheep DIR` to join".into(),
        );
    }
    let control = config.dir.join("control.sock");
    let sockets = [Some(control.as_path()), config.nbd_unix.as_deref()];
    for path in sockets.into_iter().flatten() {
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            problems.push(format!(
                "the path of socket {} is longer than {MAX_SOCKET_PATH} bytes, which the system cannot take; choose a \
                 shorter directory",
                path.display()
            ));
        }
    }
    for disk in config.disks.iter().filter(|disk| !disk.is_absolute()) {
        problems.push(format!("disk {} must be given as a whole path, from / on", disk.display()));
    }
    let empty = |path: Option<&Path>| path.is_some_and(|path| path.as_os_str().is_empty());
    for (key, path) in
        [("nbd_unix", config.nbd_unix.as_deref()), ("rendezvous", config.rendezvous.as_deref())]
    {
        if empty(path) {
            problems.push(format!("{key} is empty; write \"none\" to switch it off"));
        }
    }
}

fn names(config: &Config, problems: &mut Vec<String>) {
    for (key, name, may_be_empty) in [("name", &config.name, false), ("zone", &config.zone, true)] {
        let printable = name.len() <= limits::MAX_NAME && !name.chars().any(char::is_control);
        if !printable || (name.is_empty() && !may_be_empty) {
            problems.push(format!("{key} {name:?} must be 1 to {} printable bytes", limits::MAX_NAME));
        }
    }
}

fn addresses(config: &Config, problems: &mut Vec<String>) {
    let ip = config.node_listen;
    if ip.is_unspecified() || ip.is_multicast() {
        problems.push(format!(
            "node_listen {ip} is not an address that other nodes can reach; give the address of one interface"
        ));
    }
    // The ring is UDP and disturbs nobody.
    let tcp: Vec<(&str, SocketAddr)> = [
        ("data_port", Some(config.data_address())),
        ("grpc", Some(config.grpc)),
        ("http", Some(config.http)),
        ("nbd_tcp", config.nbd_tcp),
    ]
    .into_iter()
    .filter_map(|(key, address)| address.map(|address| (key, address)))
    .collect();
    for (place, (key, address)) in tcp.iter().enumerate() {
        for (other, taken) in tcp.iter().take(place) {
            if clash(*address, *taken) {
                problems.push(format!("{key} and {other} both want {address}; give each a port of its own"));
            }
        }
    }
}

fn clash(one: SocketAddr, other: SocketAddr) -> bool {
    let everywhere = |ip: IpAddr| ip.is_unspecified();
    one.port() == other.port()
        && one.port() != 0
        && (one.ip() == other.ip() || everywhere(one.ip()) || everywhere(other.ip()))
}

fn secrecy(config: &Config, problems: &mut Vec<String>) {
    match config.certificates() {
        Err(problem) => problems.push(problem.to_string()),
        Ok(None) if config.encrypt_data => problems.push(
            "encrypt_data needs certificates: give tls_ca, tls_certificate and tls_key, on all nodes".into(),
        ),
        Ok(_) => {}
    }
}

fn timers(config: &Config, problems: &mut Vec<String>) {
    let token_loss = config.token_loss;
    if !(Duration::from_millis(20)..=Duration::from_secs(60)).contains(&token_loss) {
        problems.push(format!(
            "token_loss_ms of {} must be from 20 to 60000; the ring's other timers and the lease of new clusters ({} \
             times as long) follow from it",
            token_loss.as_millis(),
            LEASE_PER_TOKEN_LOSS
        ));
    }
}

fn roles(config: &Config, problems: &mut Vec<String>) {
    let asked = |key: &str| config.source(key) >= Source::Environment;
    if config.gateway && config.new {
        problems.push("a gateway stores nothing, so it cannot be the first node of a cluster: leave --gateway or --new away".into());
    }
    if config.gateway {
        for key in ["weight", "capacity", "zone"] {
            if asked(key) {
                problems.push(format!("{key} has no meaning for a gateway, which stores nothing"));
            }
        }
    }
    if !config.new {
        for key in ["copies", "min_copies", "object_size"] {
            if asked(key) {
                problems.push(format!(
                    "{key} is only for a new cluster (--new); a running cluster is changed by `dog cluster settings`"
                ));
            }
        }
    }
    if config.weight.is_some_and(|weight| !(1..=limits::MAX_WEIGHT).contains(&weight)) {
        problems.push(format!("weight must be 1 to {}", limits::MAX_WEIGHT));
    }
    if config.capacity.is_some_and(|capacity| capacity < MIN_CAPACITY) {
        problems.push("capacity must be at least 64 MiB".into());
    }
    if !(1..=256).contains(&config.shards) {
        problems.push("shards must be 1 to 256".into());
    }
}
