//! Nodes that pods use volumes on. Without its gateway and the owner of its devices such a node has no volumes: so a change of the nodes
//! that these run on waits until nobody is harmed.

use super::build::{Object, component};
use super::observed::Observed;
use crate::settings::{Component, Settings};

/// Takes away what must not be applied now, and says why, in sentences.
pub(crate) fn hold_back(objects: &mut Vec<Object>, settings: &Settings, observed: &Observed) -> Vec<String> {
    let parts = [
        (component::GATEWAY, "gateway.nodeSelector", &settings.gateway),
        (component::DEVICE, "device.nodeSelector", &settings.device),
        (component::CSI_NODE, "csi.node.nodeSelector", &settings.csi.node),
    ];
    let mut told = Vec::new();
    for (part, field, asked) in parts {
        let Some(node) = unfit(asked, observed) else { continue };
        objects.retain(|object| {
            object.kind() != "DaemonSet"
                || object.0["metadata"]["labels"]["app.kubernetes.io/component"] != part
        });
        told.push(format!(
            "node {node} does not fit {field}, and pods use volumes there, which would be cut off: drain the node first, or correct the \
             selector or the node's labels"
        ));
    }
    told
}

/// A node that is used and that a part is not to run on.
fn unfit<'a>(asked: &Component, observed: &'a Observed) -> Option<&'a str> {
    let fits = |labels: &std::collections::BTreeMap<String, String>| {
        asked.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    let used = observed.nodes.iter().filter(|node| observed.attached.contains(&node.name));
    used.map(|node| (node.name.as_str(), &node.labels))
        .find(|(_, labels)| !fits(labels))
        .map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::super::build::build;
    use super::super::testing::{serving, settings, valid};
    use super::*;

    #[test]
    fn what_serves_volumes_stays_on_nodes_that_have_some() {
        let mut observed = serving(&["a", "b"]);
        let mut settings = settings();
        settings.device.node_selector = [("disk".to_owned(), "fast".to_owned())].into();
        observed.nodes[0].labels.insert("disk".into(), "fast".into());
        let held = |observed: &Observed| {
            let mut objects = build(&valid(observed), &settings, observed);
            let all = objects.len();
            let told = hold_back(&mut objects, &settings, observed);
            let device = objects.iter().any(|object| object.name() == "sheepdog-device");
            (told, device, all - objects.len())
        };
        observed.attached = vec!["a".into()];
        assert_eq!(held(&observed), (Vec::new(), true, 0));
        observed.attached.push("b".into());
        let (told, device, fewer) = held(&observed);
        assert!(told[0].starts_with("node b does not fit device.nodeSelector"), "{told:?}");
        assert_eq!((told.len(), device, fewer), (1, false, 1), "all else is applied");
    }
}
