//! Copies: acknowledged, flushed, settled, made again.

use super::Scenario;
use super::script::{Script, Session, Setup, Verdict, ensure};
use crate::world::{Event, ToShard};
use sheep_datapath::VolumeOp;
use sheep_types::VdiId;
use sheep_wire::{Message, Request};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "answered-writes-outlive-replicas",
        rule: "what was answered is there after all replicas restarted, as long as its gateway lives",
        mutants: &["state:restart-without-epoch"],
        run: answered_writes_outlive_replicas,
    },
    Scenario {
        name: "higher-is-not-fresher",
        rule: "a copy that comes back with a write nobody answered gives way to the settled ones",
        mutants: &["datapath:higher-version-wins"],
        run: higher_is_not_fresher,
    },
    Scenario {
        name: "a-source-is-not-older",
        rule: "a copy is fetched only from a node that has applied the asker's epoch",
        mutants: &[],
        run: a_source_is_not_older,
    },
    Scenario {
        name: "reads-wait-for-writes",
        rule: "a read shows no write that not all have answered",
        mutants: &["datapath:reads-unanswered"],
        run: reads_wait_for_writes,
    },
    Scenario {
        name: "creation-survives-power-cuts",
        rule: "whenever the power goes, an object is there or not, and never lost",
        mutants: &[],
        run: creation_survives_power_cuts,
    },
    Scenario {
        name: "one-decides",
        rule: "after the restart of all copies every node shows the same one",
        mutants: &[],
        run: one_decides,
    },
    Scenario {
        name: "a-take-over-is-durable",
        rule: "what the next holder has shown survives the loss of all replicas' power",
        mutants: &[],
        run: a_take_over_is_durable,
    },
    Scenario {
        name: "marks-are-inherited",
        rule: "a re-created copy keeps the mark of a write that not all have answered",
        mutants: &[],
        run: marks_are_inherited,
    },
    Scenario {
        name: "lost-answers-do-no-harm",
        rule: "a write that is there already is answered again",
        mutants: &[],
        run: lost_answers_do_no_harm,
    },
];

/// A volume with a gateway outside the set of its object 0, whose copies all show 1, durable.
struct Stage {
    vdi: VdiId,
    session: Session,
    set: Vec<usize>,
    /// A node that is neither.
    spare: usize,
}

fn stage(s: &mut Script) -> Result<Stage, String> {
    let vdi = s.create(0, "volume")?;
    let set = s.set(0, vdi, 0)?;
    let nodes = s.world.nodes.len();
    let outside: Vec<usize> = (0..nodes).filter(|node| !set.contains(node)).collect();
    let (&gateway, &spare) = outside.first().zip(outside.last()).ok_or("nobody is outside the set")?;
    let session = s.open(gateway, vdi)?;
    s.write(session, 0, 1)?;
    s.flush(session)?;
    Ok(Stage { vdi, session, set, spare })
}

fn is_write(event: &Event) -> bool {
    matches!(event, Event::Packet { packet, .. } if matches!(packet.message, Message::Request(Request::Write(_))))
}

fn is_reply(event: &Event) -> bool {
    matches!(event, Event::Packet { packet, .. } if matches!(packet.message, Message::Reply(_)))
}

fn to(event: &Event) -> usize {
    match event {
        Event::Datagram { to, .. } | Event::Packet { to, .. } => *to,
        _ => usize::MAX,
    }
}

fn answered_writes_outlive_replicas(mutant: Option<&str>) -> Verdict {
    for round in 0..6 {
        let mut s = Script::new(Setup::nodes(5), mutant)?;
        let Stage { vdi, session, set, .. } = stage(&mut s)?;
        s.write(session, 0, 2)?;
        for node in set {
            s.crash(node, Some(5 + round * 20));
        }
        let shown = s.read(session, 0)?;
        ensure(shown == 2, &format!("shows {shown} instead of what was answered"))?;
        s.flush(session)?;
        s.whole()?;
        s.close(session)?;
        s.all_show(vdi, 0, 2)?;
    }
    Ok(())
}

