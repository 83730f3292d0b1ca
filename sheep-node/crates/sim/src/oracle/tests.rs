//! The reference is right about what a volume may contain.

use super::*;

fn read(oracle: &mut Oracle, sectors: Range<usize>, shown: &[Tag]) -> Result<(), String> {
    let ticket = oracle.begin_read(sectors);
    oracle.end_read(&ticket, shown)
}

#[test]
fn acknowledged_writes_must_show() {
    let mut o = Oracle::new(1 << 20, 1);
    let tag = o.begin_write(0..2, false, false);
    assert!(read(&mut o, 0..2, &[0, tag]).is_ok(), "either while under way");
    o.end_write(tag, vec![], 0);
    assert!(read(&mut o, 0..2, &[tag, tag]).is_ok());
    assert!(read(&mut o, 0..2, &[tag, 0]).is_err());
    assert!(read(&mut o, 2..3, &[tag]).is_err());
}

#[test]
fn a_read_may_show_what_was_issued_after_it() {
    let mut o = Oracle::new(1 << 20, 1);
    let ticket = o.begin_read(0..1);
    let a = o.begin_write(0..1, false, false);
    o.end_write(a, vec![], 0);
    let b = o.begin_write(0..1, false, false);
    o.end_write(b, vec![], 0);
    assert!(o.end_read(&ticket, &[a]).is_ok());
    assert!(o.end_read(&ticket, &[b]).is_ok());
    assert!(o.end_read(&ticket, &[99]).is_err());
}

#[test]
fn a_power_cut_takes_only_what_no_holder_kept_and_only_once() {
    let mut o = Oracle::new(1 << 20, 1);
    let flushed = o.begin_write(0..1, false, false);
    o.end_write(flushed, vec![(0, 0), (1, 0)], 0);
    let mark = o.begin_flush();
    let lost = o.begin_write(1..2, false, false);
    o.end_write(lost, vec![(0, 0), (1, 0)], 0);
    o.end_flush(&mark);
    let kept = o.begin_write(2..3, false, false);
    o.end_write(kept, vec![(0, 0), (2, 0)], 0);
    o.new_session(|run| run == (2, 0), |_, _| false);
    assert!(read(&mut o, 0..1, &[0]).is_err(), "flushed");
    assert!(read(&mut o, 2..3, &[0]).is_err(), "a holder lives");
    assert!(read(&mut o, 1..2, &[0]).is_ok());
    assert!(read(&mut o, 1..2, &[lost]).is_err(), "decided by the first read");
}

#[test]
fn a_holder_that_was_left_out_gives_way_to_those_that_were_not() {
    let mut o = Oracle::new(1 << 20, 1);
    let tag = o.begin_write(0..1, false, false);
    o.end_write(tag, vec![(0, 0), (1, 0)], 0);
    o.new_session(|run| run == (1, 0), |holders, _| holders == [(0, 0), (1, 0)]);
    assert!(read(&mut o, 0..1, &[0]).is_ok());
}

#[test]
fn a_read_beside_a_discard_does_not_decide_what_it_leaves() {
    let mut o = Oracle::new(1 << 20, 1);
    let tag = o.begin_write(0..1, false, false);
    o.end_write(tag, vec![], 0);
    let discard = o.begin_write(0..1, true, true);
    let ticket = o.begin_read(0..1);
    o.end_write(discard, vec![], 0);
    assert!(o.end_read(&ticket, &[tag]).is_ok());
    assert!(read(&mut o, 0..1, &[0]).is_ok());
}

#[test]
fn a_read_from_before_a_discard_does_not_decide_what_it_leaves() {
    let mut o = Oracle::new(1 << 20, 1);
    let tag = o.begin_write(0..1, false, false);
    o.end_write(tag, vec![], 0);
    // Power goes: the sector shows the write, or zeros.
    o.new_session(|_| false, |_, _| false);
    let ticket = o.begin_read(0..1);
    let discard = o.begin_write(0..1, true, true);
    o.end_write(discard, vec![], 0);
    assert!(o.end_read(&ticket, &[tag]).is_ok());
    assert!(read(&mut o, 0..1, &[0]).is_ok());
}

#[test]
fn failed_writes_stay_open_until_the_next_session() {
    let mut o = Oracle::new(1 << 20, 1);
    let tag = o.begin_write(0..1, false, false);
    o.fail_write(tag);
    assert!(read(&mut o, 0..1, &[0]).is_ok());
    assert!(read(&mut o, 0..1, &[tag]).is_ok());
    o.new_session(|_| true, |_, _| false);
    assert!(read(&mut o, 0..1, &[tag]).is_ok());
    assert!(read(&mut o, 0..1, &[0]).is_err());
}

#[test]
fn what_is_called_the_same_must_be_possible() {
    use sheep_datapath::Difference::{Data, Same, Zero};
    let mut o = Oracle::new(1 << 20, 1);
    let first = o.begin_write(0..2, false, false);
    o.end_write(first, vec![], 0);
    let old = o.frozen();
    let second = o.begin_write(1..2, false, false);
    o.end_write(second, vec![], 0);
    let ticket = o.begin_read(0..4);
    assert_eq!(o.end_diff(&ticket, &[(1, Same), (1, Data), (2, Same)], Some(&old)), Ok(3));
    assert_eq!(o.end_diff(&ticket, &[(4, Data)], Some(&old)), Ok(0), "too much may be said");
    assert!(o.end_diff(&ticket, &[(2, Same)], Some(&old)).is_err(), "sector 1 was written");
    assert!(o.end_diff(&ticket, &[(1, Zero)], Some(&old)).is_err(), "sector 0 is not zeros");
    assert_eq!(o.end_diff(&ticket, &[(2, Data), (2, Same)], None), Ok(2));
    assert!(o.end_diff(&ticket, &[(1, Same)], None).is_err(), "sector 0 is allocated");
    assert!(o.end_diff(&ticket, &[(5, Data)], None).is_err() && o.end_diff(&ticket, &[], None).is_err());
    // What is written meanwhile may be in it or not.
    let third = o.begin_write(0..1, false, false);
    o.end_write(third, vec![], 0);
    assert_eq!(o.end_diff(&ticket, &[(1, Same)], Some(&old)), Ok(1));
}

#[test]
fn what_a_smaller_volume_lost_does_not_come_back() {
    let mut oracle = Oracle::new(64 * 512, 1);
    let tag = oracle.begin_write(40..64, false, false);
    oracle.end_write(tag, vec![(0, 0)], 1);
    assert!(oracle.resize(48 * 512).is_err(), "nobody has made it smaller");
    let zeros = oracle.begin_write(48..64, true, false);
    oracle.end_write(zeros, vec![(0, 0)], 1);
    oracle.may_shrink(48);
    let snapshot = oracle.frozen();
    assert!(oracle.may_have(48 * 512) && oracle.may_have(50 * 512) && !oracle.may_have(47 * 512));
    oracle.resize(48 * 512).unwrap();
    oracle.size_is_known();
    oracle.new_session(|_| false, |_, _| true);
    assert!(oracle.resize(40 * 512).is_err());
    oracle.resize(64 * 512).unwrap();
    assert!(read(&mut oracle, 48..64, &[tag; 16]).is_err());
    assert!(read(&mut oracle, 48..64, &[0; 16]).is_ok());
    // A snapshot that was taken when that was not known yet may be as small, too.
    assert!(snapshot.may_have(48 * 512) && !snapshot.may_have(40 * 512));
}
