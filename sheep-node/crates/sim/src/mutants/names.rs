//! Names of the broken variants, and where each one goes.

use super::Rule;
use crate::options::Options;
use sheep_datapath::{GatewayConfig, ReplicaConfig};
use sheep_engine::ControlConfig;
use sheep_store::StoreConfig;

/// A variant of one of the crates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Log(sheep_log::Mutant),
    Totem(sheep_totem::Mutant),
    State(sheep_state::Mutant),
    Store(sheep_store::Mutant),
    Data(sheep_datapath::Mutant),
    /// The machine's part: what the daemon does around the engine.
    SameIdentity,
}

/// A table of variants, and the proof that none of an enumeration is missing: a `match` over it.
macro_rules! variants {
    ($($kind:ident: $type:path $(, besides $skip:pat)? => { $($variant:ident = $name:literal: $rule:literal;)* })*) => {
        const KINDS: &[Kind] = &[$($(Kind::$kind(<$type>::$variant),)*)* Kind::SameIdentity];
        /// What people see.
        pub(super) const RULES: &[Rule] = &[
            $($(Rule { name: $name, rule: $rule },)*)*
            Rule {
                name: "node:empty-disk-same-id",
                rule: "an identity dies with its store: a node that comes with empty disks is a new node",
            },
        ];
        /// Does not compile if a variant has no name.
        const _: fn(Kind) = |kind| match kind {
            $($(Kind::$kind(<$type>::$variant) => {})* $(Kind::$kind($skip) => {})?)*
            Kind::SameIdentity => {}
        };
    };
}