fn higher_is_not_fresher(mutant: Option<&str>) -> Verdict {
    let mut s = Script::new(Setup::nodes(5), mutant)?;
    let Stage { vdi, session, set, spare } = stage(&mut s)?;
    // The write reaches one replica only, which has it on its disk when both go.
    let alone = set[0];
    s.lose(move |_, event| is_write(event) && to(event) != alone);
    let data = bytes::Bytes::from(2_u64.to_le_bytes().repeat(512));
    s.begin(session, VolumeOp::Write { offset: 0, data, fua: true });
    s.run(50)?;
    s.crash(session.node, Some(10_000));
    s.crash(alone, Some(10_000));
    s.world.unfilter(false);
    let next = s.open(spare, vdi)?;
    let shown = s.read(next, 0)?;
    ensure(shown == 1, &format!("shows {shown}, which nobody else has"))?;
    s.run(12_000)?;
    s.whole()?;
    s.close(next)?;
    s.all_show(vdi, 0, 1)
}

fn a_source_is_not_older(mutant: Option<&str>) -> Verdict {
    let mut s = Script::new(Setup { out_ms: 1_500, ..Setup::nodes(5) }, mutant)?;
    let Stage { vdi, session, set, .. } = stage(&mut s)?;
    let comes = set[2];
    s.crash(comes, None);
    s.run(6_000)?;
    ensure(!s.set(session.node, vdi, 0)?.contains(&comes), "its place was not given away")?;
    // All data paths but one stay in the epoch before it comes back.
    s.hold(move |from, event| from != comes && is_view(event));
    s.world.schedule(0, Event::Start(comes));
    s.run(2_000)?;
    s.write(session, 0, 2)?;
    s.run(50)?;
    s.world.unfilter(true);
    s.whole()?;
    s.close(session)?;
    s.all_show(vdi, 0, 2)
}

fn is_view(event: &Event) -> bool {
    matches!(event, Event::ToShard { message: ToShard::View(_), .. })
}

fn reads_wait_for_writes(mutant: Option<&str>) -> Verdict {
    let mut s = Script::new(Setup::nodes(5), mutant)?;
    let Stage { session, set, .. } = stage(&mut s)?;
    let alone = set[0];
    s.hold(move |_, event| is_write(event) && to(event) != alone);
    let write = s.begin_write(session, 0, 2);
    // One member after the other is asked.
    let reads: Vec<u64> = (0..set.len() as u64).map(|_| s.begin_read(session, 0)).collect();
    s.run(100)?;
    ensure(s.result(write).is_none(), "a write was answered by one of three")?;
    for result in reads.into_iter().filter_map(|read| s.result(read).cloned()).collect::<Vec<_>>() {
        let shown = Script::shown(result).map_err(|error| error.to_string())?;
        ensure(shown == 1, "a read shows a write that not all have answered")?;
    }
    s.world.unfilter(true);
    s.finish(write)?.map_err(|error| error.to_string())?;
    let shown = s.read(session, 0)?;
    ensure(shown == 2, &format!("shows {shown}"))
}

fn creation_survives_power_cuts(mutant: Option<&str>) -> Verdict {
    // One copy, so that data and map are on different disks, and one of them is slow.
    let mut s = Script::new(Setup::nodes(4).copies(1, 1), mutant)?;
    let vdi = s.create(0, "volume")?;
    for round in 0..15 {
        let session = s.open(0, vdi)?;
        s.world.nodes.iter_mut().for_each(|node| node.slow = 1);
        let slow = s.set(0, vdi, round)?[0];
        s.world.nodes[slow].slow = if round % 2 == 0 { 20 } else { 1 };
        let io = s.begin_write(session, round, 7);
        let flush = s.begin(session, VolumeOp::Flush);
        // From before the first message to after the last.
        let moment = s.world.now + round * 700_000;
        s.world.run_until(moment)?;
        let flushed = matches!(s.result(flush), Some(Ok(_))) && matches!(s.result(io), Some(Ok(_)));
        (0..4).for_each(|node| s.crash(node, Some(20)));
        s.run(500)?;
        s.whole()?;
        let session = s.open((round % 3) as usize, vdi)?;
        let shown = s.read(session, round)?;
        let good = if flushed { shown == 7 } else { shown == 7 || shown == 0 };
        ensure(good, &format!("shows {shown} after a power cut"))?;
        s.close(session)?;
    }
    Ok(())
}

