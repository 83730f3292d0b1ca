//! What extended virtual synchrony promises, checked while it happens.

use bytes::Bytes;
use sheep_totem::{Configuration, ConfigurationKind, Delivery, Output, TokenSeen};
use sheep_types::{ConfigId, Member, NodeId, Place, Time};
use std::collections::{BTreeMap, BTreeSet};

/// What one run of one node saw in one configuration.
#[derive(Default, Debug)]
struct Stay {
    regular: Vec<(Member, Bytes)>,
    transitional: Vec<(Member, Bytes)>,
    moving: Vec<Member>,
    next: Option<ConfigId>,
    safe: u64,
    rotation: u64,
    visited: Option<Time>,
}

#[derive(Default, Debug)]
struct History {
    current: Option<ConfigId>,
    in_transition: bool,
    stays: BTreeMap<ConfigId, Stay>,
    submitted: BTreeSet<Bytes>,
    seen: BTreeMap<Bytes, u32>,
    crashed: bool,
}

#[derive(Default)]
pub struct Checker {
    histories: BTreeMap<Member, History>,
    /// Highest configuration that a node installed, over all its runs.
    highest: BTreeMap<NodeId, ConfigId>,
    members: BTreeMap<ConfigId, Vec<Member>>,
    order: BTreeMap<(ConfigId, u64), (Member, Bytes)>,
    notes: BTreeMap<(Member, Member), Place>,
    pub configurations: u64,
    pub delivered: u64,
    pub transitional: u64,
    pub safes: u64,
    pub visits: u64,
}

impl Checker {
    pub fn submitted(&mut self, me: Member, payload: Bytes) {
        self.histories.entry(me).or_default().submitted.insert(payload);
    }

    pub fn crashed(&mut self, me: Member) {
        self.histories.entry(me).or_default().crashed = true;
    }

    pub fn output(&mut self, now: Time, me: Member, durable: u64, output: &Output) {
        match output {
            Output::Configuration(c) => self.configuration(me, durable, c),
            Output::Deliver(d) => self.deliver(me, d),
            Output::Safe { config, position } => self.safe(me, *config, *position),
            Output::Token(token) => self.token(now, me, token),
            Output::Send { .. } | Output::PersistNumber(_) => {}
        }
    }

    fn configuration(&mut self, me: Member, durable: u64, c: &Configuration) {
        let history = self.histories.entry(me).or_default();
        assert!(c.members.contains(&me) && c.members.is_sorted_by_key(|m| m.node));
        assert_eq!(c.previous, history.current, "{me:?} comes from elsewhere");
        if c.kind == ConfigurationKind::Transitional {
            let current = history.current.expect("transition from nowhere");
            assert!(!history.in_transition);
            history.in_transition = true;
            let stay = history.stays.get_mut(&current).unwrap();
            stay.moving = c.members.clone();
            stay.next = Some(c.id);
            return;
        }
        assert_eq!(history.in_transition, history.current.is_some());
        history.in_transition = false;
        if let Some(current) = history.current {
            assert_eq!(history.stays[&current].next, Some(c.id));
        }
        history.current = Some(c.id);
        history.stays.insert(c.id, Stay::default());
        assert!(durable >= c.id.number, "{me:?} uses {:?} which is not durable", c.id);
        let highest = self.highest.entry(me.node).or_default();
        assert!(c.id.number > highest.number, "{me:?} goes from {highest:?} to {:?}", c.id);
        *highest = c.id;
        let members = self.members.entry(c.id).or_insert_with(|| c.members.clone());
        assert_eq!(*members, c.members, "two memberships of {:?}", c.id);
        self.configurations += 1;
        self.check_synchrony(me, c.id);
    }

    /// Who moves together from one configuration to the next has delivered the same in it.
    fn check_synchrony(&self, me: Member, now_in: ConfigId) {
        let mine = &self.histories[&me].stays;
        let Some((from, stay)) = mine.iter().find(|(_, stay)| stay.next == Some(now_in)) else { return };
        assert!(stay.moving.contains(&me));
        for (other, history) in self.histories.iter().filter(|(other, _)| **other != me) {
            let Some(theirs) = history.stays.get(from).filter(|s| s.next == Some(now_in)) else { continue };
            if history.current.is_none_or(|c| c < now_in) {
                continue;
            }
            assert!(stay.moving.contains(other), "{other:?} moved with {me:?} unnoticed");
            assert_eq!(stay.moving, theirs.moving);
            assert_eq!(stay.regular.len(), theirs.regular.len(), "{me:?} {other:?} {from:?} to {now_in:?}");
            assert_eq!(stay.regular, theirs.regular, "{me:?} {other:?} {from:?} to {now_in:?}");
            assert_eq!(stay.transitional, theirs.transitional, "{me:?} {other:?} {from:?} to {now_in:?}");
        }
    }

