//! Scripted scenarios.

mod support;

use support::{Net, net::ms};

#[test]
fn three_nodes_form_a_ring_and_order() {
    let mut net = Net::new(1, 3);
    let time = net.settle(&[1, 2, 3], ms(3000));
    println!("formed in {time:?}");
    let id = net.together(&[1, 2, 3]).unwrap();
    for _ in 0..50 {
        (1..=3).for_each(|n| assert!(net.submit(n)));
        net.run(ms(1));
    }
    net.run(ms(500));
    for node in net.nodes.values() {
        assert_eq!(net.checker.count(node.me, id), 150, "{}", net.describe());
        assert_eq!(net.checker.safe_position(node.me, id), 150);
    }
    net.checker.check_self_delivery();
}
