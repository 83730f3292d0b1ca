//! What every node has on which pods may use volumes: a gateway, an owner of block devices, and the CSI driver. Three DaemonSets,
//! because they may be changed at different times: the CSI driver whenever one likes, a gateway at the price of a pause, and
//! the owner of devices only when nobody uses one.

use super::object::Object;
use super::pod::{
    CSI_HTTP_PORT, Pods, certificate, certified, container, csi_probes, daemon_set, everywhere, field,
    host_directory, member_probes, member_rights, merge, mount, mount_with, node_rights, on_delete, rolling,
};
use super::storage::seeds;
use super::{DRIVER, Plan, component, secret_name};
use serde_json::{Value, json};
use sheep_tls::Role;

/// The gateway's directory, also on the node if nothing else is said.
const DIRECTORY: &str = "/var/lib/sheepdog/gateway";
/// Sockets and mounts that end with the machine's run.
const RUN: &str = "/run/sheepdog";
/// Where the owner of devices sees the machine's control groups.
const CGROUPS: &str = "/host/cgroup";
/// Other ports than those of a storage node, which may be in the same network.
const PORT: u16 = 7010;
const CONTROL_PORT: u16 = 7012;
const HTTP_PORT: u16 = 7013;

fn gateway_directory(plan: Plan<'_>) -> Value {
    host_directory("directory", &format!("{}/gateway", plan.cluster.directory))
}