fn one_decides(mutant: Option<&str>) -> Verdict {
    let mut s = Script::new(Setup::nodes(5), mutant)?;
    let Stage { vdi, session, set, .. } = stage(&mut s)?;
    // Three copies with one, two and three writes, each of them durable where it is.
    let (first, second) = (set[0], set[1]);
    for tag in [2_u64, 3] {
        s.lose(move |_, event| is_write(event) && (to(event) == first || (tag == 3 && to(event) == second)));
        let data = bytes::Bytes::from(tag.to_le_bytes().repeat(512));
        s.begin(session, VolumeOp::Write { offset: 0, data, fua: true });
        s.run(50)?;
    }
    s.tell(vdi, 0);
    (0..5).for_each(|node| s.crash(node, Some(20)));
    s.world.unfilter(false);
    s.run(3_000)?;
    s.whole()?;
    s.tell(vdi, 0);
    let any = s.open(set[2], vdi)?;
    let shown = s.read(any, 0)?;
    s.close(any)?;
    s.all_show(vdi, 0, shown)
}

fn a_take_over_is_durable(mutant: Option<&str>) -> Verdict {
    for round in 0..6 {
        let mut s = Script::new(Setup::nodes(5).seed(round), mutant)?;
        let Stage { vdi, session, set, spare } = stage(&mut s)?;
        // A write to another object of the same nodes tells them that the first one is confirmed everywhere.
        let same =
            |index: &u64| s.set(0, vdi, *index).is_ok_and(|other| other.iter().all(|n| set.contains(n)));
        let Some(neighbour) = (1..16).find(same) else { continue };
        s.write(session, neighbour, 3)?;
        s.flush(session)?;
        s.write(session, 0, 2)?;
        s.write(session, neighbour, 4)?;
        s.crash(session.node, Some(60_000));
        let next = s.open(spare, vdi)?;
        let shown = s.read(next, 0)?;
        ensure(shown == 2, &format!("shows {shown} instead of what was answered"))?;
        set.iter().for_each(|node| s.crash(*node, Some(50)));
        let shown = s.read(next, 0)?;
        ensure(shown == 2, &format!("shows {shown}, but showed 2 before"))?;
    }
    Ok(())
}

fn marks_are_inherited(mutant: Option<&str>) -> Verdict {
    let setup = Setup { out_ms: 1_500, ..Setup::nodes(7) };
    let mut s = Script::new(setup, mutant)?;
    let Stage { vdi, session, set, .. } = stage(&mut s)?;
    let (alone, other, leaves) = (set[0], set[1], set[2]);
    // The write is on one copy only; its gateway dies, and nobody opens the volume yet.
    s.lose(move |_, event| is_write(event) && to(event) != alone);
    s.begin_write(session, 0, 2);
    s.run(20)?;
    s.crash(session.node, Some(100));
    s.world.unfilter(false);
    // Another copy's node leaves, and the new member fetches from the one that has the write.
    s.lose(move |from, event| from == other && is_reply(event) || to(event) == other && is_fetch(event));
    s.crash(leaves, Some(90_000));
    let joined = |s: &Script| -> Option<usize> {
        let now = s.set(alone, vdi, 0).ok()?;
        now.into_iter().find(|node| !set.contains(node))
    };
    s.until(20_000, "another node takes its place", |s| joined(s).is_some())?;
    s.run(4_000)?;
    s.world.unfilter(false);
    let fetched = joined(&s).ok_or("no new member")?;
    s.tell(vdi, 0);
    s.crash(alone, Some(90_000));
    s.run(1_000)?;
    let through = s.open(fetched, vdi)?;
    let one = s.read(through, 0)?;
    s.close(through)?;
    let through = s.open(other, vdi)?;
    let two = s.read(through, 0)?;
    ensure(one == two, &format!("one copy shows {one}, another one {two}"))
}

fn is_fetch(event: &Event) -> bool {
    matches!(event, Event::Packet { packet, .. }
        if matches!(packet.message, Message::Request(Request::Digest { .. } | Request::Standing { .. })))
}

fn lost_answers_do_no_harm(mutant: Option<&str>) -> Verdict {
    let mut s = Script::new(Setup::nodes(5), mutant)?;
    let Stage { vdi, session, .. } = stage(&mut s)?;
    let gateway = session.node;
    s.lose(move |_, event| is_reply(event) && to(event) == gateway);
    let writes: Vec<u64> = (2..6).map(|tag| s.begin_write(session, 0, tag)).collect();
    s.run(1_000)?;
    s.world.unfilter(false);
    for io in writes {
        s.finish(io)?.map_err(|error| error.to_string())?;
    }
    let shown = s.read(session, 0)?;
    ensure(shown == 5, &format!("shows {shown}"))?;
    s.close(session)?;
    s.all_show(vdi, 0, 5)
}
