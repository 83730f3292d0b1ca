//! Broken variants, to show that the checkers catch them.

/// A rule of the data path to leave out on purpose. Takes effect only in builds with the cargo feature
/// `mutants`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// FLUSH asks only the members that acknowledged the writes, not the present sets.
    FlushOldSet,
    /// A replica answers fetches and standings without having applied the asker's epoch.
    SourceAtOlderEpoch,
    /// A copy with a higher version is kept at validation instead of being made equal to the current one.
    HigherVersionWins,
    /// A copy is deleted because a peer lacks the object.
    DeleteOnAbsence,
    /// A write that the copy has already is answered as if the copy were behind.
    ResendIsBehind,
    /// A take-over serves without the final flush of the VDI.
    SettleWithoutFlush,
    /// A fetched copy does not take over the hot mark of its source.
    HotNotInherited,
    /// After a restart of all members each one takes its own copy for current.
    EachDecides,
    /// A restart does not end a copy's being current.
    RestartedIsCurrent,
    /// Map entries are written before the objects they name are durable.
    MapBeforeData,
    /// An object is cloned from a copy that may not be current.
    ClonesAnyCopy,
    /// Creating an object does not replace an orphan.
    CreateKeepsOrphan,
    /// Blocks are fetched from whatever version the source has by then.
    PatchAnyVersion,
    /// A copy of another version whose blocks are all equal keeps its own version.
    EqualBlocksAreEqualVersions,
    /// A copy is made equal without the zeros of its source.
    PatchIgnoresZeros,
    /// A scrub takes the own copy for right although most copies of its version differ.
    ScrubTrustsSelf,
    /// A scrub makes the own copy equal to any other version that it meets.
    ScrubIgnoresVersion,
    /// A discarded object counts as gone although a node has left that may have a copy.
    DiscardForgetsLeavers,
    /// A lost object is given up although a node that is away may have it.
    AcceptLossWhileDown,
    /// A listed copy is called current whatever its version.
    ConfirmAnyVersion,
    /// A copy is called "never current" although a disk of that epoch is not here.
    NeverWithLostDisk,
    /// A disk that was opened anew has lost nothing.
    ReplugIsLive,
    /// A gateway takes what a member held for held, although the member has lost a disk.
    GatewayForgetsLostDisk,
    /// A read shows a write that not all members have answered.
    ReadsUnanswered,
    /// A take-over decides about an object with fewer than `min_copies` members.
    SettlesBelowMin,
    /// A map object that nobody has is taken for empty.
    LostMapIsEmpty,
    /// What is read to flatten a clone is written over what clients have written meanwhile.
    FillsOverWrites,
    /// An entry says that nothing is absent before what makes that true is durable.
    FilledBeforeDurable,
    /// Requests are served while an epoch counts on a disk that has failed.
    ServesWithLostDisk,
    /// A sweep reads a map object that may change from one of its members.
    SweepReadsOneCopy,
    /// A sweep deletes before the maps that it has read are durable.
    SweepUnsecured,
    /// A sweep deletes copies of what a node that is away may bring back.
    SweepForgetsLeavers,
    /// A sweep is done although a storage node is away.
    SweptWhileAway,
    /// What partial objects of clones read through is not reached.
    SweepIgnoresPartial,
    /// A sweep takes what it cannot read for empty.
    SweepSkipsUnread,
    /// What nobody has of an object is not looked for in what it began as.
    LostIsNotInherited,
    /// A sweep finds a vid empty whose objects may have what younger ones have lost.
    SweepTakesTheLast,
    /// A sweep finds a vid empty while nodes recover that may need its objects.
    SweptUnrecovered,
    /// Copies of forgotten vids stay.
    KeepsForgotten,
    /// A write is carried out although its vid is not the working one any more.
    WritesFrozen,
    /// An object of another lineage stays in the map of a clone that is flattened.
    FlattensForeign,
    /// A clone counts as flattened before its map says so durably.
    FlattenedUnfinished,
    /// Who has paused for a group goes on after some time without the order's saying so.
    PauseEndsByItself,
    /// A snapshot is ordered before what was answered is durable and in the map.
    SnapshotUndrained,
    /// A new map object is used without its being ordered.
    MapUnordered,
    /// A new map object is ordered, and its entries count, before it is durable.
    MapNotAwaited,
    /// The holder does not say which vids its map has ceased to name.
    ReplacedUnsaid,
}

/// The broken variant in force, if any; always none without the cargo feature `mutants`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mutants {
    #[cfg(feature = "mutants")]
    active: Option<Mutant>,
}

impl Mutants {
    /// Leaves one rule out.
    #[cfg(feature = "mutants")]
    pub fn only(mutant: Mutant) -> Self {
        Self { active: Some(mutant) }
    }

    /// Whether this rule is left out.
    #[cfg(feature = "mutants")]
    pub fn is(self, mutant: Mutant) -> bool {
        self.active == Some(mutant)
    }

    /// Whether this rule is left out.
    #[cfg(not(feature = "mutants"))]
    pub fn is(self, _mutant: Mutant) -> bool {
        false
    }
}
