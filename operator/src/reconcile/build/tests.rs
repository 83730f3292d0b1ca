use super::super::testing::{empty, kube_node, serving, settings, sheepdog, valid};
use super::super::validate::validate;
use super::*;
use crate::crd::{NetworkProvider, NodeStorage};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn find<'a>(objects: &'a [Object], kind: &str, name: &str) -> &'a Value {
    let found = objects.iter().find(|object| object.kind() == kind && object.name() == name);
    &found.unwrap_or_else(|| panic!("no {kind} {name}")).0
}

/// What Kubernetes would not know would be lost silently.
fn known<T: DeserializeOwned + Serialize>(object: &Value) {
    let typed: T = serde_json::from_value(object.clone()).unwrap();
    let mut there = serde_json::to_value(typed).unwrap();
    let mut wanted = object.clone();
    without_empty(&mut there);
    without_empty(&mut wanted);
    assert_eq!(there, wanted);
}

fn without_empty(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(without_empty);
            map.retain(|_, value| {
                !value.is_null()
                    && value.as_object().is_none_or(|map| !map.is_empty())
                    && value.as_array().is_none_or(|list| !list.is_empty())
            });
        }
        Value::Array(list) => list.iter_mut().for_each(without_empty),
        _ => {}
    }
}

#[test]
fn every_field_is_one_that_kubernetes_knows() {
    let mut observed = serving(&["a", "b", "c"]);
    observed.snapshots = true;
    let objects = build(&valid(&observed), &settings(), &observed);
    for object in &objects {
        match object.kind() {
            "ConfigMap" => known::<ConfigMap>(&object.0),
            "Service" => known::<Service>(&object.0),
            "PodDisruptionBudget" => known::<PodDisruptionBudget>(&object.0),
            "DaemonSet" => known::<DaemonSet>(&object.0),
            "Deployment" => known::<Deployment>(&object.0),
            "CSIDriver" => known::<CSIDriver>(&object.0),
            "StorageClass" => known::<StorageClass>(&object.0),
            "VolumeSnapshotClass" => {}
            other => panic!("a new kind, {other}"),
        }
    }
    let names: Vec<String> = objects.iter().map(|it| format!("{} {}", it.kind(), it.name())).collect();
    assert_eq!(
        names,
        [
            "CSIDriver csi.sheepdog.io",
            "ConfigMap sheepdog-nodes",
            "Service sheepdog-storage",
            "Service sheepdog-control",
            "PodDisruptionBudget sheepdog-storage",
            "DaemonSet sheepdog-storage",
            "DaemonSet sheepdog-gateway",
            "DaemonSet sheepdog-device",
            "DaemonSet sheepdog-csi-node",
            "Deployment sheepdog-csi-controller",
            "StorageClass sheepdog",
            "VolumeSnapshotClass sheepdog",
        ]
    );
}

#[test]
fn everything_goes_with_its_owner() {
    let observed = empty(&["a"]);
    let objects = build(&valid(&observed), &settings(), &observed);
    let driver = find(&objects, "CSIDriver", DRIVER);
    assert_eq!(driver["metadata"]["annotations"][OWNER], "storage/sheepdog", "others see whose it is");
    for object in build(&valid(&observed), &settings(), &observed) {
        let owner = &object.0["metadata"]["ownerReferences"][0];
        match object.namespace() {
            Some(_) => {
                assert_eq!((&owner["kind"], &owner["uid"]), (&"SheepdogCluster".into(), &"u-1".into()))
            }
            None => assert_eq!((&owner["kind"], &owner["uid"]), (&"ClusterRole".into(), &"u-2".into())),
        }
    }
}

#[test]
fn storage_nodes_are_told_who_and_where_they_are() {
    let observed = empty(&["a"]);
    let objects = build(&valid(&observed), &settings(), &observed);
    let set = find(&objects, "DaemonSet", "sheepdog-storage");
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(
        words(container),
        "/var/lib/sheepdog/storage --config /etc/sheepdog/nodes/$(NODE_NAME).toml --key /etc/sheepdog/key/key \
         --name $(NODE_NAME) --node-listen $(POD_IP) --ring-port 7000 --data-port 7000 --grpc $(POD_IP):7002 \
         --http $(POD_IP):7003 --nbd-tcp none --rendezvous none --seed sheepdog-storage.storage.svc:7000 --encrypt-data"
    );
    assert_eq!(set["spec"]["updateStrategy"]["type"], "OnDelete", "pods are replaced when copies allow it");
    assert_eq!(container["securityContext"]["capabilities"]["drop"][0], "ALL");
    assert_eq!(container["securityContext"].get("privileged"), None);
}

