//! Nodes that are to store nothing more. One after the other is drained, while the cluster can do without it, and its pod ends only
//! when nothing is there that is not elsewhere. A selector that was mistyped, or a label that was lost, so costs no data.

use super::observed::{ClusterView, Observed};
use super::redundancy::{self, is_up, storage_nodes};
use super::validate::Valid;
use sheep_api::v1::Node;

/// What to do next about nodes that are to store nothing more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// Nothing: there are none.
    Done,
    /// This node is to be drained: its data go to others while it runs.
    Drain {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
    },
    /// This node is wanted again, and was drained from here.
    TakeBack {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
    },
    /// One is being drained, and nobody has to do anything.
    UnderWay(String),
    /// It does not go on, for this reason.
    Wait(String),
}

/// Names of nodes, beside those that should store data, that storage pods stay on. What was in the list of the DaemonSet stays there
/// until it is not needed, whether its pod is seen or not; and of several that are not needed one goes at a time.
pub(crate) fn kept(observed: &Observed, wanted: &[String]) -> Vec<String> {
    let mut names: Vec<String> = match &observed.listed {
        Some(listed) => listed.clone(),
        // There is no list yet: whoever stores something is on it.
        None => observed.pods.iter().map(|pod| pod.node.clone()).chain(known(observed)).collect(),
    };
    names.retain(|name| !name.is_empty() && !wanted.contains(name));
    names.sort_unstable();
    names.dedup();
    let ending = observed.pods.iter().any(|pod| pod.leaving && !redundancy::is_given_up(observed, pod));
    if !ending && let Some(at) = names.iter().position(|name| !needed(observed, name)) {
        names.remove(at);
    }
    names
}

/// Names that the cluster knows, of nodes that Kubernetes has.
fn known(observed: &Observed) -> impl Iterator<Item = String> + '_ {
    let records = observed.cluster.iter().flat_map(|view| storage_nodes(&view.nodes));
    let there = move |name: &&String| observed.nodes.iter().any(|node| node.name == **name);
    records.map(|record| &record.name).filter(there).cloned()
}

/// Whether a storage node on the node `name` of Kubernetes may have something that is not elsewhere.
fn needed(observed: &Observed, name: &str) -> bool {
    let answer = observed.pods.iter().find(|pod| pod.node == name).and_then(|pod| pod.answer.as_ref());
    let Some(view) = &observed.cluster else {
        // Nobody can say that it has not, but itself, if it is in no cluster.
        return answer.is_none_or(|answer| !answer.info.cluster_id.is_empty());
    };
    // What it had in a directory that is lost is not there any more.
    let mine = |record: &&Node| match answer {
        Some(answer) => record.id == answer.id,
        None => record.name == name,
    };
    storage_nodes(&view.nodes).filter(mine).any(|record| !may_end(view, record))
}

/// Whether nothing is lost, and no vote is missing, if a node ends for good.
fn may_end(view: &ClusterView, record: &Node) -> bool {
    matches!(record.state.as_str(), "leaving" | "out") && !record.voter && is_elsewhere(view, record)
}

/// Whether all others have what they should, without this node.
fn is_elsewhere(view: &ClusterView, record: &Node) -> bool {
    let mut others = storage_nodes(&view.nodes).filter(|other| other.id != record.id && other.state != "out");
    let whole = |other: &Node| is_up(other) && other.recovered_epoch >= view.info.epoch;
    others.next().is_some_and(whole) && others.all(whole)
}

