//! Which membership to propose, from who hears whom.
//!
//! Every node that forms a configuration computes this from the same rows, so that all come to the same
//! answer: the nodes are divided into groups in which everybody hears everybody, the best group first.
//! This takes the place of the mutual failure sets of the paper, which can dissolve a ring into
//! singletons when one link breaks.

use crate::codec::Row;
use crate::limits::MAX_MEMBERS;
use sheep_types::{ConfigId, Member};

/// Steps of the search for the best group before what was found is taken. Enough to be exact unless
/// dozens of links are broken; all nodes stop at the same step.
const SEARCH_STEPS: u32 = 2000;

struct Graph {
    members: Vec<Member>,
    /// Per node: those that it hears and that hear it.
    links: Vec<u64>,
    weights: Vec<u32>,
    /// Nodes that come from the newest configuration, a primary one if there is any.
    home: u64,
}

/// How good a group is: weight, size, nodes that stay together, low ids.
type Score = (u32, u32, u32, u64);

/// The group that `me` is in. `rows` are sorted by node id, at most 64, and contain `me`.
pub(crate) fn choose(rows: &[&Row], me: Member) -> Vec<Member> {
    assert!(rows.len() <= 64, "more rows than bits");
    let graph = Graph::new(rows);
    let Some(index) = graph.members.iter().position(|m| *m == me) else { return vec![me] };
    let mut rest = all(rows.len()) & !failed(rows);
    while rest >> index & 1 != 0 {
        let group = first(graph.best_group(rest), MAX_MEMBERS);
        if group >> index & 1 != 0 {
            return graph.names(group);
        }
        rest &= !group;
    }
    vec![me]
}

/// Nodes failed by others. The node with the most accusers goes first, and its own accusations with it;
/// between equals the higher id.
fn failed(rows: &[&Row]) -> u64 {
    let mut out = 0u64;
    let is_out = |out: u64, i: usize| out >> i & 1 != 0;
    loop {
        let accusers = |i: usize, row: &Row| {
            if is_out(out, i) {
                return 0;
            }
            let accuses = |(j, other): (usize, &&Row)| !is_out(out, j) && other.accused.contains(&row.member);
            rows.iter().enumerate().filter(|(j, other)| accuses((*j, other))).count()
        };
        let worst = rows.iter().enumerate().map(|(i, row)| (accusers(i, row), i)).max();
        match worst {
            Some((count, i)) if count > 0 => out |= 1 << i,
            _ => return out,
        }
    }
}