variants! {
    Log: sheep_log::Mutant => {
        MinorityInstall = "log:minority-install": "only a majority of the voters installs a term";
        IndexAfterHole = "log:index-after-hole": "what comes after a hole in the order never enters the log";
        CommitOldTerm = "log:commit-old-term": "entries of earlier terms are never committed by counting";
        PromiseNotDurable = "log:promise-not-durable": "a promise is durable before it is sent";
        PromiseOfAnyTerm = "log:promise-of-any-term": "a promise counts only in the term it was made for";
        ConfirmNotDurable = "log:confirm-not-durable": "an entry is confirmed only when it is durable";
        VotersFromApplied = "log:voters-from-applied": "the voter lists are those of the base log";
        NewVotersOnly = "log:new-voters-only": "while a change of voters is open, both lists must agree";
        PlaceByIndex = "log:place-by-index": "places are compared as (term, index, checksum)";
        FetchWithoutChain = "log:fetch-without-chain": "fetched entries must continue the hash chain";
        OwnBase = "log:own-base": "all members of a term start from the best promised log";
        NoResend = "log:no-resend": "what is not committed is sent again in every term";
        DropOutOfOrder = "log:drop-out-of-order": "a command leaves its queue only after those before it";
        LeaseFromReceipt = "log:lease-from-receipt": "the lease runs from when the token was passed on";
        LeaseWithoutApplied = "log:lease-without-applied": "a renewal waits until what is committed is applied";
        LeaseWithoutSupport = "log:lease-without-support": "a renewal needs the support of a majority of voters";
    }
    Totem: sheep_totem::Mutant => {
        NumberForgotten = "totem:number-forgotten": "the ring's number survives restarts";
        NumberNotAwaited = "totem:number-not-awaited": "a configuration's number is durable before its use";
        NumberTakenAgain = "totem:number-taken-again": "a node takes part in configurations of growing numbers only";
        ForeignNumberBinds = "totem:foreign-number-binds": "groups that form at once do not hinder each other";
        OrderAcrossHole = "totem:order-across-hole": "messages behind a hole are not in the regular order";
        LeaseFromReceipt = "totem:lease-from-receipt": "a visit is dated by the token's sending, not its receipt";
        SafeAtOnce = "totem:safe-at-once": "safe means that the token has shown so twice";
        NoExchange = "totem:no-exchange": "members bring each other up to date before they move on";
        AnyoneDisturbs = "totem:anyone-disturbs": "a primary admits strangers by agreement only";
    }
    State: sheep_state::Mutant => {
        RestartWithoutEpoch = "state:restart-without-epoch": "a restart is always a new epoch";
        DuplicateFilterAnyLater = "state:duplicate-filter-any-later": "a command is taken only as the origin's next one";
        SharedGeneration = "state:shared-generation": "a generation belongs to one writer";
        VidReuse = "state:vid-reuse": "a vid is never used again";
        LockIgnoresAttachment = "state:lock-ignores-attachment": "a lock needs the present attachment and ends with it";
        SnapshotUnguarded = "state:snapshot-unguarded": "a snapshot names the generation that it was ordered under";
        DeletedVidForgotten = "state:deleted-vid-forgotten": "a deleted vid is known while others come from it";
        FrontierOverlooksSiblings = "state:frontier-overlooks-siblings": "a sweep asks everybody in the frontier";
        OriginsMapDropped = "state:origins-map-dropped": "a dead vid keeps its map while a lineage has it as origin";
        DeathLeavesSweepsAlone = "state:death-leaves-sweeps-alone": "a sweep is due again when one of the frontier dies";
        FlatteningDoesNotYield = "state:flattening-does-not-yield": "who flattens for nobody hears of who asks";
        UnbornIsGone = "state:unborn-is-gone": "births that the state has not reached are not judged";
        SnapshotUnsettled = "state:snapshot-unsettled": "a volume is settled before it is frozen";
        GroupUnpaused = "state:group-unpaused": "the snapshot of a group counts only during its pause";
        SweptOfOldState = "state:swept-of-old-state": "a sweep counts for the state that it looked at";
        PlacesByVid = "state:places-by-vid": "objects are placed by lineage";
    }
    Store: sheep_store::Mutant, besides sheep_store::Mutant::None => {
        InPlace = "store:in-place": "a flushed block is never overwritten in place";
        RecordBeforeData = "store:record-before-data": "records become durable after the data they describe";
        NoVerify = "store:no-verify": "the last batch is verified at start-up";
        EarlyReuse = "store:early-reuse": "freed blocks are reused when the freeing is durable";
        NoSync = "store:no-sync": "a flush is a sync of the disk";
        EarlySwitch = "store:early-switch": "a checkpoint is used when it is durable";
        NoSyncBeforeSuperblock = "store:no-sync-before-superblock": "a checkpoint is durable before a superblock names it";
        NoSyncAfterSuperblock = "store:no-sync-after-superblock": "the old checkpoint is free when the new superblock is durable";
        CheckpointBeforeLog = "store:checkpoint-before-log": "a checkpoint waits for the batch that it was frozen at";
        EarlyPageReuse = "store:early-page-reuse": "pages that the checkpoint on disk names are not reused";
        OldMap = "store:old-map": "a map page counts with what has changed since it was written";
        NoOpening = "store:no-opening": "a store serves when a batch of this opening is in the log";
    }
    Data: sheep_datapath::Mutant => {
        FlushOldSet = "datapath:flush-old-set": "FLUSH asks the present members of every set";
        SourceAtOlderEpoch = "datapath:source-at-older-epoch": "a source has applied the asker's epoch";
        HigherVersionWins = "datapath:higher-version-wins": "a copy is validated by being made equal to a current one";
        DeleteOnAbsence = "datapath:delete-on-absence": "nothing is deleted because a peer lacks it";
        ResendIsBehind = "datapath:resend-is-behind": "a write that is there already is answered with success";
        SettleWithoutFlush = "datapath:settle-without-flush": "a take-over flushes before it serves";
        HotNotInherited = "datapath:hot-not-inherited": "a fetched copy inherits the mark of unconfirmed writes";
        EachDecides = "datapath:each-decides": "after a restart of all copies one node decides for all";
        RestartedIsCurrent = "datapath:restarted-is-current": "a restart ends a copy's being current";
        MapBeforeData = "datapath:map-before-data": "an object is durable before the map names it";
        CreateKeepsOrphan = "datapath:create-keeps-orphan": "a creation replaces an orphan";
        ClonesAnyCopy = "datapath:clones-any-copy": "an object is cloned from a current copy only";
        PatchAnyVersion = "datapath:patch-any-version": "all blocks of a fetch are of one version";
        EqualBlocksAreEqualVersions = "datapath:equal-blocks-are-equal-versions": "a copy made equal takes the version over too";
        PatchIgnoresZeros = "datapath:patch-ignores-zeros": "a copy made equal takes zeros over too";
        ScrubTrustsSelf = "datapath:scrub-trusts-self": "what most copies of a version hold is right";
        ScrubIgnoresVersion = "datapath:scrub-ignores-version": "a scrub repairs to the same version, or to one that all had";
        DiscardForgetsLeavers = "datapath:discard-forgets-leavers": "a discarded object is gone only when nobody can have it";
        AcceptLossWhileDown = "datapath:accept-loss-while-down": "an object is given up only when nobody can have it";
        ConfirmAnyVersion = "datapath:confirm-any-version": "only an equal version makes a copy current as it is";
        NeverWithLostDisk = "datapath:never-with-lost-disk": "only all the disks of an epoch can say that there was no copy";
        ReplugIsLive = "datapath:replug-is-live": "a disk that was opened anew has lost what it had not flushed";
        GatewayForgetsLostDisk = "datapath:gateway-forgets-lost-disk": "a member that has lost a disk gets unflushed writes again";
        ReadsUnanswered = "datapath:reads-unanswered": "a read shows no write that not all have answered";
        SettlesBelowMin = "datapath:settles-below-min": "a take-over waits until there are enough members";
        LostMapIsEmpty = "datapath:lost-map-is-empty": "a map object that is lost is an error";
        ServesWithLostDisk = "datapath:serves-with-lost-disk": "nothing is answered in an epoch that counts on a lost disk";
        FillsOverWrites = "datapath:fills-over-writes": "what is filled gives way to what clients have written";
        FilledBeforeDurable = "datapath:filled-before-durable": "an entry says that an object is whole when it durably is";
        SweepReadsOneCopy = "datapath:sweep-reads-one-copy": "what any copy of a map names is reached";
        SweepUnsecured = "datapath:sweep-unsecured": "what a sweep has read is durable before anything goes";
        SweepForgetsLeavers = "datapath:sweep-forgets-leavers": "a sweep leaves what a node that is away may bring back";
        SweptWhileAway = "datapath:swept-while-away": "a sweep is done only when it has met every storage node";
        SweepIgnoresPartial = "datapath:sweep-ignores-partial": "a partial object reaches what it lacks blocks of";
        SweepSkipsUnread = "datapath:sweep-skips-unread": "what cannot be read may reach anything";
        LostIsNotInherited = "datapath:lost-is-not-inherited": "what is lost of a clone is taken from what it began as";
        SweepTakesTheLast = "datapath:sweep-takes-the-last": "a sweep leaves what may have blocks that younger objects have lost";
        SweptUnrecovered = "datapath:swept-unrecovered": "a vid is found empty only when all that are up have recovered";
        KeepsForgotten = "datapath:keeps-forgotten": "a node drops what belongs to no vid";
        WritesFrozen = "datapath:writes-frozen": "only the working vid is written";
        FlattensForeign = "datapath:flattens-foreign": "a flat clone names no object of another lineage";
        FlattenedUnfinished = "datapath:flattened-unfinished": "a clone is flat when its map says so durably";
        PauseEndsByItself = "datapath:pause-ends-by-itself": "a pause ends in the order";
        SnapshotUndrained = "datapath:snapshot-undrained": "a snapshot comes after what was answered is durable and entered";
        MapUnordered = "datapath:map-unordered": "a new map object is ordered before it is used";
        MapNotAwaited = "datapath:map-not-awaited": "a new map object is durable before it is ordered";
        ReplacedUnsaid = "datapath:replaced-unsaid": "the holder says what its map has ceased to name";
    }
}