/// Names of the nodes that the operator has drained, or may drain next: the memory by which it takes them back.
pub(crate) fn drained(cluster: &Valid, observed: &Observed) -> Vec<String> {
    let mut names: Vec<String> = observed
        .drained
        .iter()
        .filter(|name| is_drained(observed, name))
        .chain(&cluster.leaving)
        .cloned()
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Whether a node may be one that was drained: nobody says that it is not.
fn is_drained(observed: &Observed, name: &str) -> bool {
    let Some(view) = &observed.cluster else { return true };
    storage_nodes(&view.nodes).any(|record| record.name == name && record.state != "up")
}

/// Decides.
pub(crate) fn next(cluster: &Valid, observed: &Observed) -> Leaving {
    let Some(view) = &observed.cluster else { return Leaving::Done };
    let wanted_again = |node: &&Node| {
        node.state == "leaving"
            && cluster.storage_nodes.contains(&node.name)
            && observed.drained.contains(&node.name)
    };
    if let Some(node) = storage_nodes(&view.nodes).find(wanted_again) {
        return Leaving::TakeBack { id: node.id.clone(), name: node.name.clone() };
    }
    let mut unwanted: Vec<&Node> =
        storage_nodes(&view.nodes).filter(|node| cluster.leaving.contains(&node.name)).collect();
    unwanted.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    if let Some(node) = unwanted.iter().find(|node| node.state == "leaving" && !is_elsewhere(view, node)) {
        return Leaving::UnderWay(format!("Node {} gives its data to others. Nothing to do.", node.name));
    }
    let undrained: Vec<&Node> = unwanted.iter().copied().filter(|node| node.state == "up").collect();
    if let Some(first) = undrained.first() {
        return drain(cluster, observed, view, first, &undrained);
    }
    match unwanted.iter().find(|node| node.state == "leaving" && node.voter) {
        Some(node) => Leaving::Wait(format!(
            "Node {} has given its data away, and its pod stays because it has a vote that no other node can take over: add a \
             storage node, or lower the number of voters (`dog cluster settings --max-voters`).",
            node.name
        )),
        None => Leaving::Done,
    }
}

fn drain(
    cluster: &Valid,
    observed: &Observed,
    view: &ClusterView,
    node: &Node,
    undrained: &[&Node],
) -> Leaving {
    let names: Vec<&str> = undrained.iter().map(|node| node.name.as_str()).collect();
    let names = names.join(", ");
    let stay = storage_nodes(&view.nodes)
        .filter(|node| node.state == "up" && !cluster.leaving.contains(&node.name))
        .count();
    let copies = view.info.settings.as_ref().and_then(|settings| settings.copies).unwrap_or_default();
    let copies = copies.max(cluster.copies);
    if stay < copies as usize {
        return Leaving::Wait(format!(
            "Nodes that store data do not fit storage.nodeSelector: {names}. They are kept, because only {stay} would be left for \
             {copies} copies: correct storage.nodeSelector or the labels of the nodes, add nodes, or lower redundancy.copies."
        ));
    }
    if let Some(why) = redundancy::missing(observed) {
        return Leaving::Wait(format!(
            "Nodes that store data do not fit storage.nodeSelector: {names}. They are drained one after the other, and not now: {why}"
        ));
    }
    if !observed.drained.contains(&node.name) {
        return Leaving::UnderWay(format!(
            "Node {} is to store nothing more: it is drained next.",
            node.name
        ));
    }
    Leaving::Drain { id: node.id.clone(), name: node.name.clone() }
}

#[cfg(test)]
mod tests {
    use super::super::observed::Observed;
    use super::super::orders::{self, Order};
    use super::super::testing::{member, serving, sheepdog, valid};
    use super::super::validate::validate;
    use super::*;

    /// A cluster in which the last of the nodes has lost its label.
    fn unlabelled(nodes: &[&str]) -> Observed {
        let mut observed = serving(nodes);
        observed.nodes.last_mut().unwrap().labels.clear();
        observed.drained = drained(&valid(&observed), &observed);
        observed
    }

    fn step(observed: &Observed) -> Leaving {
        next(&valid(observed), observed)
    }

    fn drain_of(name: &str) -> Leaving {
        Leaving::Drain { id: format!("{name}-id"), name: name.into() }
    }

    fn waits(observed: &Observed) -> String {
        match step(observed) {
            Leaving::Wait(why) => why,
            other => panic!("{other:?}"),
        }
    }

    /// The drained node leaves the list of the DaemonSet, and is forgotten.
    #[test]
    fn a_node_is_drained_before_its_pod_ends_and_then_removed() {
        let mut observed = unlabelled(&["a", "b", "c", "d"]);
        assert_eq!(valid(&observed).leaving, ["d"]);
        assert_eq!(step(&observed), drain_of("d"));
        let view = observed.cluster.as_mut().unwrap();
        view.nodes[3].state = "leaving".into();
        (view.info.epoch, view.info.nodes_recovering) = (4, 3);
        assert!(matches!(step(&observed), Leaving::UnderWay(_)));
        assert_eq!(valid(&observed).kept, ["d"], "others fetch what it has");
        let view = observed.cluster.as_mut().unwrap();
        view.nodes.iter_mut().for_each(|node| node.recovered_epoch = 4);
        view.info.nodes_recovering = 0;
        let mut voter = observed.clone();
        voter.cluster.as_mut().unwrap().nodes[3].voter = true;
        assert_eq!(valid(&voter).kept, ["d"], "it votes");
        assert!(waits(&voter).contains("Node d has given its data away"));
        assert_eq!(redundancy::missing(&voter), None, "nobody has to wait for it");
        assert_eq!((valid(&observed).kept, step(&observed)), (Vec::<String>::new(), Leaving::Done));
        let orders = |observed: &Observed| orders::next(&valid(observed), observed, &step(observed));
        assert_eq!(orders(&observed), [], "it runs");
        // Its pod ends. It does not come back because its node is not seen to be leaving any more.
        observed.listed = Some(vec!["a".into(), "b".into(), "c".into()]);
        observed.pods[3].leaving = true;
        let view = observed.cluster.as_mut().unwrap();
        view.ring_members.pop();
        (view.nodes[3].in_ring, view.nodes[3].state) = (false, "down".into());
        assert_eq!(valid(&observed).kept, [""; 0]);
        observed.pods.pop();
        assert_eq!(orders(&observed), [Order::Remove { id: "d-id".into(), name: "d".into() }]);
    }

    /// Its label comes back at any moment: it stores data again. One that a person has drained is left alone.
    #[test]
    fn a_node_that_is_wanted_again_is_taken_back() {
        let mut observed = unlabelled(&["a", "b", "c", "d"]);
        let mut unwritten = observed.clone();
        unwritten.drained.clear();
        assert!(matches!(step(&unwritten), Leaving::UnderWay(_)), "it must be known who has drained it");
        observed.nodes[3] = serving(&["d"]).nodes.remove(0);
        assert_eq!(drained(&valid(&observed), &observed), [""; 0], "it was not drained yet");
        observed.cluster.as_mut().unwrap().nodes[3].state = "leaving".into();
        assert_eq!(drained(&valid(&observed), &observed), ["d"]);
        let taken = Leaving::TakeBack { id: "d-id".into(), name: "d".into() };
        assert_eq!(step(&observed), taken);
        let orders = orders::next(&valid(&observed), &observed, &taken);
        assert_eq!(orders, [Order::TakeBack { id: "d-id".into(), name: "d".into() }]);
        let mut by_hand = observed.clone();
        by_hand.drained.clear();
        assert_eq!(step(&by_hand), Leaving::Done);
        observed.cluster = None;
        assert_eq!(drained(&valid(&observed), &observed), ["d"], "nobody says that it is up");
    }

    /// A word that was mistyped, or labels that somebody removed, is no reason to give up data.
    #[test]
    fn a_wrong_selector_drains_nobody() {
        let observed = serving(&["a", "b", "c", "d", "e"]);
        let mut sheepdog = sheepdog();
        sheepdog.spec.storage.node_selector = [("disk".to_owned(), "fsat".to_owned())].into();
        let why = validate(&sheepdog, &observed).unwrap_err();
        assert!(why.contains("no node fits storage.nodeSelector"), "{why}");
        // It fits some, and they are too few.
        let mut some = observed.clone();
        some.nodes[0].labels.insert("disk".into(), "fsat".into());
        let cluster = validate(&sheepdog, &some).unwrap();
        assert_eq!(cluster.storage_nodes, ["a"]);
        assert_eq!(cluster.kept, ["b", "c", "d", "e"], "their pods stay");
        match next(&cluster, &some) {
            Leaving::Wait(why) => assert!(why.contains("only 1 would be left for 3 copies"), "{why}"),
            other => panic!("{other:?}"),
        }
        // Kubernetes says that there are no nodes.
        some.nodes.clear();
        assert!(validate(&sheepdog, &some).is_err());
    }

    #[test]
    fn one_node_is_drained_after_the_other() {
        let mut observed = serving(&["a", "b", "c", "d", "e"]);
        for node in &mut observed.nodes[3..] {
            node.labels.clear();
        }
        observed.drained = drained(&valid(&observed), &observed);
        assert_eq!(observed.drained, ["d", "e"]);
        assert_eq!(step(&observed), drain_of("d"));
        let mut degraded = observed.clone();
        degraded.cluster.as_mut().unwrap().nodes[0].state = "down".into();
        assert!(waits(&degraded).contains("only 2 would be left"));
        let mut recovering = observed.clone();
        recovering.cluster.as_mut().unwrap().info.nodes_recovering = 1;
        assert!(waits(&recovering).contains("d, e. They are drained one after the other, and not now"));
        // Both were drained, by hand: their pods end one after the other.
        let view = observed.cluster.as_mut().unwrap();
        view.nodes[3].state = "leaving".into();
        view.nodes[4].state = "leaving".into();
        assert_eq!(valid(&observed).kept, ["e"]);
        observed.listed.as_mut().unwrap().retain(|name| name != "d");
        observed.pods[3].leaving = true;
        assert_eq!(valid(&observed).kept, ["e"], "the other's pod is not gone yet");
        observed.pods.remove(3);
        assert_eq!(valid(&observed).kept, [""; 0]);
    }

    #[test]
    fn who_is_in_the_list_stays_until_it_is_not_needed() {
        // Its pod is not seen: it was evicted, and comes back.
        let mut observed = unlabelled(&["a", "b", "c", "d"]);
        observed.pods.pop();
        assert_eq!(valid(&observed).kept, ["d"]);
        // Nobody says how the cluster is.
        let mut silent = unlabelled(&["a", "b"]);
        silent.cluster = None;
        assert_eq!(valid(&silent).leaving, ["b"]);
        // There is no list yet.
        let mut first = unlabelled(&["a", "b"]);
        first.listed = None;
        assert_eq!(valid(&first).leaving, ["b"]);
        // Its disk is dead, and others have made its copies anew: its pod, which does not start, may end.
        let mut out = unlabelled(&["a", "b", "c", "d"]);
        out.pods[3].answer = None;
        out.cluster.as_mut().unwrap().nodes[3].state = "down".into();
        assert_eq!(valid(&out).kept, ["d"]);
        out.cluster.as_mut().unwrap().nodes[3].state = "out".into();
        assert_eq!(valid(&out).kept, [""; 0]);
        // The only other one is down: it has not what it should.
        let mut last = unlabelled(&["a", "b"]);
        let view = last.cluster.as_mut().unwrap();
        (view.nodes[0].state, view.nodes[1].state) = ("down".into(), "leaving".into());
        assert_eq!(valid(&last).kept, ["b"]);
    }

    /// An earlier node of the same machine, whose directory is lost, is nothing to wait for.
    #[test]
    fn what_a_machine_had_in_a_lost_directory_does_not_keep_its_pod() {
        let mut observed = unlabelled(&["a", "b", "c", "d"]);
        let mut old = member("d", "storage", "down");
        old.id = "old-id".into();
        let view = observed.cluster.as_mut().unwrap();
        view.nodes[3] = old;
        assert_eq!(valid(&observed).kept, [""; 0]);
    }
}
