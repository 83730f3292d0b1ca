//! Locks, leases and fences: one writer at a time, and nobody reads what is over.

use super::Scenario;
use super::script::{Script, Session, Setup, Verdict, ensure};
use crate::world::Event;
use sheep_state::{AccessMode, Command, Outcome};
use sheep_types::VdiId;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "an-old-token-renews-nothing",
        rule: "a token that waited in the socket of a stopped node does not renew its lease",
        mutants: &["log:lease-without-support"],
        run: an_old_token_renews_nothing,
    },
    Scenario {
        name: "a-late-joiner-serves-nothing",
        rule: "a node that is back in the ring serves nothing before it has applied what was committed",
        mutants: &[],
        run: a_late_joiner_serves_nothing,
    },
    Scenario {
        name: "a-minority-has-no-lease",
        rule: "a lease needs the support of a majority of the voters",
        mutants: &["log:lease-without-support", "datapath:delete-on-absence"],
        run: a_minority_has_no_lease,
    },
    Scenario {
        name: "a-revoked-lock-ends",
        rule: "a lock can be ended under a living holder, and the next one has another generation",
        mutants: &[],
        run: a_revoked_lock_ends,
    },
    Scenario {
        name: "a-lock-goes-with-its-attachment",
        rule: "a node without the present attachment gets no lock; the end of an attachment ends its lock",
        mutants: &["state:lock-ignores-attachment"],
        run: a_lock_goes_with_its_attachment,
    },
    Scenario {
        name: "late-writes-are-fenced",
        rule: "writes of an ended generation are refused, also by a replica that has restarted",
        mutants: &[],
        run: late_writes_are_fenced,
    },
];

/// A volume whose object 0 shows 1, durable, and its gateway at node 0.
fn volume(s: &mut Script) -> Result<(VdiId, Session), String> {
    let vdi = s.create(0, "volume")?;
    let old = s.open(0, vdi)?;
    s.write(old, 0, 1)?;
    s.flush(old)?;
    Ok((vdi, old))
}

/// For so long, no read at the old gateway may succeed.
fn serves_nothing(s: &mut Script, old: Session, ms: u64) -> Verdict {
    let mut reads = Vec::new();
    for _ in 0..ms {
        reads.push(s.begin_read(old, 0));
        s.run(1)?;
    }
    for io in reads {
        if let Some(Ok(reply)) = s.result(io).cloned() {
            let shown = Script::shown(Ok(reply)).map_err(|error| error.to_string())?;
            return Err(format!("the old gateway shows {shown} after another one was opened"));
        }
    }
    Ok(())
}

fn an_old_token_renews_nothing(mutant: Option<&str>) -> Verdict {
    for delay in 0..8 {
        let mut s = Script::new(Setup::nodes(5), mutant)?;
        let (vdi, old) = volume(&mut s)?;
        s.run(delay * 11)?;
        s.pause(0, 6_000);
        let new = s.open(1, vdi)?;
        s.write(new, 0, 2)?;
        let wake = s.world.nodes[0].paused_until;
        s.until(10_000, "the stopped node wakes up", |s| s.world.now >= wake)?;
        serves_nothing(&mut s, old, 400)?;
    }
    Ok(())
}

fn a_late_joiner_serves_nothing(mutant: Option<&str>) -> Verdict {
    let mut s = Script::new(Setup::nodes(5), mutant)?;
    let (vdi, old) = volume(&mut s)?;
    s.cut(&[0], &[1, 2, 3, 4]);
    let new = s.open(1, vdi)?;
    s.write(new, 0, 2)?;
    s.heal();
    // Node 0 is in the ring, but what it lacks of the log does not come.
    s.lose(|_, event| matches!(event, Event::Datagram { to: 0, packet, .. } if packet.first() == Some(&2)));
    serves_nothing(&mut s, old, 4_000)?;
    s.world.unfilter(false);
    s.whole()?;
    serves_nothing(&mut s, old, 100)
}

fn a_minority_has_no_lease(mutant: Option<&str>) -> Verdict {
    let mut s = Script::new(Setup::nodes(5), mutant)?;
    let (vdi, old) = volume(&mut s)?;
    s.cut(&[0, 1], &[2, 3, 4]);
    let new = s.open(2, vdi)?;
    s.write(new, 0, 2)?;
    serves_nothing(&mut s, old, 1_000)?;
    s.heal();
    s.whole()?;
    s.close(old)?;
    s.close(new)?;
    s.all_show(vdi, 0, 2)
}

fn a_revoked_lock_ends(mutant: Option<&str>) -> Verdict {
    let mut s = Script::new(Setup::nodes(3), mutant)?;
    let (vdi, old) = volume(&mut s)?;
    let before = s.record(0, vdi)?.last_generation;
    let refused = s.begin_open(1, vdi);
    s.until(5_000, "a second holder is refused", |s| s.opening(refused).is_some())?;
    ensure(matches!(s.opening(refused), Some(Err(_))), "two holders")?;
    s.ordered(2, &Command::Revoke { vdi, generation: before })?;
    let new = s.open(1, vdi)?;
    ensure(s.is_lost(old), "the old holder does not know")?;
    ensure(s.record(1, vdi)?.last_generation > before, "the generation is the same")?;
    s.write(new, 0, 2)?;
    serves_nothing(&mut s, old, 10)
}

fn a_lock_goes_with_its_attachment(mutant: Option<&str>) -> Verdict {
    let mut s = Script::new(Setup::nodes(3), mutant)?;
    let vdi = s.create(0, "volume")?;
    let attach = |s: &mut Script, node: usize| {
        let id = s.world.nodes[node].id;
        let command = Command::Attach { vdi, node: id, mode: AccessMode::Write, share: false };
        match s.ordered(2, &command)? {
            Outcome::Attached { attachment } => Ok(attachment),
            other => Err(format!("attaching: {other:?}")),
        }
    };
    let first = attach(&mut s, 0)?;
    let old = s.open(0, vdi)?;
    s.write(old, 0, 1)?;
    s.ordered(2, &Command::Detach { vdi, attachment: first })?;
    attach(&mut s, 1)?;
    let new = s.open(1, vdi)?;
    ensure(s.is_lost(old), "the lock outlives its attachment")?;
    s.write(new, 0, 2)?;
    s.close(new)?;
    // The lock is free, but not for the node that is attached no longer.
    let late = s.begin_open(0, vdi);
    s.until(5_000, "an opening is answered", |s| s.opening(late).is_some())?;
    ensure(matches!(s.opening(late), Some(Err(_))), "a node that is not attached got the lock")
}

fn late_writes_are_fenced(mutant: Option<&str>) -> Verdict {
    let mut s = Script::new(Setup::nodes(5), mutant)?;
    let (vdi, old) = volume(&mut s)?;
    let set = s.set(0, vdi, 0)?;
    // A write of the old gateway stays in the network.
    s.hold(|from, event| from == 0 && matches!(event, Event::Packet { .. }));
    s.begin_write(old, 0, 9);
    s.run(5)?;
    s.cut(&[0], &[1, 2, 3, 4]);
    let new = s.open(1, vdi)?;
    s.write(new, 0, 2)?;
    let restarted = set.iter().copied().find(|node| *node > 1).ok_or("no replica to restart")?;
    s.crash(restarted, Some(100));
    s.run(3_000)?;
    s.world.unfilter(true);
    s.run(500)?;
    let shown = s.read(new, 0)?;
    ensure(shown == 2, &format!("shows {shown}"))?;
    s.heal();
    s.whole()?;
    s.close(old)?;
    s.close(new)?;
    s.all_show(vdi, 0, 2)
}