    fn deliver(&mut self, me: Member, d: &Delivery) {
        let history = self.histories.entry(me).or_default();
        assert_eq!(Some(d.config), history.current, "delivery outside of the configuration");
        let stay = history.stays.get_mut(&d.config).unwrap();
        *history.seen.entry(d.payload.clone()).or_default() += 1;
        assert_eq!(history.seen[&d.payload], 1, "{me:?} delivered twice");
        assert!(self.members[&d.config].contains(&d.sender));
        assert_eq!(d.transitional, history.in_transition, "regular and transitional deliveries are mixed up");
        if d.transitional {
            assert!(stay.moving.contains(&d.sender), "delivered behind a hole from one that is gone");
            stay.transitional.push((d.sender, d.payload.clone()));
            self.transitional += 1;
            return;
        }
        stay.regular.push((d.sender, d.payload.clone()));
        assert_eq!(d.position, stay.regular.len() as u64, "gap at {me:?}");
        let known = self.order.entry((d.config, d.position)).or_insert_with(|| (d.sender, d.payload.clone()));
        assert_eq!(*known, (d.sender, d.payload.clone()), "two orders at {:?} {}", d.config, d.position);
        self.delivered += 1;
    }

    fn safe(&mut self, me: Member, config: ConfigId, position: u64) {
        for member in &self.members[&config] {
            let stay = self.histories.get(member).and_then(|h| h.stays.get(&config));
            // A member may have received without having installed; then it has not delivered.
            let Some(stay) = stay else { continue };
            assert!(
                stay.regular.len() as u64 >= position,
                "{position} of {config:?} is not safe: {member:?}"
            );
        }
        let stay = self.histories.get_mut(&me).unwrap().stays.get_mut(&config).unwrap();
        assert!(position > stay.safe && position <= stay.regular.len() as u64);
        stay.safe = position;
        self.safes += 1;
    }

    fn token(&mut self, now: Time, me: Member, token: &TokenSeen) {
        let members = &self.members[&token.config];
        assert!(token.notes.iter().map(|(m, _)| m).eq(members.iter()));
        assert!(token.notes.iter().all(|(_, note)| note.written_rotation <= token.rotation));
        let history = &self.histories[&me];
        assert_eq!(history.current, Some(token.config));
        let before = history.stays[&token.config].rotation;
        assert!(token.rotation > before);
        if before > 0 {
            let passed = token.passed_previous.expect("not the first visit");
            assert!(passed <= now);
            // Whoever is a member has handled the token since then: what leases rest on.
            for other in members.iter().filter(|m| **m != me) {
                let visited = self.histories[other].stays.get(&token.config).and_then(|s| s.visited);
                assert!(visited.is_some_and(|at| at >= passed), "{other:?} did not see rotation of {me:?}");
            }
        }
        let stay = self.histories.get_mut(&me).unwrap().stays.get_mut(&token.config).unwrap();
        stay.rotation = token.rotation;
        self.notes.extend(token.notes.iter().map(|(other, note)| ((me, *other), note.durable)));
        stay.visited = Some(now);
        self.visits += 1;
    }

    /// At the end, in peace: everybody has delivered what it sent itself.
    pub fn check_self_delivery(&self) {
        for (me, history) in self.histories.iter().filter(|(_, h)| !h.crashed) {
            for payload in &history.submitted {
                assert_eq!(history.seen.get(payload), Some(&1), "{me:?} lost its own {payload:?}");
            }
        }
    }

    /// Messages delivered by one run of a node in a configuration.
    pub fn count(&self, me: Member, config: ConfigId) -> usize {
        self.histories.get(&me).and_then(|h| h.stays.get(&config)).map_or(0, |s| s.regular.len())
    }

    /// What one node last read of another's durable place.
    pub fn note(&self, me: Member, of: Member) -> Place {
        self.notes.get(&(me, of)).copied().unwrap_or_default()
    }

    pub fn safe_position(&self, me: Member, config: ConfigId) -> u64 {
        self.histories.get(&me).and_then(|h| h.stays.get(&config)).map_or(0, |s| s.safe)
    }

    pub fn rotation(&self, me: Member, config: ConfigId) -> u64 {
        self.histories.get(&me).and_then(|h| h.stays.get(&config)).map_or(0, |s| s.rotation)
    }
}