fn all(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

fn first(mut set: u64, max: usize) -> u64 {
    while set.count_ones() as usize > max {
        set &= !(1 << (63 - set.leading_zeros()));
    }
    set
}

fn bits(set: u64) -> impl Iterator<Item = usize> {
    (0..64).filter(move |i| set >> i & 1 != 0)
}

impl Graph {
    fn new(rows: &[&Row]) -> Self {
        let members: Vec<Member> = rows.iter().map(|row| row.member).collect();
        let hears = |i: usize, j: usize| rows[i].heard.contains(&members[j]);
        let linked = |i: usize, j: &usize| i == *j || (hears(i, *j) && hears(*j, i));
        let links_of = |i| (0..rows.len()).filter(|j| linked(i, j)).fold(0, |set, j| set | 1 << j);
        let links = (0..rows.len()).map(links_of).collect();
        let none = ConfigId::default();
        let newest = |primary: bool| {
            rows.iter().filter(|r| r.primary == primary).map(|r| r.previous).max().filter(|id| *id != none)
        };
        let home = newest(true).or_else(|| newest(false));
        let at_home = |row: &Row| Some(row.previous) == home;
        let home = rows.iter().enumerate().filter(|(_, r)| at_home(r)).fold(0, |set, (i, _)| set | 1 << i);
        Self { members, links, weights: rows.iter().map(|r| u32::from(r.weight)).collect(), home }
    }

    fn names(&self, set: u64) -> Vec<Member> {
        bits(set).filter_map(|i| self.members.get(i).copied()).collect()
    }

    fn weight(&self, set: u64) -> u32 {
        bits(set).filter_map(|i| self.weights.get(i)).sum()
    }

    fn score(&self, set: u64) -> Score {
        (self.weight(set), set.count_ones(), (set & self.home).count_ones(), set.reverse_bits())
    }

    /// The best group in which all hear each other. Never empty if `set` is not.
    fn best_group(&self, set: u64) -> u64 {
        let mut best = (Score::default(), 0);
        let mut steps = 0;
        self.search(set, &mut best, &mut steps);
        best.1
    }

    /// Takes out nodes until no two are left that do not hear each other: either the node with the most
    /// broken links, or all that it has none with.
    fn search(&self, set: u64, best: &mut (Score, u64), steps: &mut u32) {
        let broken = |i: usize| (set & !self.links[i]).count_ones();
        let worst = bits(set).map(|i| (broken(i), i)).max();
        match worst {
            None => {}
            Some((0, _)) => {
                let score = self.score(set);
                if score > best.0 {
                    *best = (score, set);
                }
            }
            Some((_, i)) => {
                *steps += 1;
                self.search(set & !(1 << i), best, steps);
                let with = set & self.links[i];
                if *steps < SEARCH_STEPS && self.score(with) > best.0 {
                    self.search(with, best, steps);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sheep_types::{Incarnation, NodeId};

    fn member(n: usize) -> Member {
        Member { node: NodeId(n as u64 + 1), incarnation: Incarnation(1) }
    }

    /// `count` nodes that hear each other but for the listed pairs: (who does not hear, whom).
    fn rows(count: usize, deaf: &[(usize, usize)]) -> Vec<Row> {
        let hears = |i: usize, j: usize| i != j && !deaf.contains(&(i, j));
        (0..count)
            .map(|i| Row {
                member: member(i),
                version: 1,
                number: 0,
                rejoins: 0,
                weight: 1,
                ready: false,
                committing: false,
                primary: false,
                previous: ConfigId::default(),
                heard: (0..count).filter(|j| hears(i, *j)).map(member).collect(),
                accused: Vec::new(),
                chosen: Vec::new(),
            })
            .collect()
    }

    fn group(rows: &[Row], me: usize) -> Vec<u64> {
        let rows: Vec<&Row> = rows.iter().collect();
        choose(&rows, member(me)).iter().map(|m| m.node.0 - 1).collect()
    }

    #[test]
    fn one_broken_link_costs_one_node() {
        let r = rows(3, &[(0, 1)]);
        assert_eq!((group(&r, 0), group(&r, 1), group(&r, 2)), (vec![0, 2], vec![1], vec![0, 2]));
    }

    #[test]
    fn a_node_nobody_hears_does_not_split_the_others() {
        let r = rows(5, &[(1, 0), (2, 0), (3, 0), (4, 0)]);
        assert_eq!(group(&r, 3), [1, 2, 3, 4]);
        assert_eq!(group(&r, 0), [0]);
    }

    #[test]
    fn weight_outvotes_numbers() {
        let mut r = rows(5, &[(0, 3), (1, 3), (0, 4), (1, 4), (2, 3), (2, 4)]);
        (3..5).for_each(|i| r[i].weight = 2);
        assert_eq!(group(&r, 4), [3, 4]);
    }

    #[test]
    fn equal_sides_stay_where_the_primary_was() {
        let mut r = rows(3, &[(0, 1)]);
        let id = ConfigId { number: 9, representative: NodeId(2) };
        (1..3).for_each(|i| (r[i].previous, r[i].primary) = (id, true));
        assert_eq!(group(&r, 2), [1, 2]);
    }

    #[test]
    fn mutual_accusations_fail_one_node_only() {
        let mut r = rows(4, &[]);
        r[0].accused = vec![member(3)];
        r[3].accused = vec![member(0)];
        assert_eq!(group(&r, 0), [0, 1, 2]);
        r[1].accused = vec![member(0)];
        assert_eq!(group(&r, 1), [1, 2, 3]);
        assert_eq!(group(&r, 0), [0]);
    }

    proptest! {
        #[test]
        fn all_agree_and_groups_are_whole(deaf in prop::collection::vec((0usize..9, 0usize..9), 0..30)) {
            let r = rows(9, &deaf);
            for i in 0..9 {
                let mine = group(&r, i);
                prop_assert!(mine.contains(&(i as u64)));
                for j in mine.iter().map(|j| *j as usize) {
                    prop_assert_eq!(group(&r, j), mine.clone());
                    prop_assert!(i == j || r[i].heard.contains(&member(j)));
                }
            }
        }

        #[test]
        fn a_majority_that_hears_itself_is_found(deaf in prop::collection::vec((0usize..9, 0usize..4), 0..40)) {
            // Nodes 4 to 8 hear each other whatever happens to the rest.
            let r = rows(9, &deaf);
            let best = (0..9).map(|i| group(&r, i).len()).max();
            prop_assert!(best >= Some(5));
        }
    }
}