fn words(container: &Value) -> String {
    let words: Vec<&str> =
        container["args"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
    words.join(" ")
}

/// Whether the pod's first container has this directory of its node.
fn sees(pod: &Value, of_node: &str, at: &str) -> bool {
    let all = |list: &Value| list.as_array().unwrap().clone();
    all(&pod["volumes"]).iter().filter(|volume| volume["hostPath"]["path"] == of_node).any(|volume| {
        all(&pod["containers"][0]["volumeMounts"])
            .iter()
            .any(|mount| mount["name"] == volume["name"] && mount["mountPath"] == at)
    })
}

/// Without them every end of the container is the end of its devices.
#[test]
fn what_keeps_devices_can_leave_its_container() {
    let observed = empty(&["a"]);
    let objects = build(&valid(&observed), &settings(), &observed);
    let set = &find(&objects, "DaemonSet", "sheepdog-device")["spec"];
    let pod = &set["template"]["spec"];
    assert_eq!(
        words(&pod["containers"][0]),
        "/run/sheepdog/devices --nbd /run/sheepdog/nbd.sock --node $(NODE_NAME) --cgroups /host/cgroup"
    );
    assert!(sees(pod, "/sys/fs/cgroup", "/host/cgroup") && sees(pod, "/run/sheepdog", "/run/sheepdog"));
    assert_eq!((&pod["hostPID"], &pod["hostNetwork"]), (&true.into(), &true.into()));
    assert_eq!(set["updateStrategy"]["type"], "OnDelete");
}

#[test]
fn the_csi_driver_is_asked_how_it_is_where_it_answers() {
    let observed = empty(&["a"]);
    let objects = build(&valid(&observed), &settings(), &observed);
    for (kind, name) in [("DaemonSet", "sheepdog-csi-node"), ("Deployment", "sheepdog-csi-controller")] {
        let driver = &find(&objects, kind, name)["spec"]["template"]["spec"]["containers"][0];
        assert!(words(driver).contains("--http 0.0.0.0:9808"), "{name}: {}", words(driver));
        for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
            let asked = &driver[probe]["httpGet"];
            assert_eq!((&asked["path"], &asked["port"]), (&path.into(), &9808.into()), "{name}");
        }
    }
}

#[test]
fn a_node_has_its_own_configuration() {
    let mut observed = empty(&["a", "b", "c"]);
    observed.nodes[0].labels.insert("topology.kubernetes.io/zone".into(), "east".into());
    observed.nodes[2].disk = None;
    let mut sheepdog = sheepdog();
    sheepdog.spec.storage.nodes = vec![NodeStorage {
        name: "b".into(),
        max_size: Some("10Gi".into()),
        failure_domain: Some("west".into()),
    }];
    let cluster = validate(&sheepdog, &observed).unwrap();
    let objects = build(&cluster, &settings(), &observed);
    let data = &find(&objects, "ConfigMap", "sheepdog-nodes")["data"];
    assert_eq!(data["a.toml"], format!("zone = \"east\"\ncapacity = {}\n", (100u64 << 30) / 100 * 60));
    assert_eq!(data["b.toml"], format!("zone = \"west\"\ncapacity = {}\n", 10u64 << 30));
    assert_eq!(data["c.toml"], "zone = \"\"\ncapacity = 67108864\n", "no share of what nobody knows");
    // It stores data already, and knows its disk itself.
    observed.listed = Some(vec!["c".into()]);
    let objects = build(&validate(&sheepdog, &observed).unwrap(), &settings(), &observed);
    assert_eq!(find(&objects, "ConfigMap", "sheepdog-nodes")["data"]["c.toml"], "zone = \"\"\n");
}

#[test]
fn a_budget_lets_one_pod_go_while_all_copies_are_there_and_none_while_not() {
    let stay = |observed: &Observed| {
        let objects = build(&valid(observed), &settings(), observed);
        find(&objects, "PodDisruptionBudget", "sheepdog-storage")["spec"]["minAvailable"].clone()
    };
    let mut observed = serving(&["a", "b", "c"]);
    assert_eq!(stay(&observed), 2);
    observed.cluster.as_mut().unwrap().info.nodes_recovering = 1;
    assert_eq!(stay(&observed), 3);
    observed.cluster = None;
    assert_eq!(stay(&observed), 3);
}

