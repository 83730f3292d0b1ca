//! Objects of dead vids that have what younger ones have lost. They fail by panicking.

use super::support::{BLOCK, block};
use super::{Tree, only};
use core::time::Duration;
use sheep_datapath::{Mutants, ReadExtent, VolumeOp, VolumeReply};
use sheep_state::{Command, Settings};
use sheep_types::{ObjectId, VdiId, Vid};

/// A block that the object of the snapshot has, and what it holds.
const LAST: (u64, u64) = (1, 101);

/// A volume of one object, written while a node with the only other copy is away: what it was written over belongs to a
/// snapshot that is dead by now, and nobody reaches it. In both objects a block has rotted.
struct Rotten {
    tree: Tree,
    volume: VdiId,
    snapshot: Vid,
    /// Who is there, and who is away.
    here: u64,
    away: u64,
}

impl Rotten {
    fn new(mutants: Mutants) -> Self {
        let mut tree = Tree::without(8, mutants);
        let volume = only(&tree);
        let snapshot = tree.alive[&volume].vid;
        let data: Vec<u8> = (100..104).flat_map(|tag| block(tag).0).collect();
        tree.run(volume, VolumeOp::Write { offset: 0, data: data.into(), fua: false });
        tree.run(volume, VolumeOp::Flush);
        let set = tree.net.set(ObjectId::data(snapshot, 0));
        // The first node is the one that sweeps.
        let away = *set.iter().find(|node| **node > 1).unwrap();
        let here = *set.iter().find(|node| **node != away).unwrap();
        tree.net.crash(away, 0);
        tree.net.install_without(&[away]);
        let a = tree.snapshot(volume);
        tree.run(volume, VolumeOp::Write { offset: 0, data: block(200).0, fua: false });
        tree.run(volume, VolumeOp::Flush);
        assert_eq!(tree.net.rot_tags(here, &[LAST.1]), 1, "one block for both objects");
        tree.delete(a);
        Self { tree, volume, snapshot, here, away }
    }

    fn is_known(&self) -> bool {
        self.tree.net.log.state.vid(self.snapshot).is_some()
    }

    fn run_for(&mut self, seconds: u64) {
        self.tree.net.run_for(Duration::from_secs(seconds));
    }

    fn set_paused(&mut self, recovery_paused: bool) {
        let state = &self.tree.net.log.state;
        let settings = Settings { recovery_paused, ..state.settings().clone() };
        let seen = state.settings_at();
        self.tree.order(Command::ChangeSettings { settings, seen });
    }

    /// The away node is there again.
    fn come_back(&mut self) {
        self.tree.net.restart(self.away);
        self.tree.net.settle();
    }

    /// What is left of the snapshot goes in the end, whatever became of the block.
    fn ends(&mut self) {
        self.run_for(300);
        assert!(!self.is_known());
        assert!(self.tree.stored().iter().all(|object| object.vid() != self.snapshot));
    }

    /// Whether the volume shows the block.
    fn shows(&mut self) -> bool {
        let offset = LAST.0 * BLOCK as u64;
        let Ok(found) = self.tree.try_run(self.volume, VolumeOp::Read { offset, len: BLOCK as u32 }) else {
            return false;
        };
        let VolumeReply::Read(extents) = found else { panic!("{found:?}") };
        assert!(matches!(&extents[..], [ReadExtent::Data(data)] if *data == block(LAST.1).0));
        true
    }
}

/// The node that is away has the block in the dead object, and only there.
pub(crate) fn what_a_node_that_is_away_may_have_is_not_forgotten(mutants: Mutants) {
    let mut rotten = Rotten::new(mutants);
    let here = rotten.here;
    rotten.tree.net.scrub(here);
    rotten.run_for(60);
    assert!(rotten.is_known());
    rotten.come_back();
    assert!(rotten.shows());
    rotten.ends();
    assert!(rotten.shows());
}

/// Nobody has noticed that the block has rotted, and who would have is kept from it.
pub(crate) fn nothing_is_forgotten_while_nodes_recover(mutants: Mutants) {
    let mut rotten = Rotten::new(mutants);
    rotten.set_paused(true);
    rotten.tree.net.restart(rotten.away);
    rotten.run_for(60);
    assert!(rotten.is_known());
    rotten.set_paused(false);
    rotten.tree.net.settle();
    assert!(rotten.shows());
    rotten.ends();
    assert!(rotten.shows());
}

/// Nobody has the block: it is looked for, and then the snapshot goes all the same.
#[test]
fn what_nobody_has_holds_up_nothing() {
    let mut rotten = Rotten::new(Mutants::default());
    let here = rotten.here;
    rotten.tree.net.scrub(here);
    assert_eq!(rotten.tree.net.rot_tags(rotten.away, &[LAST.1]), 1);
    rotten.come_back();
    assert!(!rotten.shows());
    rotten.ends();
    assert!(!rotten.shows());
}
