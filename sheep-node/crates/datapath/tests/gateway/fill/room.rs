//! Where there is little room, on nodes or in memory.

use super::*;

#[test]
fn a_full_member_stops_it_and_takes_nothing_from_readers() {
    let mut clone = Clone::new(5, &GatewayConfig::default());
    let (vdi, handle) = (clone.vdi, clone.world.open(101, clone.vdi));
    clone.world.replicas.values_mut().for_each(|replica| replica.full = true);
    want(&mut clone.world, vdi, true);
    clone.world.run(Duration::from_secs(2));
    let told: Vec<_> = clone.world.gateway(101).flattening().collect();
    assert!(matches!(told[..], [(_, told)] if told.state == FillState::NoRoom), "{told:?}");
    assert_eq!(clone.differs(101, handle), None);
    clone.world.replicas.values_mut().for_each(|replica| replica.full = false);
    clone.world.run(Duration::from_secs(15));
    assert!(clone.run_until_flat());
    assert_eq!(clone.differs(101, handle), None);
}

/// Some member has no room for the last that an object lacks: that is tried again now and then, not all the time.
#[test]
fn a_write_that_cannot_be_stored_keeps_nobody_busy() {
    let mut told = 0;
    for delay in 0..40 {
        let mut clone = Clone::new(5, &GatewayConfig::default());
        let (vdi, handle) = (clone.vdi, clone.world.open(101, clone.vdi));
        want(&mut clone.world, vdi, true);
        clone.world.run(Duration::from_micros(delay * 2300));
        clone.world.replicas.values_mut().for_each(|replica| replica.full = true);
        clone.world.run(Duration::from_secs(2));
        let asked = |world: &World| world.replicas.values().map(|r| r.requests["flush"]).sum::<u64>();
        let before = asked(&clone.world);
        clone.world.run(Duration::from_secs(10));
        let flushes = asked(&clone.world) - before;
        assert!(flushes < 80, "{flushes} flushes in ten seconds, full after {} us", delay * 2300);
        told += u64::from(inherits(&clone.world, vdi));
        assert_eq!(clone.differs(101, handle), None);
        clone.world.replicas.values_mut().for_each(|replica| replica.full = false);
        clone.world.run(Duration::from_secs(15));
        assert!(clone.run_until_flat());
        assert_eq!(clone.differs(101, handle), None);
    }
    assert!(told > 10, "{told}");
}

/// What all volumes of a gateway may keep together is not for fills alone.
#[test]
fn fills_leave_room_for_the_writes_of_others() {
    let config = GatewayConfig { buffer_bytes: OBJECT, ..GatewayConfig::default() };
    let mut clone = Clone::new(1, &config);
    let (vdi, handle) = (clone.vdi, clone.world.open(101, clone.vdi));
    want(&mut clone.world, vdi, true);
    let (mut most, mut rounds) = (0, 0);
    // Nothing becomes durable.
    let nodes: Vec<NodeId> = clone.world.replicas.keys().copied().collect();
    clone.world.deaf.extend(nodes.iter().map(|node| (*node, "flush")));
    while rounds < 300 {
        clone.world.run(ms(5));
        most = most.max(clone.world.gateway(101).unflushed_bytes());
        rounds += 1;
    }
    assert!(most > OBJECT / 4 && most < OBJECT + OBJECT / 4, "{most} bytes");
    clone.world.deaf.clear();
    assert!(clone.run_until_flat());
    assert_eq!(clone.differs(101, handle), None);
}