#[test]
fn snapshots_are_offered_where_kubernetes_has_them() {
    let mut observed = empty(&["a"]);
    let sidecars = |observed: &Observed| {
        let objects = build(&valid(observed), &settings(), observed);
        let deployment = find(&objects, "Deployment", "sheepdog-csi-controller").clone();
        let class = objects.iter().any(|object| object.kind() == "VolumeSnapshotClass");
        (deployment["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), class)
    };
    assert_eq!(sidecars(&observed), (4, false));
    observed.snapshots = true;
    assert_eq!(sidecars(&observed), (5, true));
}

/// Kubernetes ends a pod at once when the affinity of its DaemonSet does not fit its node any more.
#[test]
fn storage_pods_are_on_nodes_by_name_whatever_becomes_of_labels() {
    let mut observed = serving(&["a", "b"]);
    let of = |observed: &Observed| {
        let objects = build(&valid(observed), &settings(), observed);
        let template = &find(&objects, "DaemonSet", "sheepdog-storage")["spec"]["template"];
        let terms =
            &template["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        (terms["nodeSelectorTerms"].clone(), template["metadata"]["annotations"][TEMPLATE].clone())
    };
    let name = |name: &str| serde_json::json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]});
    let (terms, hash) = of(&observed);
    assert_eq!(terms, serde_json::json!([name("a"), name("b")]));
    observed.nodes[1].labels.clear();
    assert_eq!(of(&observed), (terms, hash.clone()), "it has data");
    observed.nodes.push(kube_node("c"));
    let (terms, same) = of(&observed);
    assert_eq!(terms, serde_json::json!([name("a"), name("b"), name("c")]));
    assert_eq!(same, hash, "no other pod is replaced for that");
    // There are no nodes, and no term would mean all of them.
    let (terms, _) = of(&empty(&[]));
    let never = terms[0]["matchExpressions"].as_array().unwrap();
    assert_eq!((&never[0]["operator"], &never[1]["operator"]), (&"Exists".into(), &"DoesNotExist".into()));
    assert_eq!(never[0]["key"], never[1]["key"]);
}

