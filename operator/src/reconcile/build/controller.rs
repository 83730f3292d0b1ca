//! The CSI driver's controller, and the upstream programs that translate objects of Kubernetes into calls.

use super::object::{Object, namespaced, selector};
use super::pod::{
    CSI_HTTP_PORT, Pods, certificate, certified, container, csi_probes, field, merge, no_pod_rights,
    no_rights, template,
};
use super::storage::control_address;
use super::{Plan, component};
use crate::settings::Sidecar;
use serde_json::{Value, json};
use sheep_tls::Role;

/// Arguments of all of them.
const COMMON: [&str; 3] =
    ["--csi-address=/csi/csi.sock", "--leader-election", "--leader-election-namespace=$(NAMESPACE)"];

pub(super) fn deployment(plan: Plan<'_>) -> Object {
    let csi = &plan.settings.csi;
    let asked = &csi.controller;
    let mut driver = json!({
        "args": [
            "controller",
            "--endpoint", "unix:///csi/csi.sock",
            "--server", control_address(plan),
            "--http", format!("0.0.0.0:{CSI_HTTP_PORT}"),
        ],
        "securityContext": no_rights(),
        "volumeMounts": [{"name": "csi", "mountPath": "/csi"}],
    });
    certified(&mut driver);
    merge(&mut driver, csi_probes());
    let mut containers = vec![container(plan, "csi", "sheep-csi", asked, driver)];
    let sidecars = &csi.sidecars;
    containers.push(sidecar(
        plan,
        "provisioner",
        &sidecars.provisioner,
        &["--extra-create-metadata", "--feature-gates=Topology=false", "--timeout=120s"],
    ));
    containers.push(sidecar(plan, "attacher", &sidecars.attacher, &["--timeout=120s"]));
    let resizer = ["--timeout=120s", "--handle-volume-inuse-error=false"];
    containers.push(sidecar(plan, "resizer", &sidecars.resizer, &resizer));
    // It ends if its API is not served, so it comes when that is.
    if plan.observed.snapshots {
        // The driver has no groups of snapshots, and their API is not served everywhere: it would be waited for.
        let arguments =
            ["--extra-create-metadata", "--feature-gates=CSIVolumeGroupSnapshot=false", "--timeout=120s"];
        containers.push(sidecar(plan, "snapshotter", &sidecars.snapshotter, &arguments));
    }
    let spec = json!({
        "securityContext": no_pod_rights(),
        "nodeSelector": {"kubernetes.io/os": "linux"},
        // Without it no volume goes elsewhere when its node dies; so it must not stay long on a node that did.
        "tolerations": [
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5},
        ],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": 100,
            "podAffinityTerm": {
                "topologyKey": "kubernetes.io/hostname",
                "labelSelector": {"matchLabels": selector(plan, component::CSI_CONTROLLER)},
            },
        }]}},
        "containers": containers,
        // For the group: the driver is not root.
        "volumes": [{"name": "csi", "emptyDir": {}}, certificate(plan, Role::Client, 0o440)],
    });
    let pods = Pods {
        component: component::CSI_CONTROLLER,
        asked,
        priority: "system-cluster-critical",
        account: &plan.settings.csi_service_account,
        spec,
    };
    let name = plan.name(component::CSI_CONTROLLER);
    let spec = json!({
        "replicas": csi.controller_replicas,
        "selector": {"matchLabels": selector(plan, component::CSI_CONTROLLER)},
        "template": template(plan, pods),
    });
    namespaced(plan, "apps/v1", "Deployment", &name, component::CSI_CONTROLLER, json!({"spec": spec}))
}

fn sidecar(plan: Plan<'_>, name: &str, sidecar: &Sidecar, arguments: &[&str]) -> Value {
    let arguments: Vec<&str> =
        COMMON.iter().chain(arguments).copied().chain(sidecar.args.iter().map(String::as_str)).collect();
    json!({
        "name": name,
        "image": sidecar.image,
        "imagePullPolicy": plan.settings.image_pull_policy,
        "args": arguments,
        "env": [field("NAMESPACE", "metadata.namespace")],
        "resources": sidecar.resources,
        "securityContext": no_rights(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "csi", "mountPath": "/csi"}],
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{empty, settings, valid};
    use super::super::build;

    #[test]
    fn controllers_are_apart_and_nothing_waits_for_an_api_that_is_not_there() {
        let mut observed = empty(&["a"]);
        observed.snapshots = true;
        let objects = build(&valid(&observed), &settings(), &observed);
        let deployment = objects.iter().find(|object| object.kind() == "Deployment").unwrap();
        let template = &deployment.0["spec"]["template"];
        let apart = &template["spec"]["affinity"]["podAntiAffinity"];
        let term = &apart["preferredDuringSchedulingIgnoredDuringExecution"][0]["podAffinityTerm"];
        assert_eq!(term["topologyKey"], "kubernetes.io/hostname");
        for (key, value) in term["labelSelector"]["matchLabels"].as_object().unwrap() {
            assert_eq!(&template["metadata"]["labels"][key], value, "it selects its own pods");
        }
        let containers = template["spec"]["containers"].as_array().unwrap();
        let snapshotter = containers.iter().find(|container| container["name"] == "snapshotter").unwrap();
        let gate = "--feature-gates=CSIVolumeGroupSnapshot=false";
        assert!(snapshotter["args"].as_array().unwrap().iter().any(|argument| argument == gate));
    }
}
