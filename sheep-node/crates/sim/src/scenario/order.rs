//! Ring, log and membership.

use super::Scenario;
use super::script::{Script, Setup, Verdict, ensure};
use crate::log_disk::LogDisk;
use crate::world::Event;
use sheep_state::{Genesis, NodeState, Outcome, Settings};
use sheep_types::{ClusterId, Geometry};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "minority-appends-nothing",
        rule: "a minority that forms again and again cuts nothing off when it comes back",
        mutants: &["log:minority-install"],
        run: minority_appends_nothing,
    },
    Scenario {
        name: "holes-end-the-term",
        rule: "what was ordered behind a message that one side lacks is not in the log of either",
        mutants: &["log:no-resend"],
        run: holes_end_the_term,
    },
    Scenario {
        name: "numbers-outlive-power",
        rule: "terms grow across the loss of all power",
        mutants: &[],
        run: numbers_outlive_power,
    },
    Scenario {
        name: "empty-disks-are-a-new-node",
        rule: "a node that lost its log does not vote in its former name",
        mutants: &[],
        run: empty_disks_are_a_new_node,
    },
    Scenario {
        name: "clusters-do-not-merge",
        rule: "logs of two clusters never merge, and a node without one does not make one",
        mutants: &[],
        run: clusters_do_not_merge,
    },
    Scenario {
        name: "commands-of-a-minority-wait",
        rule: "every command takes effect once, however often its term ended",
        mutants: &["log:no-resend", "log:own-base"],
        run: commands_of_a_minority_wait,
    },
    Scenario {
        name: "a-hung-disk-stops-nobody",
        rule: "commit goes on without a member whose disk hangs, and it comes back",
        mutants: &[],
        run: a_hung_disk_stops_nobody,
    },
    Scenario {
        name: "a-broken-link-does-not-flap",
        rule: "with one broken link the ring settles and stays",
        mutants: &["totem:anyone-disturbs"],
        run: a_broken_link_does_not_flap,
    },
    Scenario {
        name: "a-dead-data-path-is-noticed",
        rule: "a node whose data path is dead becomes down although its ring works",
        mutants: &[],
        run: a_dead_data_path_is_noticed,
    },
    Scenario {
        name: "out-only-when-still-down",
        rule: "a node that came back in time keeps its place; one that did not loses it, and its data is re-created",
        mutants: &[],
        run: out_only_when_still_down,
    },
];

/// A ring's ordered message on the wire.
fn is_multicast(event: &Event) -> bool {
    matches!(event, Event::Datagram { packet, .. } if packet.first() == Some(&1) && packet.get(6) == Some(&1))
}

fn target(event: &Event) -> usize {
    match event {
        Event::Datagram { to, .. } | Event::Packet { to, .. } => *to,
        _ => usize::MAX,
    }
}

fn minority_appends_nothing(mutant: Option<&str>) -> Verdict {
    let mut s = Script::new(Setup::nodes(5), mutant)?;
    s.cut(&[0, 1], &[2, 3, 4]);
    s.primary(&[2, 3, 4])?;
    let granted = s.create(2, "granted")?;
    // The others form twice more, so that their configuration has the highest number of all.
    for _ in 0..2 {
        s.cut(&[0], &[1]);
        s.run(2_000)?;
        s.heal();
        s.cut(&[0, 1], &[2, 3, 4]);
        s.run(2_000)?;
    }
    ensure(!s.is_primary(0) && !s.is_primary(1), "a minority is primary")?;
    s.heal();
    s.whole()?;
    for node in 0..5 {
        s.record(node, granted)?;
    }
    s.create(0, "later").map(drop)
}

fn holes_end_the_term(mutant: Option<&str>) -> Verdict {
    let mut s = Script::new(Setup::nodes(5), mutant)?;
    // What node 0 orders reaches node 1 only, and 1 cannot repeat it to the rest; 2 orders behind it.
    s.lose(|from, event| from < 2 && target(event) >= 2 && is_multicast(event));
    let first = s.order(0, &Script::creation("first"))?;
    s.run(40)?;
    let second = s.order(2, &Script::creation("second"))?;
    s.run(60)?;
    s.cut(&[0, 1], &[2, 3, 4]);
    s.world.unfilter(false);
    s.primary(&[2, 3, 4])?;
    let between = s.create(3, "between")?;
    s.heal();
    s.whole()?;
    for token in [first, second] {
        let answer = s.answer(token)?;
        ensure(matches!(answer, Ok(Outcome::Created { .. })), &format!("answered {answer:?}"))?;
    }
    (0..5).try_for_each(|node| s.record(node, between).map(drop))
}