/// The kubelet makes the name of a host of the socket's path.
#[test]
fn the_kubelet_can_name_the_socket_of_registration() {
    let observed = empty(&["a"]);
    let objects = build(&valid(&observed), &settings(), &observed);
    let pod = &find(&objects, "DaemonSet", "sheepdog-csi-node")["spec"]["template"]["spec"];
    let line: Vec<&str> =
        pod["containers"][0]["args"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
    let at = line.iter().position(|word| *word == "--registration").unwrap();
    let socket = line[at + 1].strip_prefix("/registration/").unwrap();
    assert!(socket.contains('@') && socket.ends_with("-reg.sock") && !socket.contains('/'), "{socket}");
}

/// Kubernetes takes an empty map for a change of none, and refuses changes.
#[test]
fn a_class_has_parameters_only_if_there_are_some() {
    let observed = empty(&["a"]);
    let mut settings = settings();
    let class = |settings: &Settings| {
        find(&build(&valid(&observed), settings, &observed), "StorageClass", "sheepdog").clone()
    };
    assert_eq!(class(&settings).get("parameters"), None);
    settings.storage_class.parameters = [("redundancy".to_owned(), "2".to_owned())].into();
    assert_eq!(class(&settings)["parameters"]["redundancy"], "2");
}

#[test]
fn a_template_is_known_by_its_hash() {
    let observed = empty(&["a"]);
    let hash = |settings: &Settings| {
        let objects = build(&valid(&observed), settings, &observed);
        let set = find(&objects, "DaemonSet", "sheepdog-storage");
        set["spec"]["template"]["metadata"]["annotations"][TEMPLATE].as_str().unwrap().to_owned()
    };
    let mut settings = settings();
    let before = hash(&settings);
    assert_eq!(before, hash(&settings), "the same template has the same hash");
    settings.image = "example/sheepdog:2".into();
    assert_ne!(before, hash(&settings));
}

#[test]
fn what_was_asked_for_is_in_every_pod_and_selectors_stay() {
    let observed = empty(&["a"]);
    let mut settings = settings();
    settings.labels = [("team".to_owned(), "blue".to_owned())].into();
    settings.annotations = [("note".to_owned(), "x".to_owned())].into();
    settings.storage.labels = [("app.kubernetes.io/name".to_owned(), "other".to_owned())].into();
    settings.gateway.tolerations =
        serde_json::from_str(r#"[{"key": "disk", "operator": "Exists"}]"#).unwrap();
    let objects = build(&valid(&observed), &settings, &observed);
    for object in &objects {
        assert_eq!(object.0["metadata"]["labels"]["team"], "blue", "{} {}", object.kind(), object.name());
        assert_eq!(object.0["metadata"]["annotations"]["note"], "x");
    }
    let template = &find(&objects, "DaemonSet", "sheepdog-storage")["spec"]["template"];
    assert_eq!(template["metadata"]["labels"]["app.kubernetes.io/name"], "sheepdog");
    let template = &find(&objects, "DaemonSet", "sheepdog-gateway")["spec"]["template"];
    assert_eq!(template["spec"]["tolerations"][1]["key"], "disk");
}

#[test]
fn in_the_network_of_nodes_a_gateway_is_beside_a_storage_node() {
    let observed = empty(&["a"]);
    let mut sheepdog = sheepdog();
    sheepdog.spec.network.provider = NetworkProvider::Host;
    let objects = build(&validate(&sheepdog, &observed).unwrap(), &settings(), &observed);
    let ports = |name: &str| -> Vec<u64> {
        let pod = &find(&objects, "DaemonSet", name)["spec"]["template"]["spec"];
        assert_eq!(
            (&pod["hostNetwork"], &pod["dnsPolicy"]),
            (&true.into(), &"ClusterFirstWithHostNet".into())
        );
        let ports = pod["containers"][0]["ports"].as_array().unwrap();
        ports.iter().map(|port| port["containerPort"].as_u64().unwrap()).collect()
    };
    let (storage, gateway) = (ports("sheepdog-storage"), ports("sheepdog-gateway"));
    assert!(storage.iter().all(|port| !gateway.contains(port)), "{storage:?} {gateway:?}");
}

/// What a pod shows: the variables of its first container, and the Secret that they are of.
fn shows(objects: &[Object], kind: &str, name: &str) -> Option<(String, u64)> {
    let pod = &find(objects, kind, name)["spec"]["template"]["spec"];
    let all = |list: &Value| list.as_array().cloned().unwrap_or_default();
    let volume = all(&pod["volumes"]).into_iter().find(|volume| volume["name"] == "tls")?;
    let container = &pod["containers"][0];
    let mount = all(&container["volumeMounts"]).into_iter().find(|mount| mount["name"] == "tls").unwrap();
    let at = mount["mountPath"].as_str().unwrap();
    for (name, file) in
        [("SHEEP_TLS_CA", "ca.crt"), ("SHEEP_TLS_CERTIFICATE", "tls.crt"), ("SHEEP_TLS_KEY", "tls.key")]
    {
        let variables = all(&container["env"]);
        assert!(variables.contains(&serde_json::json!({"name": name, "value": format!("{at}/{file}")})));
    }
    let secret = &volume["secret"];
    Some((secret["secretName"].as_str().unwrap().to_owned(), secret["defaultMode"].as_u64().unwrap()))
}

#[test]
fn every_pod_has_the_certificate_that_it_needs_and_no_other() {
    let observed = empty(&["a"]);
    let objects = build(&valid(&observed), &settings(), &observed);
    for (kind, name, secret) in [
        ("DaemonSet", "sheepdog-storage", Some(("sheepdog-node-tls".to_owned(), 0o400))),
        ("DaemonSet", "sheepdog-gateway", Some(("sheepdog-node-tls".to_owned(), 0o400))),
        ("DaemonSet", "sheepdog-device", None),
        ("DaemonSet", "sheepdog-csi-node", None),
        ("Deployment", "sheepdog-csi-controller", Some(("sheepdog-client-tls".to_owned(), 0o440))),
    ] {
        assert_eq!(shows(&objects, kind, name), secret, "{name}");
    }
    let text = objects.iter().map(|object| object.0.to_string()).collect::<String>();
    assert!(!text.contains("sheepdog-ca"), "the CA's key is in no pod");
}

#[test]
fn encryption_of_data_is_said_by_storage_nodes_and_may_be_switched_off() {
    let observed = empty(&["a"]);
    let mut sheepdog = sheepdog();
    sheepdog.spec.network.encrypt_data = false;
    let objects = build(&validate(&sheepdog, &observed).unwrap(), &settings(), &observed);
    let container = |objects: &[Object], name: &str| {
        find(objects, "DaemonSet", name)["spec"]["template"]["spec"]["containers"][0].clone()
    };
    assert!(!words(&container(&objects, "sheepdog-storage")).contains("--encrypt-data"));
    let encrypted = build(&valid(&observed), &settings(), &observed);
    let gateway = "sheepdog-gateway";
    assert_eq!(container(&objects, gateway), container(&encrypted, gateway), "gateways stay as they are");
}