fn chosen(options: &Options) -> Option<Kind> {
    let name = options.mutant.as_ref()?;
    let at = RULES.iter().position(|rule| rule.name == name)?;
    KINDS.get(at).copied()
}

/// Breaks the control engine, if asked to.
pub(crate) fn control(config: &mut ControlConfig, options: &Options) {
    match chosen(options) {
        Some(Kind::Log(mutant)) => config.log.mutant = Some(mutant),
        Some(Kind::Totem(mutant)) => config.ring.mutants = sheep_totem::Mutants::only(mutant),
        Some(Kind::State(mutant)) => config.state_mutant = Some(mutant),
        Some(Kind::Store(_) | Kind::Data(_) | Kind::SameIdentity) | None => {}
    }
}

/// Breaks the data path, if asked to.
pub(crate) fn data(
    store: &mut StoreConfig,
    replica: &mut ReplicaConfig,
    gateway: &mut GatewayConfig,
    options: &Options,
) {
    match chosen(options) {
        Some(Kind::Store(mutant)) => store.mutant = mutant,
        Some(Kind::Data(mutant)) => {
            replica.mutants = sheep_datapath::Mutants::only(mutant);
            gateway.mutants = replica.mutants;
        }
        Some(Kind::Log(_) | Kind::Totem(_) | Kind::State(_) | Kind::SameIdentity) | None => {}
    }
}

/// Whether a node whose disks were replaced goes on under its old name.
pub(crate) fn keeps_identity(options: &Options) -> bool {
    chosen(options) == Some(Kind::SameIdentity)
}
