//! Commands of which it is not known yet what came of them.

use super::Tree;
use crate::oracle::{Mark, Oracle, Tag};
use crate::world::World;
use sheep_state::{ClusterState, Outcome, Refusal};
use sheep_types::{NodeId, VdiId, Vid};

/// How it will be known.
#[derive(Clone, Copy, Debug)]
pub(crate) enum By {
    /// This command was ordered at a node in one of its runs.
    Order { token: u64, at: usize, node: NodeId, run: u64 },
    /// The gateway that has the volume open orders it, or never will when another one has opened it.
    Gateway(VdiId),
}

/// A snapshot that is there if its command took effect.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    pub(crate) volume: VdiId,
    pub(crate) name: String,
    /// What it may contain.
    pub(crate) oracle: Oracle,
    pub(crate) base: Option<VdiId>,
    pub(crate) mark: Mark,
    /// What it makes durable.
    pub(crate) covered: Vec<Tag>,
}

/// What the command does.
#[derive(Clone, Debug)]
pub(crate) enum What {
    /// Snapshots, all or none.
    Snapshots { taken: Vec<Taken>, closed: bool },
    /// A new volume of this name, of a snapshot or blank.
    Make { name: String, of: Option<VdiId>, size: u64 },
    /// Deletion.
    Delete(VdiId),
    /// The volume is as in the snapshot again. The vid it had before.
    Rollback { volume: VdiId, snapshot: VdiId, was: Vid },
    /// The volume grows; whoever opens it sees by how much.
    Grow,
    /// The volume gets smaller; whoever opens it sees whether it has.
    Shrink,
    /// The volume is to be flattened, or not any more: contents stay what they are.
    Flatten,
}

/// A command under way.
#[derive(Clone, Debug)]
pub(crate) struct Limbo {
    pub(crate) by: By,
    pub(crate) what: What,
}

impl What {
    /// What came of it, from the answer: `None` if nothing.
    fn by_answer(&self, result: &Result<Outcome, Refusal>) -> Option<Vec<(VdiId, Vid)>> {
        match result {
            Ok(Outcome::Snapshots(made)) => Some(
                made.iter().flat_map(|made| [(made.vdi, made.vid), (made.volume, made.working)]).collect(),
            ),
            Ok(Outcome::Created { vdi, vid }) => Some(vec![(*vdi, *vid)]),
            Ok(Outcome::RolledBack { vid }) => Some(vec![(VdiId(0), *vid)]),
            Ok(_) => Some(Vec::new()),
            Err(_) => None,
        }
    }

    /// The same, from a state that is from after it.
    fn by_state(&self, state: &ClusterState) -> Result<Option<Vec<(VdiId, Vid)>>, String> {
        let named = |name: &str| state.vdi_by_name(name).map(|record| (record.id, record.vid));
        match self {
            Self::Snapshots { taken, .. } => {
                let found: Vec<_> = taken.iter().filter_map(|taken| named(&taken.name)).collect();
                if !found.is_empty() && found.len() < taken.len() {
                    return Err(format!("of {taken:?} only {found:?} were taken"));
                }
                let volume =
                    |taken: &Taken| (taken.volume, state.vdi(taken.volume).map_or(Vid(0), |v| v.vid));
                let volumes = taken.iter().map(volume);
                let all = || found.iter().copied().zip(volumes).flat_map(|(made, volume)| [made, volume]);
                Ok((!found.is_empty()).then(|| all().collect()))
            }
            Self::Make { name, .. } => Ok(named(name).map(|made| vec![made])),
            Self::Delete(vdi) => Ok(state.vdi(*vdi).is_none().then(Vec::new)),
            Self::Rollback { volume, was, .. } => {
                let vid = state.vdi(*volume).map(|record| record.vid).filter(|vid| vid != was);
                Ok(vid.map(|vid| vec![(VdiId(0), vid)]))
            }
            Self::Grow | Self::Shrink | Self::Flatten => Ok(None),
        }
    }

    /// Volumes that are busy with it.
    fn busy(&self) -> Vec<VdiId> {
        match self {
            Self::Snapshots { taken, closed: true } => taken.iter().map(|taken| taken.volume).collect(),
            Self::Rollback { volume, .. } => vec![*volume],
            _ => Vec::new(),
        }
    }
}

impl Tree {
    /// Begins something that an order does, and keeps busy whom it concerns.
    pub(super) fn begin_busy(&mut self, by: By, what: What) {
        for vdi in what.busy() {
            self.item(vdi).busy = true;
        }
        self.begin(by, what);
    }

    /// It took effect, and made these.
    fn took_effect(&mut self, what: What, made: &[(VdiId, Vid)]) {
        match what {
            What::Snapshots { taken, .. } => {
                for (taken, of) in taken.into_iter().zip(made.chunks(2)) {
                    let [(vdi, vid), (_, working)] = *of else { continue };
                    let volume = self.item(taken.volume);
                    volume.oracle.end_flush(&taken.covered);
                    volume.oracle.goes_on_from(&taken.mark);
                    (volume.base, volume.vid) = (Some(vdi), volume.vid.max(working));
                    let (of, base) = (Some(taken.volume), taken.base);
                    self.add(vdi, vid, taken.name, of, taken.oracle, base);
                }
            }
            What::Make { name, of, size } => {
                let Some((vdi, vid)) = made.first().copied() else { return };
                let Some(of) = of else { return self.made_blank(vdi, vid, name, size) };
                let line = self.line();
                let oracle = self.item(of).oracle.line_from(line, None);
                self.add(vdi, vid, name, None, oracle, Some(of));
            }
            What::Delete(vdi) => self.item(vdi).dead = true,
            What::Rollback { volume, snapshot, .. } => {
                let line = self.line();
                let from = self.item(snapshot).oracle.clone();
                let vid = made.first().map(|(_, vid)| *vid);
                let volume = self.item(volume);
                volume.oracle = from.line_from(line, Some(&volume.oracle));
                volume.base = Some(snapshot);
                volume.vid = vid.unwrap_or(volume.vid);
            }
            What::Grow | What::Shrink | What::Flatten => {}
        }
    }

