//! Event sequences that break a log in which one rule is missing. Each gives an error if a property broke.

use super::world::World;
use sheep_log::LogConfig;
use sheep_types::{LogIndex, NodeId};
use std::time::Duration;

type Verdict = Result<(), String>;

fn ensure(holds: bool, what: &str) -> Verdict {
    if holds { Ok(()) } else { Err(what.into()) }
}

/// One rotation; what is sent is received by its sender only.
fn go_round(w: &mut World, ring: usize) {
    for _ in 0..3 {
        w.visit(ring, 9);
    }
}

/// A minority forms twice and has the higher number; then everybody meets.
pub fn minority_installs_nothing(config: LogConfig) -> Verdict {
    let mut w = World::cluster(config, 5, 5);
    let before = w.log(1).last();
    w.form(&[3, 4, 5]);
    w.propose(3, "grant");
    w.settle();
    w.form(&[1, 2]);
    w.form(&[1, 2]);
    w.settle();
    ensure(!w.log(1).is_primary() && w.log(1).last() == before, "a minority appended")?;
    w.form(&[1, 2, 3, 4, 5]);
    w.settle();
    ensure(w.effects(1, 3) == 1, "the grant is lost")?;
    w.verdict()
}

/// Two messages, each received by one side only, before a partition.
pub fn holes_end_the_term(config: LogConfig) -> Verdict {
    let mut w = World::cluster(config, 5, 5);
    let ring = w.ring_of(1);
    w.propose(1, "for A");
    w.propose(3, "for C");
    let first = w.ordered(ring);
    for _ in 0..5 {
        w.visit(ring, 1);
    }
    ensure(w.ordered(ring) == first + 2, "two messages are ordered")?;
    w.receive(ring, NodeId(2), first);
    w.receive(ring, NodeId(4), first + 1);
    w.receive(ring, NodeId(5), first + 1);
    w.form(&[3, 4, 5]);
    w.form(&[1, 2]);
    w.settle();
    w.verdict()?;
    w.form(&[1, 2, 3, 4, 5]);
    w.settle();
    ensure(w.effects(2, 1) == 1 && w.effects(2, 3) == 1, "a command is lost or doubled")?;
    w.verdict()
}

/// Forms a configuration, makes the promises durable, and starts the term while the named disks hang: the
/// promises are everywhere, what follows is not.
fn start_term(w: &mut World, members: &[u64], hang: &[u64]) {
    w.form(members);
    members.iter().for_each(|id| w.complete_write(*id));
    w.slow(hang, true);
    w.settle();
}

fn cut_power(w: &mut World, ids: &[u64]) {
    ids.iter().for_each(|id| w.restart(*id));
    w.slow(ids, false);
}

/// Figure 8 of the Raft paper: an entry of an old term on a majority, and a better log elsewhere.
pub fn old_terms_are_not_counted(config: LogConfig) -> Verdict {
    let mut w = World::cluster(config, 5, 5);
    // x is durable on 1 and 2.
    start_term(&mut w, &[1, 2, 3], &[3]);
    w.slow(&[1, 2], false);
    w.form(&[1, 2, 3]);
    [1, 2].iter().for_each(|id| w.complete_write(*id));
    w.slow(&[3], false);
    w.complete_write(3);
    w.complete_write(3);
    w.slow(&[3], true);
    w.propose(1, "x");
    w.settle();
    let x = w.log(1).last();
    ensure(w.log(2).durable() == x && w.log(3).durable() != x, "x is durable on 1 and 2 only")?;
    cut_power(&mut w, &[3]);
    // A term whose install entry is durable on 5 alone.
    start_term(&mut w, &[3, 4, 5], &[3, 4]);
    let installed = w.log(5).durable();
    ensure(installed.term == w.log(5).term(), "5 has the install entry")?;
    cut_power(&mut w, &[3, 4]);
    // x comes to 3, but no entry of this term is durable on more than 1.
    start_term(&mut w, &[1, 2, 3], &[2, 3]);
    ensure(w.log(3).place_at(x.index) == Some(x), "3 has fetched x")?;
    w.complete_write(3);
    ensure(w.log(3).durable() == x, "x is durable on 3, and nothing of the term")?;
    w.settle();
    cut_power(&mut w, &[2, 3]);
    // 5 has the better log.
    w.form(&[2, 3, 5]);
    w.settle();
    ensure(w.log(2).place_at(installed.index) == Some(installed), "the better log is the base")?;
    w.form(&[1, 2, 3, 4, 5]);
    w.settle();
    w.verdict()
}

