//! One path breaks, one way or both: how soon most of the voters are in one ring, and that they stay in it.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use sheep_totem::{Configuration, RingState};
use std::collections::BTreeMap;
use std::time::Duration;
use support::Net;
use support::net::ms;

/// How often the rings are looked at.
const STEP: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug)]
struct Setting {
    nodes: u64,
    /// A node that never votes.
    gateway: Option<u64>,
    /// How long a number takes to become durable, microseconds.
    disk: (u64, u64),
    /// Chance in percent, at each step and node, to stand still, and for how many milliseconds at most.
    stalls: (u64, u64),
    /// Percent of packets lost.
    loss: u64,
}

impl Setting {
    fn new(nodes: u64, gateway: Option<u64>, disk: (u64, u64)) -> Self {
        Self { nodes, gateway, disk, stalls: (0, 2), loss: 0 }
    }

    fn votes(&self, n: u64) -> bool {
        Some(n) != self.gateway
    }

    /// All single paths, one way and both ways.
    fn cuts(&self) -> Vec<Vec<(u64, u64)>> {
        let pairs = (1..=self.nodes).flat_map(|a| (1..=self.nodes).map(move |b| (a, b)));
        let pairs: Vec<(u64, u64)> = pairs.filter(|(a, b)| a != b).collect();
        let both = pairs.iter().filter(|(a, b)| a < b).map(|(a, b)| vec![(*a, *b), (*b, *a)]);
        pairs.iter().map(|cut| vec![*cut]).chain(both).collect()
    }
}

/// What happened while a path was broken.
#[derive(Clone, Copy, Debug, Default)]
struct Outage {
    /// Until most of the voters were in the ring in which they stayed; zero if the old ring never broke.
    settled: Duration,
    /// Without a ring of most voters, all in all.
    without: Duration,
    /// Longest time in which the node that never votes was in no such ring.
    outside: Duration,
    installed: u64,
}

/// The working ring with most of the voters.
fn majority(net: &Net, setting: Setting) -> Option<Configuration> {
    let voters = (1..=setting.nodes).filter(|n| setting.votes(*n)).count();
    let there = |c: &Configuration| c.members.iter().filter(|m| setting.votes(m.node.0)).count();
    let working = net.nodes.values().filter(|n| n.ring.state() == RingState::Operational);
    let most = working.filter_map(|n| n.ring.configuration()).find(|c| there(c) * 2 > voters)?;
    let names: Vec<u64> = most.members.iter().map(|m| m.node.0).collect();
    net.together(&names).map(|_| most.clone())
}

fn stall(net: &mut Net, setting: Setting, until: &mut BTreeMap<u64, sheep_types::Time>) {
    for n in 1..=setting.nodes {
        if until.get(&n).is_some_and(|at| *at <= net.now) {
            until.remove(&n);
            net.nodes.get_mut(&n).unwrap().paused = false;
        } else if !until.contains_key(&n) && net.random.chance(setting.stalls.0) {
            let long = net.random.range(1, setting.stalls.1);
            until.insert(n, net.now + ms(long));
            net.nodes.get_mut(&n).unwrap().paused = true;
        }
    }
}

fn outage(seed: u64, setting: Setting, cuts: &[(u64, u64)], time: Duration) -> Outage {
    let mut net = Net::new(seed, setting.nodes);
    net.tells_primary = true;
    net.voters = Some((1..=setting.nodes).filter(|n| setting.votes(*n)).collect());
    net.disk = setting.disk;
    if let Some(gateway) = setting.gateway {
        net.ring(gateway).set_weight(0);
    }
    let all: Vec<u64> = (1..=setting.nodes).collect();
    net.settle(&all, ms(60_000));
    let offset = net.random.range(10_000, 12_000);
    net.run(ms(offset));
    let sum = |net: &Net, count: fn(&sheep_totem::Stats) -> u64| -> u64 {
        net.nodes.values().map(|n| count(&n.ring.stats())).sum()
    };
    let (gathers, installed) = (sum(&net, |s| s.gathers), sum(&net, |s| s.configurations));
    net.cut.extend(cuts.iter().copied());
    net.loss = setting.loss;
    let (start, old) = (net.now, majority(&net, setting));
    let (mut out, mut last, mut inside) = (Outage::default(), old.clone(), net.now);
    let mut stalled = BTreeMap::new();
    while net.now < start + time {
        stall(&mut net, setting, &mut stalled);
        if net.random.chance(20) {
            let n = net.random.range(1, setting.nodes + 1);
            net.submit(n);
        }
        net.run(STEP);
        let ring = majority(&net, setting);
        // The old one is over as soon as one of its members has noticed.
        let works =
            ring.clone().filter(|ring| old.as_ref() != Some(ring) || sum(&net, |s| s.gathers) == gathers);
        if ring != last {
            out.settled = net.now.since(start);
            last = ring;
        }
        match works {
            None => out.without += STEP,
            Some(ring) if ring.members.iter().any(|m| !setting.votes(m.node.0)) => inside = net.now,
            Some(_) => {}
        }
        out.outside = out.outside.max(net.now.since(inside));
    }
    out.installed = sum(&net, |s| s.configurations) - installed;
    net.cut.clear();
    net.loss = 0;
    net.nodes.values_mut().for_each(|node| node.paused = false);
    net.run(net.config.token_loss);
    net.settle(&all, ms(40_000));
    net.run(ms(1000));
    net.checker.check_self_delivery();
    out
}