    fn out_of_limbo(&mut self, number: u64) -> Option<What> {
        let what = self.limbo.remove(&number)?.what;
        for vdi in what.busy() {
            self.item(vdi).busy = false;
        }
        Some(what)
    }

    /// It was answered.
    pub(crate) fn answered(&mut self, number: u64, result: &Result<Outcome, Refusal>) -> Option<What> {
        let what = self.out_of_limbo(number)?;
        if let Some(made) = what.by_answer(result) {
            self.took_effect(what.clone(), &made);
        }
        Some(what)
    }

    /// This state is surely from after it.
    pub(super) fn overtaken(&mut self, number: u64, state: &ClusterState) -> Result<(), String> {
        let Some(what) = self.out_of_limbo(number) else { return Ok(()) };
        if let Some(made) = what.by_state(state)? {
            self.took_effect(what, &made);
        }
        Ok(())
    }

    /// Somebody has opened a volume, and knows this state. If it is a writer, what its former gateway or somebody who saw
    /// it closed has not done by now, will never be done.
    pub(crate) fn opened(&mut self, vdi: VdiId, state: &ClusterState, writes: bool) -> Result<(), String> {
        let over = |limbo: &Limbo| match (&limbo.by, &limbo.what) {
            (By::Gateway(volume), _) => *volume == vdi && writes,
            (_, What::Rollback { volume, was, .. }) => {
                *volume == vdi && (writes || state.vdi(vdi).is_some_and(|record| record.vid != *was))
            }
            _ => false,
        };
        let over: Vec<u64> = self.limbo.iter().filter(|(_, limbo)| over(limbo)).map(|(n, _)| *n).collect();
        over.into_iter().try_for_each(|number| self.overtaken(number, state))?;
        if let Some(record) = state.vdi(vdi).filter(|_| writes) {
            self.item(vdi).vid = record.vid;
        }
        Ok(())
    }

    /// A state from when everything had been answered or was gone.
    pub(crate) fn settled(&mut self, state: &ClusterState) -> Result<(), String> {
        let all: Vec<u64> = self.limbo.keys().copied().collect();
        all.into_iter().try_for_each(|number| self.overtaken(number, state))
    }
}

impl World {
    /// Looks what has come of commands.
    pub(super) fn look_into_limbo(&mut self) {
        let orders: Vec<(u64, By, What)> =
            self.tree.limbo.iter().map(|(n, limbo)| (*n, limbo.by, limbo.what.clone())).collect();
        for (number, by, what) in orders {
            let By::Order { token, at, node, run } = by else { continue };
            if let Some(result) = self.answers.remove(&token) {
                self.tell(&what, &result);
                self.tree.answered(number, &result);
                continue;
            }
            // Entries of a run that is over are refused from the entry on that takes the next run in.
            let lost = self.answers_lost.remove(&token) && self.nodes[at].incarnation == run;
            let later = |running: &&crate::node::Running| {
                running.control.state().node(node).is_some_and(|record| record.incarnation.0 > run)
            };
            let here = self.nodes[at].running.as_ref().filter(|_| lost);
            let state = here.or_else(|| self.nodes.iter().filter_map(|n| n.running.as_ref()).find(later));
            if let Some(state) = state.map(|running| running.control.state().clone())
                && let Err(problem) = self.tree.overtaken(number, &state)
            {
                self.violate(problem);
            }
        }
    }

    /// Counts, and says it to people.
    fn tell(&mut self, what: &What, result: &Result<Outcome, Refusal>) {
        if result.is_ok() {
            match what {
                What::Snapshots { taken, .. } => self.counts.snapshots += taken.len() as u64,
                What::Make { of, .. } => self.counts.clones += u64::from(of.is_some()),
                What::Delete(_) => self.counts.deletions += 1,
                What::Rollback { .. } => self.counts.rollbacks += 1,
                What::Grow => self.counts.grown += 1,
                What::Shrink | What::Flatten => {}
            }
        }
        let what = match what {
            What::Snapshots { taken, .. } => {
                format!("snapshots {:?}", taken.iter().map(|taken| &taken.name).collect::<Vec<_>>())
            }
            other => format!("{other:?}"),
        };
        self.trace.say(self.now, &format!("{what}: {result:?}"));
    }

    /// Whether every command has its answer, or its run is over.
    pub(crate) fn is_out_of_limbo(&self) -> bool {
        self.tree.limbo.values().all(|limbo| match limbo.by {
            By::Order { token, at, run, .. } => {
                let over = self.nodes[at].incarnation != run;
                over || self.answers.contains_key(&token) || self.answers_lost.contains(&token)
            }
            By::Gateway(_) => true,
        })
    }
}
