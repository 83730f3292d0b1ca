//! Rules left out on purpose, by name, in builds that have them (cargo feature `mutants`).
//!
//! Every broken variant of the core crates has a name here (`log:minority-install`), one line about the rule it
//! leaves out, and a way to make the faults that it needs likely. What catches it is never made for it: the same
//! checkers look at every run.

use crate::options::{Fault, Options};
use core::time::Duration;

#[cfg(feature = "mutants")]
mod names;

/// A broken variant, for lists.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Crate and variant, for instance `log:minority-install`.
    pub name: &'static str,
    /// The rule that is left out.
    pub rule: &'static str,
}

/// All broken variants of this build: none without the feature.
pub fn all() -> &'static [Rule] {
    #[cfg(feature = "mutants")]
    return names::RULES;
    #[cfg(not(feature = "mutants"))]
    &[]
}

/// Whether a variant can be asked for.
///
/// # Errors
/// A sentence that says why not.
pub fn check(name: &str) -> Result<(), String> {
    if all().is_empty() {
        return Err("this build has no broken variants: build it with --features mutants".into());
    }
    if all().iter().any(|rule| rule.name == name) {
        return Ok(());
    }
    Err(format!("no broken variant is called {name:?}: see --list-mutants"))
}

/// Whether what a checker said can come of the variant. Broken order shows in the order: as two entries in one
/// place, as states that differ, as a holder too many, as a cluster that does not come back. What the data path's
/// checkers say of such a run is not taken for a proof.
pub fn concerns(name: &str, said: &str) -> bool {
    let order = matches!(name.split_once(':'), Some(("log" | "totem" | "node", _)));
    let of_data = said.contains("sector") || said.contains("operation of") || said.contains("recovers:");
    !order || !of_data || (name.contains("lease") && said.contains("stale"))
}

/// Makes what the variant needs likely: kinds of fault, their frequency, sizes. The checkers stay the same.
pub fn preset(name: &str, options: &mut Options) {
    let network = [Fault::Partition, Fault::OneWay, Fault::BrokenPair, Fault::BadNetwork, Fault::Crash];
    let power = [Fault::PowerCut, Fault::Crash];
    let replicas = [Fault::Crash, Fault::Partition, Fault::PowerCut, Fault::Pause];
    options.fault_interval = options.fault_interval.min(Duration::from_millis(2500));
    match name.split_once(':').unwrap_or_default() {
        (_, rule) if rule.contains("lease") => {
            options.faults = vec![Fault::Pause, Fault::Partition, Fault::OneWay];
            options.rivals = true;
            options.nodes = options.nodes.max(4);
            options.think = Duration::from_millis(10);
        }
        ("state", "lock-ignores-attachment" | "shared-generation") => options.rivals = true,
        ("state" | "datapath", rule) if of_the_tree(rule, options) => {}
        ("log" | "totem", _) => {
            options.faults = network.to_vec();
            options.faults.extend([Fault::SlowDisk, Fault::PowerCut, Fault::LostDisk, Fault::Partition]);
            options.nodes = options.nodes.max(5);
            options.fault_interval =
                Duration::from_millis(if options.seed.is_multiple_of(2) { 500 } else { 1200 });
            options.clients = 1;
            options.think = Duration::from_millis(20);
            options.out_delay = Duration::from_secs(4);
            (options.restless, options.commands) = (true, true);
        }
        ("store", _) => {
            options.faults = power.to_vec();
            options.fault_interval = Duration::from_millis(1500);
            options.think = Duration::from_millis(10);
            options.depth = 8;
        }
        ("datapath", rule) if aimed(rule, options) => {}
        ("datapath", rule) if rule.contains("disk") || rule.contains("replug") => {
            options.faults = vec![Fault::DiskFails, Fault::DiskTaken, Fault::DiskTaken, Fault::Crash];
            options.disks = options.disks.max(2);
            options.copies = 2;
            options.min_copies = 1;
            options.fault_interval = Duration::from_millis(800);
            options.think = Duration::from_millis(10);
            options.depth = 8;
            options.rivals = options.seed.is_multiple_of(2);
        }
        ("datapath", "delete-on-absence" | "source-at-older-epoch" | "hot-not-inherited") => {
            options.faults = vec![Fault::Crash, Fault::Partition, Fault::LostDisk];
            options.nodes = options.nodes.max(5);
            options.out_delay = Duration::from_secs(4);
        }
        _ => {
            options.faults = replicas.to_vec();
            options.min_copies = 1;
            options.think = Duration::from_millis(10);
            options.rivals = true;
        }
    }
}

