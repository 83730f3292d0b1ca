//! Broken variants, to show that the checkers catch them.

/// A rule of the ring to leave out on purpose. Takes effect only in builds with the cargo feature
/// `mutants`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// The durable number is forgotten by a restart.
    NumberForgotten,
    /// A configuration is used before its number is durable.
    NumberNotAwaited,
    /// A member takes part in a configuration whatever number it took before.
    NumberTakenAgain,
    /// A number that others took binds this node too, even if it has no part in their configuration.
    ForeignNumberBinds,
    /// Messages behind a hole get positions in the regular configuration.
    OrderAcrossHole,
    /// The time of a visit is that of the token's arrival, not of its sending a rotation before.
    LeaseFromReceipt,
    /// A message is called safe when the token has shown so once, not twice.
    SafeAtOnce,
    /// Members do not exchange what they have of the last configuration.
    NoExchange,
    /// A join of any node makes a primary configuration form again.
    AnyoneDisturbs,
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