pub(super) fn gateways(plan: Plan<'_>) -> Object {
    let asked = &plan.settings.gateway;
    let mut rest = json!({
        "args": [
            DIRECTORY,
            "--gateway",
            "--key", "/etc/sheepdog/key/key",
            "--name", "$(NODE_NAME)",
            "--node-listen", "$(POD_IP)",
            "--ring-port", PORT.to_string(),
            "--data-port", PORT.to_string(),
            "--grpc", format!("$(POD_IP):{CONTROL_PORT}"),
            "--http", format!("$(POD_IP):{HTTP_PORT}"),
            "--nbd-tcp", "none",
            "--nbd-unix", format!("{RUN}/nbd.sock"),
            "--rendezvous", "none",
            "--seed", seeds(plan),
        ],
        "env": [field("NODE_NAME", "spec.nodeName"), field("POD_IP", "status.podIP")],
        "ports": [
            {"name": "ring", "containerPort": PORT, "protocol": "UDP"},
            {"name": "data", "containerPort": PORT, "protocol": "TCP"},
            {"name": "control", "containerPort": CONTROL_PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": HTTP_PORT, "protocol": "TCP"},
        ],
        "securityContext": member_rights(),
        "volumeMounts": [
            mount("directory", DIRECTORY),
            mount("run", RUN),
            {"name": "key", "mountPath": "/etc/sheepdog/key", "readOnly": true},
        ],
    });
    // Storage nodes say whether data is encrypted: what goes to no storage node goes nowhere.
    certified(&mut rest);
    merge(&mut rest, member_probes(HTTP_PORT));
    let spec = json!({
        "hostNetwork": plan.cluster.host_network,
        "dnsPolicy": if plan.cluster.host_network { "ClusterFirstWithHostNet" } else { "ClusterFirst" },
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": 30,
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": everywhere(),
        "containers": [container(plan, "gateway", "sheep", asked, rest)],
        "volumes": [
            gateway_directory(plan),
            host_directory("run", RUN),
            {"name": "key", "secret": {"secretName": secret_name(&plan.cluster.name), "defaultMode": 0o400}},
            certificate(plan, Role::Node, 0o400),
        ],
    });
    let pods = Pods {
        component: component::GATEWAY,
        asked,
        priority: "system-node-critical",
        account: &plan.settings.service_account,
        spec,
    };
    daemon_set(plan, rolling(), pods)
}

pub(super) fn devices(plan: Plan<'_>) -> Object {
    let asked = &plan.settings.device;
    let devices = format!("{RUN}/devices");
    let rest = json!({
        "args": [
            devices,
            "--nbd", format!("{RUN}/nbd.sock"),
            "--node", "$(NODE_NAME)",
            "--cgroups", CGROUPS,
        ],
        "env": [field("NODE_NAME", "spec.nodeName")],
        "securityContext": node_rights(),
        "volumeMounts": [
            mount("dev", "/dev"),
            mount_with("run", RUN, "Bidirectional"),
            mount("cgroup", CGROUPS),
        ],
    });
    let spec = json!({
        // What keeps the devices leaves the container for the machine: it must find the machine's namespaces, and not end with the
        // namespace that it is the first process of. It uses no network, and so keeps none of a dead pod.
        "hostPID": true,
        "hostNetwork": true,
        "automountServiceAccountToken": false,
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": everywhere(),
        "containers": [container(plan, "device", "sheep-device", asked, rest)],
        "volumes": [
            {"name": "dev", "hostPath": {"path": "/dev"}},
            host_directory("run", RUN),
            {"name": "cgroup", "hostPath": {"path": "/sys/fs/cgroup", "type": "Directory"}},
        ],
    });
    let pods = Pods {
        component: component::DEVICE,
        asked,
        priority: "system-node-critical",
        account: &plan.settings.service_account,
        spec,
    };
    daemon_set(plan, on_delete(), pods)
}

pub(super) fn csi(plan: Plan<'_>) -> Object {
    let csi = &plan.settings.csi;
    let kubelet = csi.kubelet_dir.trim_end_matches('/');
    let own = format!("{kubelet}/plugins/{DRIVER}");
    let mut rest = json!({
        "args": [
            "node",
            "--endpoint", "unix:///csi/csi.sock",
            "--server", format!("unix:{DIRECTORY}/control.sock"),
            "--devices", format!("{RUN}/devices/devices.sock"),
            // With an @: the kubelet sends this path as the name of a host, and only so it is one.
            "--registration", format!("/registration/kubelet@{DRIVER}-reg.sock"),
            "--kubelet-endpoint", format!("{own}/csi.sock"),
            "--http", format!("0.0.0.0:{CSI_HTTP_PORT}"),
        ],
        "securityContext": node_rights(),
        "volumeMounts": [
            mount("csi", "/csi"),
            mount("registration", "/registration"),
            // The kubelet names paths in here.
            mount_with("kubelet", kubelet, "Bidirectional"),
            mount("dev", "/dev"),
            mount_with("run", RUN, "HostToContainer"),
            mount("directory", DIRECTORY),
        ],
    });
    merge(&mut rest, csi_probes());
    let spec = json!({
        "automountServiceAccountToken": false,
        // A file system that is being made or checked is not to be left in the middle.
        "terminationGracePeriodSeconds": 300,
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": everywhere(),
        "containers": [container(plan, "csi", "sheep-csi", &csi.node, rest)],
        "volumes": [
            host_directory("csi", &own),
            host_directory("registration", &format!("{kubelet}/plugins_registry")),
            host_directory("kubelet", kubelet),
            {"name": "dev", "hostPath": {"path": "/dev"}},
            host_directory("run", RUN),
            gateway_directory(plan),
        ],
    });
    let pods = Pods {
        component: component::CSI_NODE,
        asked: &csi.node,
        priority: "system-node-critical",
        account: &plan.settings.service_account,
        spec,
    };
    daemon_set(plan, rolling(), pods)
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{empty, settings, valid};
    use super::super::build;

    #[test]
    fn a_driver_that_makes_a_file_system_is_given_time() {
        let observed = empty(&["a"]);
        let objects = build(&valid(&observed), &settings(), &observed);
        let set = objects.iter().find(|object| object.name() == "sheepdog-csi-node").unwrap();
        assert_eq!(set.0["spec"]["template"]["spec"]["terminationGracePeriodSeconds"], 300);
    }
}