/// The same for variants that show only where there are snapshots and clones. Gives whether the variant is one of them.
fn of_the_tree(rule: &str, options: &mut Options) -> bool {
    const RULES: [&str; 13] = [
        "snapshot",
        "deleted-vid",
        "frontier",
        "origins-map",
        "death-leaves",
        "unborn",
        "group-",
        "swe",
        "keeps-forgotten",
        "writes-frozen",
        "flatten",
        "places-by-vid",
        "replaced-unsaid",
    ];
    const MORE: [&str; 6] =
        ["vid-reuse", "pause-ends", "map-unordered", "map-not-awaited", "fills-over", "filled-before"];
    if !RULES.iter().chain(&MORE).any(|part| rule.starts_with(part)) {
        return false;
    }
    options.snapshots = true;
    options.rivals = options.seed.is_multiple_of(2);
    options.faults = vec![Fault::Crash, Fault::Partition, Fault::SlowDisk, Fault::PowerCut, Fault::Crash];
    options.min_copies = 1;
    options.work.discards = 8;
    options.think = Duration::from_millis(15);
    true
}

/// The same for variants that need a crash within some milliseconds: gateways are hit, power goes after take-overs,
/// disks are slow, objects come and go. Gives whether the variant is one of them.
fn aimed(rule: &str, options: &mut Options) -> bool {
    let work = &mut options.work;
    match rule {
        "settle-without-flush" | "each-decides" => {
            // Nearly nothing is flushed: not by clients, and, if no node fails alone, not for a new epoch either.
            (work.flushes, work.fua, work.writes) = (0, 0, 25);
            options.flush_interval = Duration::from_secs(10);
            options.faults = vec![Fault::PowerCut];
            options.rivals = true;
        }
        "map-before-data" | "resend-is-behind" => {
            (work.discards, work.fua, options.slowest) = (12, 300_000, 2000);
            options.faults = vec![Fault::SlowDisk, Fault::SlowDisk, Fault::PowerCut, Fault::Crash];
            options.nodes = options.nodes.max(5);
            options.copies = 2;
            options.min_copies = options.min_copies.min(2);
        }
        "create-keeps-orphan" => {
            (work.discards, work.writes) = (15, 35);
            options.clients = 1;
            options.faults = vec![Fault::Crash, Fault::Partition, Fault::Pause, Fault::BrokenPair];
            options.min_copies = 1;
        }
        _ => return false,
    }
    options.aimed = true;
    options.think = Duration::from_millis(10);
    options.depth = 8;
    options.fault_interval = Duration::from_millis(1200);
    true
}

#[cfg(feature = "mutants")]
pub(crate) use names::{control, data, keeps_identity};

#[cfg(not(feature = "mutants"))]
mod none {
    use crate::options::Options;
    use sheep_datapath::{GatewayConfig, ReplicaConfig};
    use sheep_engine::ControlConfig;
    use sheep_store::StoreConfig;

    /// Breaks nothing in the control engine.
    pub(crate) fn control(_: &mut ControlConfig, _: &Options) {}

    /// Breaks nothing in the data path.
    pub(crate) fn data(_: &mut StoreConfig, _: &mut ReplicaConfig, _: &mut GatewayConfig, _: &Options) {}

    /// Identities die with their disks.
    pub(crate) fn keeps_identity(_: &Options) -> bool {
        false
    }
}

#[cfg(not(feature = "mutants"))]
pub(crate) use none::{control, data, keeps_identity};
