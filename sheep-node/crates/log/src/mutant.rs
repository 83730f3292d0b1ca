//! Rules that can be left out, to show that the checkers notice.

/// A rule of the log that is left out. Each one is a mistake that loses or duplicates committed entries,
/// or lets a lease live too long; the tests run them all and fail if one is not caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "mutants"), allow(unreachable_pub, dead_code))]
pub enum Mutant {
    /// A configuration whose voters all promised installs a term, majority of the voters or not.
    MinorityInstall,
    /// What is delivered after a hole or in a transitional configuration enters the log.
    IndexAfterHole,
    /// Entries of earlier terms are committed by counting the nodes that hold them.
    CommitOldTerm,
    /// A promise is multicast before it is durable.
    PromiseNotDurable,
    /// A promise ordered in a later configuration than it was made for counts there.
    PromiseOfAnyTerm,
    /// An entry is confirmed before it is durable.
    ConfirmNotDurable,
    /// The voter lists are those of the applied state, not those of the base log.
    VotersFromApplied,
    /// Only the new voter list counts as soon as the change is in the log.
    NewVotersOnly,
    /// Commit places and confirmations are compared by index alone.
    PlaceByIndex,
    /// Fetched entries are taken by index, without looking at the hash chain.
    FetchWithoutChain,
    /// The base is the own log of each node.
    OwnBase,
    /// Commands are sent once and never again.
    NoResend,
    /// A committed command leaves its origin's queue whatever was committed before it.
    DropOutOfOrder,
    /// The lease runs from the receipt of the token.
    LeaseFromReceipt,
    /// The lease is renewed before the commit place on the token is applied.
    LeaseWithoutApplied,
    /// The lease is renewed by any token, supported by voters or not.
    LeaseWithoutSupport,
}

impl Mutant {
    /// All of them.
    #[cfg(feature = "mutants")]
    pub const ALL: &[Self] = &[
        Self::MinorityInstall,
        Self::IndexAfterHole,
        Self::CommitOldTerm,
        Self::PromiseNotDurable,
        Self::PromiseOfAnyTerm,
        Self::ConfirmNotDurable,
        Self::VotersFromApplied,
        Self::NewVotersOnly,
        Self::PlaceByIndex,
        Self::FetchWithoutChain,
        Self::OwnBase,
        Self::NoResend,
        Self::DropOutOfOrder,
        Self::LeaseFromReceipt,
        Self::LeaseWithoutApplied,
        Self::LeaseWithoutSupport,
    ];
}
