//! Broken variants, to show that the checkers catch them.

/// A rule of the store to break on purpose. Without the cargo feature `mutants` there is only
/// [`Mutant::None`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutant {
    /// Break nothing.
    #[default]
    None,
    /// Overwrite blocks where they are.
    #[cfg(feature = "mutants")]
    InPlace,
    /// Let records become durable before the data they describe, and believe them at start-up.
    #[cfg(feature = "mutants")]
    RecordBeforeData,
    /// Believe the last batch at start-up without reading its data.
    #[cfg(feature = "mutants")]
    NoVerify,
    /// Reuse freed blocks at once.
    #[cfg(feature = "mutants")]
    EarlyReuse,
    /// Answer flushes without a sync.
    #[cfg(feature = "mutants")]
    NoSync,
    /// Switch checkpoints before the new one is durable.
    #[cfg(feature = "mutants")]
    EarlySwitch,
    /// Write the superblock of a checkpoint without a sync of the checkpoint before.
    #[cfg(feature = "mutants")]
    NoSyncBeforeSuperblock,
    /// Free what the old checkpoint used without a sync of the new superblock.
    #[cfg(feature = "mutants")]
    NoSyncAfterSuperblock,
    /// Switch checkpoints before the batch that the new one was frozen at is durable.
    #[cfg(feature = "mutants")]
    CheckpointBeforeLog,
    /// Reuse pages that the checkpoint on disk names.
    #[cfg(feature = "mutants")]
    EarlyPageReuse,
    /// Believe a map page without what has changed since it was written.
    #[cfg(feature = "mutants")]
    OldMap,
    /// Serve without a batch of this opening in the log.
    #[cfg(feature = "mutants")]
    NoOpening,
}

macro_rules! broken {
    ($($name:ident => $variant:ident),*) => {
        impl Mutant {
            $(pub(crate) fn $name(self) -> bool {
                #[cfg(feature = "mutants")]
                return self == Self::$variant;
                #[cfg(not(feature = "mutants"))]
                false
            })*
        }
    };
}
broken!(in_place => InPlace, record_before_data => RecordBeforeData, no_verify => NoVerify,
    early_reuse => EarlyReuse, no_sync => NoSync, early_switch => EarlySwitch,
    no_sync_before_superblock => NoSyncBeforeSuperblock, no_sync_after_superblock => NoSyncAfterSuperblock,
    checkpoint_before_log => CheckpointBeforeLog, early_page_reuse => EarlyPageReuse, old_map => OldMap,
    no_opening => NoOpening);