fn numbers_outlive_power(mutant: Option<&str>) -> Verdict {
    let mut s = Script::new(Setup::nodes(3), mutant)?;
    let term = |s: &Script| s.world.nodes[0].running.as_ref().map(|running| running.control.state().term());
    let mut last = None;
    for round in 0..4 {
        s.create(round % 3, &format!("volume{round}"))?;
        s.run(500)?;
        let now = term(&s);
        ensure(now > last, &format!("term {now:?} after {last:?}"))?;
        last = now;
        (0..3).for_each(|node| s.crash(node, Some(200 + 100 * node as u64)));
        s.run(1_000)?;
        s.whole()?;
    }
    Ok(())
}

fn empty_disks_are_a_new_node(mutant: Option<&str>) -> Verdict {
    let mut s = Script::new(Setup::nodes(3), mutant)?;
    s.cut(&[2], &[0, 1]);
    s.primary(&[0, 1])?;
    let kept = s.create(0, "kept")?;
    s.crash(1, None);
    s.run(200)?;
    let mut rng = s.world.rng.fork();
    let options = s.world.options.clone();
    s.world.nodes[1].lose_disks(&mut rng, &options);
    s.heal();
    s.cut(&[0], &[1, 2]);
    s.world.schedule(0, Event::Start(1));
    // Two machines of three, but only one of the three voters.
    s.run(10_000)?;
    s.order(2, &Script::creation("lost"))?;
    s.run(10_000)?;
    ensure(!s.is_primary(2), "a node without a majority of the voters is primary")?;
    s.heal();
    s.run(5_000)?;
    (0..3).try_for_each(|node| s.record(node, kept).map(drop))
}

fn clusters_do_not_merge(mutant: Option<&str>) -> Verdict {
    let mut s = Script::raw(Setup::nodes(4), mutant);
    let format = |s: &Script, node: usize| Genesis {
        cluster: ClusterId(77),
        geometry: Geometry::with_object_size(64 << 10).expect("64 KiB is a legal size"),
        settings: Settings::default(),
        voters: vec![s.world.nodes[node].id],
    };
    let second = format(&s, 1);
    s.world.nodes[1].format(&second);
    s.run(10_000)?;
    let cluster = |s: &Script, node: usize| s.world.nodes[node].running.as_ref().map(|r| r.control.cluster());
    ensure(cluster(&s, 0) != cluster(&s, 1), "two clusters became one")?;
    ensure(s.is_primary(0) && s.is_primary(1), "one cluster stops the other")?;
    s.create(0, "one")?;
    s.create(1, "one")?;
    // Nobody has a log: nobody makes one.
    let mut s = Script::raw(Setup::nodes(3), mutant);
    s.world.nodes[0].log = LogDisk::default();
    s.run(10_000)?;
    ensure((0..3).all(|node| cluster(&s, node) == Some(ClusterId(0))), "a cluster out of nothing")?;
    ensure((0..3).all(|node| !s.is_primary(node)), "primary without a cluster")
}

fn commands_of_a_minority_wait(mutant: Option<&str>) -> Verdict {
    let mut s = Script::new(Setup::nodes(5), mutant)?;
    let mut tokens = Vec::new();
    for round in 0..4 {
        // Some are ordered just before the ring breaks, some while it is broken.
        for place in 0..3 {
            tokens.push(s.order(0, &Script::creation(&format!("before{round}-{place}")))?);
        }
        s.run(round * 7)?;
        s.cut(&[0, 1], &[2, 3, 4]);
        s.run(1_000)?;
        for place in 0..3 {
            tokens.push(s.order(0, &Script::creation(&format!("during{round}-{place}")))?);
        }
        s.run(1_000)?;
        s.heal();
        s.whole()?;
    }
    for token in tokens {
        let answer = s.answer(token)?;
        ensure(matches!(answer, Ok(Outcome::Created { .. })), &format!("answered {answer:?}"))?;
    }
    Ok(())
}