/// A node with a longer log of a dead term meets entries of a later one.
pub fn gaps_are_filled_along_the_chain(config: LogConfig) -> Verdict {
    let mut w = World::cluster(config, 3, 3);
    let ring = w.ring_of(3);
    // Only 3 itself has these in its log.
    (0..4).for_each(|n| w.propose(3, &format!("lost {n}")));
    go_round(&mut w, ring);
    while !w.nodes[&3].writes.is_empty() {
        w.complete_write(3);
    }
    ensure(w.log(3).last().index > w.log(1).last().index, "3 is ahead")?;
    w.form(&[1, 2]);
    (0..9).for_each(|n| w.propose(1, &format!("kept {n}")));
    w.settle();
    w.form(&[1, 2, 3]);
    w.settle();
    ensure(w.log(3).last() == w.log(1).last(), "3 has the others' log")?;
    ensure(w.effects(1, 3) == 4 && w.effects(1, 1) == 9, "every command took effect once")?;
    w.verdict()
}

/// What the others have committed must not be applied from an own entry with the same index.
pub fn commit_places_name_entries(config: LogConfig) -> Verdict {
    let mut w = World::cluster(config, 3, 3);
    let ring = w.ring_of(3);
    // More than the others will have committed.
    (0..9).for_each(|n| w.propose(3, &format!("lost {n}")));
    go_round(&mut w, ring);
    let applied = w.log(3).applied();
    w.form(&[1, 2]);
    (0..2).for_each(|n| w.propose(1, &format!("kept {n}")));
    w.settle();
    w.hold_net = true;
    w.form(&[1, 2, 3]);
    w.settle();
    w.verdict()?;
    ensure(w.log(3).applied() == applied, "3 has applied entries that it lacks")?;
    w.hold_net = false;
    w.settle();
    ensure(w.log(3).applied() == w.log(1).applied(), "3 catches up")?;
    w.verdict()
}

/// A voter comes back with its name and an empty disk.
pub fn an_empty_store_does_not_vote(config: LogConfig) -> Verdict {
    let mut w = World::cluster(config, 3, 3);
    w.slow(&[3], true);
    w.propose(1, "x");
    w.settle();
    ensure(w.effects(1, 1) == 1, "x is committed by 1 and 2")?;
    cut_power(&mut w, &[3]);
    w.crash(2, 0, 0);
    w.node(2).file.clear();
    w.start(2);
    w.start(9);
    w.form(&[2, 3, 9]);
    w.settle();
    ensure(!w.log(3).is_primary(), "an empty store made a majority")?;
    w.form(&[1, 3, 9]);
    w.settle();
    ensure(w.effects(3, 1) == 1 && w.effects(9, 1) == 1, "x is everywhere")?;
    w.verdict()
}

/// Voters 1 to 3 become 1 to 5. Node 2 has the change in its log and does not know it to be committed.
pub fn lists_are_those_of_the_base_log(config: LogConfig) -> Verdict {
    let mut w = World::cluster(config, 5, 3);
    // Some writes, so that the files say that the first list is committed.
    for _ in 0..2 {
        w.propose(2, "before");
        w.settle();
    }
    let ring = w.ring_of(1);
    w.voters(1, 1..=5).map_err(|e| e.to_string())?;
    // Ordered and durable everywhere except on 3; only 1 gets the token after that.
    let at = w.ordered(ring);
    while w.ordered(ring) == at {
        w.visit(ring, 9);
    }
    for id in [2, 4, 5] {
        w.receive(ring, NodeId(id), at);
        w.complete_write(id);
    }
    for _ in 0..4 {
        w.visit(ring, 0);
    }
    w.complete_write(1);
    w.visit(ring, 0);
    ensure(!w.log(1).is_voter_change_pending(), "1 knows that the change is committed")?;
    ensure(w.log(2).is_voter_change_pending(), "2 does not know that the change is committed")?;
    w.restart(2);
    w.restart(3);
    w.form(&[1, 4, 5]);
    w.propose(1, "y");
    w.settle();
    ensure(w.effects(4, 1) == 1, "y is committed by three of five")?;
    w.form(&[2, 3]);
    w.settle();
    ensure(!w.log(2).is_primary(), "two of five are primary")?;
    w.form(&[1, 2, 3, 4, 5]);
    w.settle();
    w.verdict()
}