/// With one path broken a group with most of the voters is left that hears itself. It must form soon, once, and
/// the others must not disturb it: neither by the rings that they form at the same time, nor later.
fn settles_once(setting: Setting) {
    for cuts in setting.cuts() {
        for seed in 0..4 {
            let out = outage(seed, setting, &cuts, ms(20_000));
            let once = out.installed == 0 || out.installed == setting.nodes;
            assert!(once && out.without <= ms(2000), "{setting:?} {cuts:?} seed {seed}: {out:?}");
            // A path between voters costs the node that never votes no more than that.
            let voters = cuts.iter().all(|(a, b)| setting.votes(*a) && setting.votes(*b));
            let inside = setting.gateway.is_none() || out.outside <= ms(2000);
            assert!(!voters || inside, "{setting:?} {cuts:?} seed {seed}: {out:?}");
        }
    }
}

#[test]
fn one_broken_path_costs_one_formation() {
    for (nodes, gateway) in [(3, None), (4, Some(4)), (4, Some(1)), (5, None)] {
        settles_once(Setting::new(nodes, gateway, (50, 5000)));
    }
}

#[test]
fn one_broken_path_costs_one_formation_with_slow_disks() {
    for (nodes, gateway) in [(3, None), (4, Some(4)), (5, None)] {
        settles_once(Setting::new(nodes, gateway, (20_000, 400_000)));
    }
}

/// Numbers for the documents: `NODES=4 GATEWAY=4 cargo test -p sheep-totem --test paths measure -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn measure() {
    let get = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok()).unwrap_or(default)
    };
    let gateway = Some(get("GATEWAY", 0)).filter(|n| *n > 0);
    let mut setting = Setting::new(get("NODES", 4), gateway, (get("DISK_FROM", 50), get("DISK_TO", 5000)));
    setting.stalls = (get("STALLS", 0), get("STALL_MS", 300));
    setting.loss = get("LOSS", 0);
    let (seeds, time) = (get("SEEDS", 20), ms(get("TIME", 40_000)));
    println!("{setting:?}, {seeds} seeds, {time:?}");
    let mut total: Vec<Outage> = Vec::new();
    for cuts in setting.cuts() {
        let runs: Vec<Outage> = (0..seeds).map(|seed| outage(seed, setting, &cuts, time)).collect();
        if runs.iter().any(|run| run.installed > 0) {
            println!("{cuts:?}: {}", sum_up(&runs, time));
            total.extend(runs);
        }
    }
    println!("all that noticed: {}", sum_up(&total, time));
}

fn sum_up(runs: &[Outage], time: Duration) -> String {
    let mut settled: Vec<u128> = runs.iter().map(|o| o.settled.as_millis()).collect();
    settled.sort_unstable();
    let at = |percent: usize| settled[(settled.len() - 1) * percent / 100];
    let count = runs.len() as u128;
    let without =
        runs.iter().map(|o| o.without.as_millis()).sum::<u128>() * 1000 / (count * time.as_millis());
    let installed = runs.iter().map(|o| u128::from(o.installed)).sum::<u128>() * 10 / count;
    format!(
        "settled ms median {} p90 {} max {}; without {}.{} %; configurations {}.{}",
        at(50),
        at(90),
        at(100),
        without / 10,
        without % 10,
        installed / 10,
        installed % 10
    )
}