fn a_hung_disk_stops_nobody(mutant: Option<&str>) -> Verdict {
    for hung in 0..3 {
        let mut s = Script::new(Setup::nodes(3), mutant)?;
        s.world.nodes[hung].hung_until = s.world.now + 10_000_000_000;
        let other = (hung + 1) % 3;
        let begun = s.world.now;
        s.create(other, "meanwhile")?;
        s.create((hung + 2) % 3, "and")?;
        ensure(s.world.now - begun < 5_000_000_000, "commands waited for a hung disk")?;
        s.run(12_000)?;
        s.whole()?;
    }
    Ok(())
}

fn a_broken_link_does_not_flap(mutant: Option<&str>) -> Verdict {
    let mut s = Script::new(Setup::nodes(4), mutant)?;
    // One that not all can hear does not disturb those that are together.
    s.crash(3, None);
    s.primary(&[0, 1, 2])?;
    s.run(2_000)?;
    s.cut(&[3], &[1]);
    s.world.schedule(0, Event::Start(3));
    let ring = |s: &Script| {
        s.world.nodes[0].running.as_ref().map(|r| r.control.ring().configuration().map(|c| c.id))
    };
    let before = ring(&s);
    s.run(30_000)?;
    ensure(ring(&s) == before, "a node that one member cannot hear disturbs the ring")?;
    // When a member's link breaks, one of the two goes, and then there is peace.
    s.crash(3, None);
    s.heal();
    s.cut(&[0], &[1]);
    s.run(10_000)?;
    let numbers = |s: &Script| -> u64 {
        let ring =
            |node: usize| s.world.nodes[node].running.as_ref().map(|r| r.control.ring().highest_number());
        (0..3).filter_map(ring).max().unwrap_or_default()
    };
    let before = numbers(&s);
    s.run(30_000)?;
    ensure(s.is_primary(2), "the node that hears everybody is not primary")?;
    let grown = numbers(&s) - before;
    ensure(grown <= 3, &format!("{grown} ring numbers in 30 s of a broken link"))?;
    s.heal();
    s.world.schedule(0, Event::Start(3));
    s.whole()
}

fn a_dead_data_path_is_noticed(mutant: Option<&str>) -> Verdict {
    let mut s = Script::new(Setup::nodes(5), mutant)?;
    let vdi = s.create(0, "volume")?;
    let set = s.set(0, vdi, 0)?;
    let gateway = (0..5).find(|node| !set.contains(node)).ok_or("nobody is outside the set")?;
    let session = s.open(gateway, vdi)?;
    s.write(session, 0, 1)?;
    let dead = set[0];
    s.lose(move |from, event| {
        matches!(event, Event::Packet { .. }) && (from == dead || target(event) == dead)
    });
    // What the world's own test of a peer says is no packet: it must fail, too.
    s.world.hooks.deaf.insert(dead);
    s.write(session, 0, 2)?;
    s.world.hooks.deaf.clear();
    s.world.unfilter(false);
    s.whole()?;
    s.close(session)?;
    s.all_show(vdi, 0, 2)
}

fn out_only_when_still_down(mutant: Option<&str>) -> Verdict {
    let setup = Setup { out_ms: 4_000, ..Setup::nodes(6) };
    let mut s = Script::new(setup, mutant)?;
    let vdi = s.create(0, "volume")?;
    let set = s.set(0, vdi, 0)?;
    let session = s.open(set[0], vdi)?;
    s.write(session, 0, 1)?;
    s.flush(session)?;
    let is_out = |s: &Script, node: usize, at: usize| {
        let id = s.world.nodes[node].id;
        let running = s.world.nodes[at].running.as_ref();
        running.is_some_and(|r| {
            let record = r.control.state().node(id);
            record.is_some_and(|record| matches!(record.state, NodeState::Out { .. }))
        })
    };
    let away = set[1];
    s.crash(away, Some(2_500));
    for _ in 0..100 {
        s.run(100)?;
        ensure(!is_out(&s, away, set[0]), "a node that came back in time is out")?;
    }
    s.whole()?;
    s.crash(away, None);
    s.until(20_000, "a dead node is out", |s| is_out(s, away, set[0]))?;
    // Its copy is re-created on a node that had none.
    s.run(5_000)?;
    let now = s.set(set[0], vdi, 0)?;
    ensure(now.len() == 3 && !now.contains(&away), "no other node takes its place")?;
    s.crash(set[2], Some(60_000));
    s.run(2_000)?;
    let shown = s.read(session, 0)?;
    ensure(shown == 1, &format!("shows {shown}"))?;
    s.world.schedule(0, Event::Start(away));
    s.whole()
}