/// One voter becomes three, of which two never confirm.
pub fn both_lists_confirm_a_change(config: LogConfig) -> Verdict {
    let mut w = World::cluster(config, 5, 3);
    ensure(w.voters(1, [1, 2, 3, 4]).is_err() && w.voters(1, [3, 2, 1]).is_err(), "bad lists are refused")?;
    ensure(w.voters(1, [1, 2, 9]).is_err(), "an unknown voter is refused")?;
    // {1, 2, 3} becomes {3, 4, 5}: durable on the new ones alone.
    w.slow(&[1, 2], true);
    w.voters(3, [3, 4, 5]).map_err(|e| e.to_string())?;
    w.settle();
    ensure(w.log(3).is_voter_change_pending(), "the change needs the old list as well")?;
    ensure(w.voters(3, [1, 2, 3]).is_err(), "one change at a time")?;
    cut_power(&mut w, &[1, 2]);
    // Without the change, the old list rules.
    w.form(&[1, 2]);
    w.propose(1, "by the old list");
    w.settle();
    ensure(w.effects(1, 1) == 1, "a majority of the old list goes on")?;
    w.form(&[3, 4, 5]);
    w.settle();
    w.form(&[1, 2, 3, 4, 5]);
    w.settle();
    ensure(w.effects(5, 1) == 1, "the old list's entry stays")?;
    w.verdict()
}

/// The voter that holds the base answers nobody.
pub fn an_unreachable_base_forms_again(config: LogConfig) -> Verdict {
    let mut w = World::cluster(config, 3, 3);
    let ring = w.ring_of(3);
    w.propose(3, "x");
    go_round(&mut w, ring);
    while !w.nodes[&3].writes.is_empty() {
        w.complete_write(3);
    }
    // After a restart it alone has x.
    w.restart(3);
    w.hold_net = true;
    let before = w.log(1).last();
    ensure(w.log(3).last().index > before.index, "3 has x")?;
    // Without a promise of 2, the base is the log of 3.
    w.slow(&[2], true);
    w.form(&[1, 2, 3]);
    (0..8).for_each(|_| w.settle());
    ensure(w.log(1).last() == before, "nothing is appended without the base")?;
    ensure(w.nodes[&1].form_again && w.nodes[&2].form_again, "the ring is asked to form again")?;
    w.hold_net = false;
    w.form(&[1, 2, 3]);
    w.settle();
    ensure(w.effects(1, 3) == 1 && w.log(1).is_installed(), "the base is adopted")?;
    w.verdict()
}

/// A token that waited while its reader slept does not renew from now.
pub fn a_late_token_renews_from_its_stamp(config: LogConfig) -> Verdict {
    let lease = config.lease;
    let mut w = World::cluster(config, 3, 3);
    let ring = w.ring_of(3);
    // Node 2 passes the token on to 3, which sleeps.
    while w.holder(ring) != NodeId(3) {
        w.visit(ring, 0);
    }
    let asleep = w.now;
    w.form(&[1, 2]);
    w.settle();
    w.now = w.now + lease;
    w.visit(ring, 0);
    ensure(w.log(3).lease_deadline(asleep).is_none_or(|d| d <= asleep + lease), "an old token renewed")?;
    ensure(w.log(3).lease_deadline(w.now).is_none(), "the lease outlives the exclusion")?;
    w.verdict()
}

/// A follower that has none of the log gets a snapshot, in pieces, and the rest.
pub fn a_new_node_gets_a_snapshot(mut config: LogConfig) -> Verdict {
    (config.snapshot_bytes, config.keep_bytes, config.fetch_bytes) = (1_000, 100, 1 << 10);
    let mut w = World::cluster(config, 3, 3);
    (0..99).for_each(|n| w.propose(1, &format!("command {n}")));
    w.settle();
    w.start(8);
    w.form(&[1, 2, 3, 8]);
    w.settle();
    ensure(w.restores > 0, "a snapshot was taken over")?;
    ensure(w.effects(8, 1) == 99 && w.log(8).cluster() == w.log(1).cluster(), "8 has everything")?;
    w.restart(8);
    ensure(w.log(8).last().index > LogIndex(0), "8 has kept the log")?;
    w.form(&[1, 2, 3, 8]);
    w.settle();
    ensure(w.effects(8, 1) == 99, "8 has everything again")?;
    w.verdict()
}

