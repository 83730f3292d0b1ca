//! Everything that belongs to a volume is killed while a pod writes and verifies; and a node is lost for good.
//!
//! `E2E_DEATHS` sets how often each program is killed (2), `E2E_SEED` when (1).

use crate::product::{
    NAMESPACE, delete, node_of, number, on_node, wait_gone, wait_ready, wait_up, wait_whole,
};
use crate::{product, volumes, writer};
use sheep_e2e::kubernetes::{Daemon, Kubernetes};
use sheep_e2e::oracle::Random;
use sheep_e2e::wait_until;
use std::time::{Duration, Instant};

/// Whom the test kills.
#[derive(Clone, Copy, Debug)]
enum Victim {
    /// On the node of the writer: this pattern is found in its command line.
    Process(&'static str),
    /// Where a part of the product runs that there is one of: a label of its pod, and this in its command line.
    Single(&'static str, &'static str),
    /// On the node of the writer.
    Daemon(Daemon),
}

const VICTIMS: [Victim; 9] = [
    Victim::Process("sheep /var/lib/sheepdog/storage"),
    Victim::Process("sheep /var/lib/sheepdog/gateway"),
    // Who serves the device, and who keeps both that one and the container running.
    Victim::Process("sheep-device .*--role=worker"),
    Victim::Process("sheep-device [^=]*$"),
    Victim::Process("sheep-csi node"),
    Victim::Single("app.kubernetes.io/component=csi-controller", "sheep-csi controller"),
    Victim::Single("app.kubernetes.io/name=sheepdog-operator", "sheep-operator run"),
    Victim::Daemon(Daemon::Kubelet),
    Victim::Daemon(Daemon::Containerd),
];

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn kill(kubernetes: &mut Kubernetes, victim: Victim, node: &str) {
    match victim {
        Victim::Process(pattern) => kubernetes.kill(number(kubernetes, node), pattern).unwrap(),
        Victim::Single(label, pattern) => {
            let selector = format!("--selector={label}");
            let place = node_of(kubernetes, &["--namespace", NAMESPACE, &selector]);
            kubernetes.kill(number(kubernetes, &place), pattern).unwrap();
        }
        Victim::Daemon(daemon) => kubernetes.restart(number(kubernetes, node), daemon).unwrap(),
    }
}

/// All pods of the product are ready again.
fn wait_back(kubernetes: &Kubernetes) {
    wait_until("pods to be ready again", Duration::from_secs(240), Duration::from_millis(500), || {
        // Who is asked may be the one that was killed.
        let Ok(found) = kubernetes.get(&["pods", "--namespace", NAMESPACE]) else { return Ok(false) };
        let ready = |pod: &serde_json::Value| {
            let conditions = pod["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
            conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
        };
        Ok(found["items"].as_array().is_some_and(|pods| pods.iter().all(ready)))
    })
    .unwrap();
}

/// Whoever is killed: a pod that writes sees a pause and no error, and what it was told to be durable is there.
pub(crate) fn of_programs_are_pauses(kubernetes: &mut Kubernetes) {
    let (rounds, seed) = (from_env("E2E_DEATHS", 2), from_env("E2E_SEED", 1));
    let mut random = Random::new(seed);
    println!("E2E_DEATHS={rounds} E2E_SEED={seed}");
    let nodes = kubernetes.nodes();
    let objects =
        product::claim("killed", "256Mi", None) + &writer::writer("killed", "killed", Some(&nodes[0]));
    kubernetes.apply(&objects).unwrap();
    wait_ready(kubernetes, "killed");
    writer::wait_goes_on(kubernetes, "killed");
    for round in 1..=rounds {
        for victim in VICTIMS {
            std::thread::sleep(Duration::from_millis(random.below(3000)));
            kill(kubernetes, victim, &nodes[0]);
            let pause = writer::wait_goes_on(kubernetes, "killed");
            println!("round {round}: {victim:?} killed; written again after {:.1} s", pause.as_secs_f64());
            wait_back(kubernetes);
        }
    }
    wait_whole(kubernetes);
    writer::verify_elsewhere(kubernetes, "killed", "killed", &nodes[1]);
    delete(kubernetes, &["pvc", "killed"]);
    wait_gone(kubernetes, &["volumeattachments"]);
}

/// The pod of a StatefulSet goes on elsewhere when its node is lost, without a hand. The node was not dead but stood still: when it goes
/// on, what its pod still writes is refused, and everything is cleared away there.
pub(crate) fn of_a_node_moves_its_pods(kubernetes: &mut Kubernetes) {
    kubernetes.apply(&volumes::stateful("lost", 1, &writer::container())).unwrap();
    kubernetes.kubectl(["rollout", "status", "statefulset/lost", "--timeout=300s"]).unwrap();
    writer::wait_goes_on(kubernetes, "lost-0");
    let place = node_of(kubernetes, &["lost-0"]);
    let node = number(kubernetes, &place);
    kubernetes.freeze(node).unwrap();
    let begin = Instant::now();
    // The new one begins from file 1 again, so what it writes is not what the old one would.
    wait_until("the pod to run elsewhere", Duration::from_secs(240), Duration::from_millis(500), || {
        let pod = kubernetes.get(&["pod", "lost-0"]).unwrap_or_default();
        let elsewhere = pod["spec"]["nodeName"].as_str().is_some_and(|name| name != place);
        Ok(elsewhere && writer::acked(kubernetes, "lost-0").is_some())
    })
    .unwrap();
    let took = begin.elapsed();
    println!("a pod whose node was lost wrote on elsewhere after {:.0} s", took.as_secs_f64());
    assert!(took < Duration::from_secs(120), "{took:?}");
    writer::wait_goes_on(kubernetes, "lost-0");

    kubernetes.thaw(node).unwrap();
    kubernetes.wait_ready().unwrap();
    wait_up(kubernetes, 3);
    // What the old pod had in hand, and wrote on when it was thawed, was refused.
    let device = device_on(kubernetes, &place);
    wait_until("the old device to be refused", Duration::from_secs(60), Duration::from_secs(1), || {
        let said = kubernetes.kubectl(["logs", "--namespace", NAMESPACE, &device]).unwrap_or_default();
        Ok(said.contains("was taken away from this node; its users get errors"))
    })
    .unwrap();
    writer::wait_goes_on(kubernetes, "lost-0");
    wait_until(
        "nothing of the volume to be left on the old node",
        Duration::from_secs(180),
        Duration::from_secs(1),
        || {
            let mounts = kubernetes.run(node, &["cat", "/proc/self/mountinfo"])?;
            Ok(!mounts.contains("csi.sheepdog.io"))
        },
    )
    .unwrap();
    writer::wait_goes_on(kubernetes, "lost-0");
    let last = writer::stop(kubernetes, "lost-0");
    delete(kubernetes, &["statefulset", "lost"]);
    wait_gone(kubernetes, &["pods"]);
    // The node that was lost gets it back, and reads what the other one wrote.
    wait_whole(kubernetes);
    on_node(kubernetes, "reader", "data-lost-0", &place);
    writer::verify(kubernetes, "reader", last, last);
    delete(kubernetes, &["pod", "reader"]);
    delete(kubernetes, &["pvc", "data-lost-0"]);
    wait_gone(kubernetes, &["volumeattachments"]);
}

/// The pod that owns the block devices of a node.
fn device_on(kubernetes: &Kubernetes, node: &str) -> String {
    let selector = "--selector=app.kubernetes.io/component=device";
    let on_it = format!("--field-selector=spec.nodeName={node}");
    let found = kubernetes.get(&["pods", "--namespace", NAMESPACE, selector, &on_it]).unwrap();
    found["items"][0]["metadata"]["name"].as_str().unwrap().to_owned()
}
