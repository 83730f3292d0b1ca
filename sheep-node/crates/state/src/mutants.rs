//! Rules left out on purpose, one at a time, to show that the checkers notice.

/// A broken variant. Set with [`ClusterState::set_mutant`](crate::ClusterState::set_mutant).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A node that comes back quickly with a new incarnation makes no new epoch.
    RestartWithoutEpoch,
    /// A command is accepted if its number is anything above the origin's last, not only the next.
    DuplicateFilterAnyLater,
    /// A second attached node that becomes the writer gets the generation of the first.
    SharedGeneration,
    /// A new VDI takes the lowest vid that is free.
    VidReuse,
    /// A lock request's attachment is not looked at, and ending an attachment leaves its lock.
    LockIgnoresAttachment,
    /// A snapshot does not look at what its volume was like.
    SnapshotUnguarded,
    /// A deleted vid is forgotten although others may reach its objects.
    DeletedVidForgotten,
    /// Of several vids that may reach objects of a dead one, only one is asked.
    FrontierOverlooksSiblings,
    /// The map of a dead vid is given up although clones read through it.
    OriginsMapDropped,
    /// When a vid dies, those above it are not swept again.
    DeathLeavesSweepsAlone,
    /// Who holds a volume only to flatten it does not hear that somebody asks for it.
    FlatteningDoesNotYield,
    /// Objects of vids that are not made yet, as far as the state goes, belong to nothing.
    UnbornIsGone,
    /// A volume that is closed, but not settled, can be snapshotted.
    SnapshotUnsettled,
    /// The snapshot of a group does not look whether its pause was called off, or whose it is.
    GroupUnpaused,
    /// What was swept counts, whatever has died or was replaced since it was looked at.
    SweptOfOldState,
    /// Objects are placed by their vid, not by its lineage.
    PlacesByVid,
}
