//! One run from a seed: faults, then peace, in which everybody must come together.

use super::Net;
use super::net::{CLUSTER, ms};
use sheep_totem::{Mutants, RingState};
use std::time::Duration;

#[derive(Default, Debug)]
pub struct Seen {
    pub configurations: u64,
    pub delivered: u64,
    pub transitional: u64,
    pub crashes: u64,
    pub departures: u64,
    pub cuts: u64,
    pub pauses: u64,
    pub hangs: u64,
    pub recovered: u64,
    pub retransmits: u64,
    pub slowest: Duration,
}

/// Hung disks answer, and who left comes back.
fn recover(net: &mut Net, n: u64) {
    net.heal_disk(n);
    if net.nodes[&n].alive && net.ring(n).state() == RingState::Left {
        net.with(n, |ring, now| ring.rejoin(now));
    }
}

fn fault(net: &mut Net, seen: &mut Seen) {
    let nodes: Vec<u64> = net.nodes.keys().copied().collect();
    let any = |net: &mut Net| nodes[net.random.range(0, nodes.len() as u64) as usize];
    let (a, b) = (any(net), any(net));
    match net.random.range(0, 16) {
        0 => net.cut_both(a, b),
        1 => drop(net.cut.insert((a, b))),
        2 => {
            let at = net.random.range(1, nodes.len() as u64) as usize;
            let (left, right) = nodes.split_at(at);
            net.partition(&[left, right]);
        }
        3 => {
            let sides: Vec<Vec<u64>> = vec![
                nodes.iter().copied().filter(|n| n % 2 == 0).collect(),
                nodes.iter().copied().filter(|n| n % 2 == 1).collect(),
            ];
            net.partition(&[&sides[0], &sides[1]]);
        }
        4 | 5 => net.cut.clear(),
        6 if net.nodes[&a].alive => {
            net.crash(a);
            seen.crashes += 1;
        }
        7 if !net.nodes[&a].alive => net.start(a, CLUSTER),
        8 => {
            net.nodes.get_mut(&a).unwrap().paused = true;
            seen.pauses += 1;
        }
        9 => net.nodes.values_mut().for_each(|node| node.paused = false),
        10 if !net.nodes[&a].disk_hangs => {
            net.nodes.get_mut(&a).unwrap().disk_hangs = true;
            seen.hangs += 1;
        }
        11 if net.nodes[&a].alive && !net.nodes[&a].paused => net.with(a, |ring, now| ring.leave(now)),
        14 if net.nodes[&a].alive && !net.nodes[&a].paused => {
            net.depart(a);
            seen.departures += 1;
        }
        12 => nodes.iter().for_each(|n| recover(net, *n)),
        13 => net.loss = [0, 0, 2, 10, 30][net.random.range(0, 5) as usize],
        _ => {
            net.delay =
                [(50, 200), (100, 1000), (100, 20_000), (1000, 100_000)][net.random.range(0, 4) as usize]
        }
    }
    seen.cuts += u64::from(!net.cut.is_empty());
}

pub fn run_seed(seed: u64, mutants: Mutants, seen: &mut Seen) {
    let mut net = Net::empty(seed);
    net.config.mutants = mutants;
    net.duplicates = net.random.range(0, 5);
    net.tells_primary = net.random.chance(70);
    let count = net.random.range(2, 8);
    net.total = count as usize;
    for n in 1..=count {
        net.start(n, CLUSTER);
        if net.random.chance(30) {
            net.run(ms(200));
        }
    }
    for _ in 0..40 {
        for _ in 0..net.random.range(0, 12) {
            let n = net.random.range(1, count + 1);
            net.submit(n);
            if net.random.chance(50) {
                net.run(Duration::from_micros(200));
            }
        }
        let pause = net.random.range(1, 800);
        net.run(ms(pause));
        if net.random.chance(50) {
            fault(&mut net, seen);
        }
    }
    if net.trace {
        println!("{:?} peace", net.now);
    }
    net.cut.clear();
    net.loss = 0;
    net.delay = (100, 1000);
    for n in 1..=count {
        net.nodes.get_mut(&n).unwrap().paused = false;
        recover(&mut net, n);
        if !net.nodes[&n].alive {
            net.start(n, CLUSTER);
        }
    }
    let all: Vec<u64> = (1..=count).collect();
    // What was lost before shows now.
    net.run(net.config.token_loss);
    let limit = net.config.max_backoff + net.config.token_loss * 20;
    seen.slowest = seen.slowest.max(net.settle(&all, limit));
    let id = net.together(&all).unwrap();
    (1..=count).for_each(|n| assert!(net.submit(n)));
    net.run(ms(3000));
    assert_eq!(net.together(&all), Some(id), "does not stay together");
    net.checker.check_self_delivery();
    let counts: Vec<usize> = net.nodes.values().map(|node| net.checker.count(node.me, id)).collect();
    assert!(counts.iter().all(|n| *n == counts[0] && *n >= all.len()), "{counts:?}");
    seen.configurations += net.checker.configurations;
    seen.delivered += net.checker.delivered;
    seen.transitional += net.checker.transitional;
    for node in net.nodes.values() {
        seen.recovered += node.ring.stats().recovered;
        seen.retransmits += node.ring.stats().retransmits;
    }
}
