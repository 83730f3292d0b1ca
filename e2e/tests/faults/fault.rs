//! What happens to nodes: dealt from decks by a seed, inflicted, ended.

use std::time::{Duration, Instant};

use anyhow::Result;
use sheep_e2e::oracle::Random;
use sheep_e2e::{Cluster, Cut, NetLab, Signal};

/// How long a node stands still in the long ones: far beyond every time limit of the ring, the lease and the data
/// path, so that the others go on without it, and it wakes up into a world that did.
const LONG_STOP: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Kill,
    LongStop,
    ShortStop,
    Cut(Cut),
    /// Only one path is cut: from the victim to another node, or from that one to the victim.
    PathOut,
    PathIn,
}

/// A quarter of the faults are long stops: they make most of the time, and nothing else shows so much.
const KINDS: [Kind; 12] = [
    Kind::Kill,
    Kind::Kill,
    Kind::Kill,
    Kind::LongStop,
    Kind::LongStop,
    Kind::LongStop,
    Kind::ShortStop,
    Kind::Cut(Cut::Both),
    Kind::Cut(Cut::In),
    Kind::Cut(Cut::Out),
    Kind::PathOut,
    Kind::PathIn,
];

/// Cards in random order, dealt until none is left, then all of them anew: so every kind comes as often as it should.
pub(crate) struct Deck<T> {
    cards: Vec<T>,
    left: Vec<T>,
}

impl<T: Copy> Deck<T> {
    pub(crate) fn new(cards: &[T]) -> Deck<T> {
        Deck { cards: cards.to_vec(), left: Vec::new() }
    }

    pub(crate) fn deal(&mut self, random: &mut Random) -> T {
        if self.left.is_empty() {
            self.left.clone_from(&self.cards);
        }
        let at = random.below(self.left.len() as u64) as usize;
        self.left.swap_remove(at)
    }
}

pub(crate) fn kinds() -> Deck<Kind> {
    Deck::new(&KINDS)
}

/// One fault at one node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) victim: u8,
    /// The other end of a path that is cut.
    other: u8,
    length: Duration,
}

impl Fault {
    /// `spared` is a node whose links stay whole: when one link breaks, the ring may go on without either of its ends.
    pub(crate) fn new(kind: Kind, victim: u8, spared: Option<u8>, random: &mut Random) -> Fault {
        let others: Vec<u8> = (1..=3).filter(|node| *node != victim && Some(*node) != spared).collect();
        let other = random.pick(&others);
        let length = match kind {
            Kind::Kill => Duration::from_millis(random.below(4_000)),
            Kind::LongStop => LONG_STOP,
            Kind::ShortStop | Kind::Cut(_) | Kind::PathOut | Kind::PathIn => {
                Duration::from_millis(500 + random.below(5_000))
            }
        };
        Fault { kind, victim, other, length }
    }

    /// Lets it happen, keeps it for its time by calling `meanwhile` again and again, ends it.
    pub(crate) fn inflict(
        &self,
        lab: &NetLab,
        cluster: &mut Cluster,
        mut meanwhile: impl FnMut(&mut Cluster) -> Result<()>,
    ) -> Result<()> {
        let Fault { kind, victim, other, length } = *self;
        match kind {
            Kind::Kill => cluster.node(victim).kill(),
            Kind::LongStop | Kind::ShortStop => cluster.node(victim).signal(Signal::Stop)?,
            Kind::Cut(cut) => lab.cut(victim, cut)?,
            Kind::PathOut => lab.cut_path(victim, other)?,
            Kind::PathIn => lab.cut_path(other, victim)?,
        }
        let start = Instant::now();
        while start.elapsed() < length {
            meanwhile(cluster)?;
        }
        match kind {
            Kind::Kill => cluster.node(victim).start().map(drop),
            Kind::LongStop | Kind::ShortStop => cluster.node(victim).signal(Signal::Continue),
            Kind::Cut(_) | Kind::PathOut | Kind::PathIn => lab.heal_all(),
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Fault { kind, victim, other, length } = self;
        let (kind, length) = match kind {
            Kind::PathOut => (format!("path to node {other} cut"), *length),
            Kind::PathIn => (format!("path from node {other} cut"), *length),
            kind => (format!("{kind:?}"), *length),
        };
        write!(f, "node {victim}: {kind} for {:.1} s", length.as_secs_f64())
    }
}

#[test]
fn a_deck_deals_every_card_before_it_deals_one_again() {
    let (mut deck, mut random) = (kinds(), Random::new(1));
    for _ in 0..3 {
        let dealt: Vec<Kind> = KINDS.iter().map(|_| deck.deal(&mut random)).collect();
        let times = |kind| dealt.iter().filter(|dealt| **dealt == kind).count();
        assert!(KINDS.iter().all(|kind| times(*kind) == KINDS.iter().filter(|k| *k == kind).count()));
        assert_eq!(times(Kind::LongStop) * 4, KINDS.len());
    }
}