/// Ordered messages are more than the buffer holds while the base is fetched.
pub fn a_small_buffer_is_filled_by_fetching(mut config: LogConfig) -> Verdict {
    config.buffer_messages = 3;
    let mut w = World::cluster(config, 3, 3);
    (0..5).for_each(|n| w.propose(1, &format!("before {n}")));
    w.settle();
    w.start(8);
    w.hold_net = true;
    w.form(&[1, 2, 3, 8]);
    w.settle();
    (0..20).for_each(|n| w.propose(1, &format!("during {n}")));
    w.settle();
    ensure(w.effects(1, 1) == 25 && w.log(8).last().index == LogIndex(0), "8 waits for the base")?;
    w.hold_net = false;
    (0..4).for_each(|_| w.settle());
    ensure(w.log(8).last() == w.log(1).last() && w.effects(8, 1) == 25, "8 has everything")?;
    w.verdict()
}

/// A log of another cluster stops instead of mixing.
pub fn foreign_logs_stop(config: LogConfig) -> Verdict {
    let mut w = World::cluster(config, 1, 1);
    let other = sheep_log::Log::format(sheep_types::ClusterId(78), NodeId(5), 0, bytes::Bytes::new());
    w.nodes.insert(5, super::SimNode::new(5));
    w.node(5).file = other.to_vec();
    w.start(5);
    // Two clusters: the checkers know only one.
    w.violation = None;
    w.form(&[1, 5]);
    w.settle();
    let stopped = w.violation.take();
    ensure(stopped.is_some_and(|e| e.contains("belongs to cluster")), "nobody stopped")
}

/// All power fails; everything committed is there without anybody's help.
pub fn a_power_cut_loses_nothing(config: LogConfig) -> Verdict {
    let mut w = World::cluster(config, 3, 3);
    (0..5).for_each(|n| w.propose(2, &format!("command {n}")));
    w.settle();
    w.now = w.now + Duration::from_secs(60);
    [1, 2, 3].iter().for_each(|id| w.restart(*id));
    w.form(&[2, 3]);
    w.settle();
    ensure(w.effects(3, 2) == 5, "what was committed is there")?;
    w.verdict()
}

/// A promise waits in the ring's queue of its sender until the next configuration; meanwhile its sender
/// took part in the term, and the entry that it confirmed was committed.
pub fn a_promise_is_for_one_term(config: LogConfig) -> Verdict {
    let mut w = World::cluster(config, 3, 3);
    w.start_mute(3, &[1, 2, 3]);
    w.slow(&[2], true);
    w.propose(1, "x");
    w.settle();
    ensure(w.effects(1, 1) == 1, "x is committed by 1 and 3")?;
    cut_power(&mut w, &[2]);
    // The old promise of 3 is ordered first, with the end of its log from before x.
    w.node(3).mute = false;
    w.form(&[2, 3]);
    let ring = w.ring_of(2);
    w.complete_write(2);
    while w.ordered(ring) < 2 {
        w.visit(ring, 1);
    }
    w.settle();
    w.form(&[1, 2, 3]);
    w.settle();
    ensure(w.effects(2, 1) == 1, "x is lost")?;
    w.verdict()
}

/// The token overtakes the messages: it says that something is committed that this node does not have.
pub fn a_lease_waits_for_what_is_committed(config: LogConfig) -> Verdict {
    let mut w = World::cluster(config, 3, 3);
    let ring = w.ring_of(1);
    w.propose(1, "exclude 3");
    let at = w.ordered(ring);
    while w.ordered(ring) == at {
        w.visit(ring, 1);
    }
    w.receive(ring, NodeId(2), at);
    for _ in 0..12 {
        w.now = w.now + Duration::from_millis(50);
        [1, 2].iter().for_each(|id| w.complete_write(*id));
        w.visit(ring, 0);
    }
    ensure(w.effects(1, 1) == 1 && w.effects(3, 1) == 0, "3 does not know of its exclusion")?;
    w.verdict()?;
    let before = w.log(3).lease_deadline(w.now);
    w.receive(ring, NodeId(3), at);
    w.visit(ring, 0);
    w.visit(ring, 0);
    w.visit(ring, 0);
    ensure(before.is_some() && w.log(3).lease_deadline(w.now).is_none(), "the exclusion ends the lease")?;
    w.verdict()
}
