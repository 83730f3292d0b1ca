//! Garbage, and packets that were true once: nothing panics, nothing grows, the ring goes on.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use bytes::Bytes;
use proptest::prelude::*;
use sheep_totem::Output;
use support::net::ms;
use support::{Net, Random};

#[test]
fn garbage_and_replay_do_not_disturb_a_ring() {
    let mut net = Net::new(1, 3);
    net.tells_primary = true;
    net.record = true;
    net.settle(&[1, 2, 3], ms(3000));
    (0..30).for_each(|_| {
        assert!(net.submit(2));
        net.run(ms(3));
    });
    net.run(ms(1000));
    net.record = false;
    let id = net.together(&[1, 2, 3]);
    let recorded: Vec<Bytes> = net.recorded.clone();
    assert!(recorded.len() > 100);
    let mut random = Random(5);
    for _ in 0..20_000 {
        let mut bytes = recorded[random.range(0, recorded.len() as u64) as usize].to_vec();
        match random.range(0, 3) {
            // Replay as it was: authentication does not stop that.
            0 => {}
            1 => bytes.truncate(random.range(0, bytes.len() as u64) as usize),
            _ => bytes.iter_mut().for_each(|b| *b = random.next() as u8),
        }
        net.with(3, |ring, now| ring.handle_packet(now, &bytes));
    }
    net.run(ms(3000));
    assert_eq!(net.together(&[1, 2, 3]), id, "{}", net.describe());
}

#[test]
fn mangled_packets_never_panic_nor_pile_up() {
    for seed in 0..20 {
        let mut net = Net::new(seed, 3);
        net.unchecked = true;
        net.record = true;
        net.run(ms(2000));
        (0..10).for_each(|n| assert!(net.submit(1 + n % 3)));
        net.run(ms(1000));
        let recorded = net.recorded.clone();
        let mut random = Random(seed);
        for _ in 0..3000 {
            let mut bytes = recorded[random.range(0, recorded.len() as u64) as usize].to_vec();
            for _ in 0..random.range(1, 4) {
                let at = random.range(40, bytes.len() as u64) as usize;
                bytes[at] = random.next() as u8;
            }
            net.with(3, |ring, now| ring.handle_packet(now, &bytes));
            if random.chance(3) {
                net.run(ms(20));
            }
        }
        net.run(ms(100));
        assert!(net.ring(3).stats().malformed > 0);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..50)) {
        let mut net = Net::new(1, 1);
        net.run(ms(500));
        for (i, packet) in packets.iter().enumerate() {
            let mut bytes = packet.clone();
            if bytes.len() > 40 {
                // A header that is believed.
                bytes[..8].copy_from_slice(&[b'S', b'H', b'R', b'G', 1, (i % 7) as u8, 0, 0]);
                bytes[8..24].copy_from_slice(&support::net::CLUSTER.0.to_le_bytes());
            }
            let now = net.now;
            net.ring(1).handle_packet(now, &bytes);
            let mut outputs = 0;
            while let Some(output) = net.ring(1).poll_output() {
                outputs += 1;
                if let Output::Send { packet, .. } = output {
                    prop_assert!(packet.len() <= 8704);
                }
            }
            prop_assert!(outputs < 20);
        }
    }
}
