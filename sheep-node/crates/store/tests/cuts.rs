//! The power fails at every disk write of a script, in every way that a disk may take it.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;
use support::crash::swarm;
use support::cuts::*;
use support::script::*;
use support::*;

use sheep_store::*;
use sheep_types::BLOCK_SIZE;

/// Space: more than a group of objects comes and goes, so that space is reserved, given back and used again.
fn space_script() -> Vec<Step> {
    let mut out = Vec::new();
    for n in 0..210 {
        out.push(write(n, u64::from(n) + 1, true, 0, BLOCKS));
    }
    out.extend([FLUSH, Step::Settle]);
    out.extend((3..210).map(|n| Step::Do(Op::Delete { object: object(n) })));
    out.extend([FLUSH, Step::Settle]);
    for n in 0..12 {
        out.extend([write(n, 300 + u64::from(n), n >= 3, n, 3), FLUSH, Step::Settle]);
    }
    out
}

/// A store with little room left: what is freed is written again at once.
fn tight() -> StoreConfig {
    StoreConfig { capacity_limit: Some((16 + 32 + 256) * u64::from(BLOCK_SIZE)), ..config() }
}

fn tight_script() -> Vec<Step> {
    let mut out: Vec<Step> = (0..10).map(|n| write(n, u64::from(n) + 1, true, 0, BLOCKS)).collect();
    out.extend([FLUSH, Step::Settle]);
    for i in 0..24 {
        let sequence = 20 + u64::from(i);
        out.push(write(i % 3, sequence, i % 4 == 0, 0, if i % 4 == 0 { BLOCKS } else { 11 }));
        // What a batch writes and frees again must stay until the next one is durable.
        if i % 3 != 0 {
            out.push(Step::Moves(i));
            out.push(write(i % 3, 300 + sequence, false, 0, 14));
        }
        if i % 5 == 4 {
            out.push(Step::Do(Op::Delete { object: object(5 + i % 2) }));
            out.push(write(5 + i % 2, 100 + sequence, true, 2, 9));
        }
        out.extend([FLUSH, if i % 2 == 0 { Step::Settle } else { Step::Moves(5) }]);
    }
    // Single blocks while a checkpoint goes on: they take any block that is free too early.
    for i in 0..60 {
        out.extend([write(i % 2, 400 + u64::from(i), false, i % BLOCKS, 1), Step::Moves(2)]);
        if i % 2 == 0 {
            out.extend([FLUSH, Step::Moves(2)]);
        }
    }
    out.push(Step::Settle);
    out
}

const DEPTH: Depth = Depth { go_on: 23, random: 2 };

fn check(seen: &Seen) {
    println!("{seen:?}");
    assert!(seen.writes > 120 && seen.opened > 10_000, "{seen:?}");
    assert!(seen.checkpoints >= 3 && seen.pages >= 15 && seen.wraps >= 1 && seen.reused > 5, "{seen:?}");
    assert!(seen.maps >= 5, "{seen:?}");
    assert!(seen.slots[0] >= 2 && seen.slots[1] >= 2, "{seen:?}");
}

#[test]
fn every_write_is_cut() {
    check(&enumerate_script(&config(), &script(), Order::Oldest, DEPTH).unwrap());
}

#[test]
fn every_write_is_cut_when_the_newest_is_done_first() {
    check(&enumerate_script(&config(), &script(), Order::Newest, DEPTH).unwrap());
}

#[test]
fn every_write_is_cut_when_anything_is_done_first() {
    check(&enumerate_script(&config(), &script(), Order::Random(Rng(5)), DEPTH).unwrap());
}

#[test]
fn every_write_is_cut_while_space_comes_and_goes() {
    let config = StoreConfig { batch_bytes: 4096, commit_bytes: 1 << 20, ..config() };
    let depth = Depth { go_on: 100, random: 1 };
    let seen = enumerate_script(&config, &space_script(), Order::Oldest, depth).unwrap();
    println!("{seen:?}");
    assert!(seen.grown >= 3 && seen.punched >= 1 && seen.reused > 2, "{seen:?}");
}

#[test]
fn every_write_is_cut_when_space_is_short() {
    let depth = Depth { go_on: 40, random: 2 };
    let seen = enumerate_script(&tight(), &tight_script(), Order::Oldest, depth).unwrap();
    println!("{seen:?}");
    assert!(seen.reused > 150 && seen.checkpoints >= 1 && seen.writes > 50, "{seen:?}");
}

#[test]
fn every_write_of_making_a_store_is_cut() {
    let mut bench = Bench::open(VirtualDisk::new(CAPACITY), config(), true);
    let (mut made, mut unmade) = (0, 0);
    loop {
        for disk in crashes(&bench.disk, 6) {
            let mut old = Bench::open(disk.clone(), config(), false);
            old.settle();
            let mut bench = match old.events.as_slice() {
                [Event::Ready] => {
                    made += 1;
                    old
                }
                // It was never finished, and can be made again.
                [Event::Failed(StoreError::NotFormatted | StoreError::SuperblockCorrupt)] => {
                    unmade += 1;
                    let mut new = Bench::open(disk, config(), true);
                    new.settle();
                    assert_eq!(std::mem::take(&mut new.events), [Event::Ready], "{:?}", old.events);
                    new
                }
                other => panic!("{other:?}"),
            };
            bench.ok(Op::Write { header: header(1, 1), create: true, offset: 0, body: data(&[7]) });
            bench.flush();
            let mut bench = bench.reopen(config(), 0);
            assert_eq!(bench.read(1, 0, 1).unwrap(), [Cell::Data(7)]);
        }
        if !bench.begin_one() && !bench.finish_one(0) {
            break;
        }
    }
    assert!(made > 5 && unmade > 5, "{made} {unmade}");
}

/// For long runs: `SEEDS=FROM..TO cargo test ... -- --ignored`.
#[test]
#[ignore = "as long as one likes"]
fn many_scripts() {
    let seeds = std::env::var("SEEDS").unwrap();
    let (from, to) = seeds.split_once("..").unwrap();
    for seed in from.parse().unwrap()..to.parse().unwrap() {
        let mut rng = Rng(seed);
        let mut script = Vec::new();
        for sequence in 1..=80 {
            script.push(Step::Do(random_op(&mut rng, 5, sequence)));
            if rng.one_in(2) {
                script.push(FLUSH);
            }
            match rng.below(3) {
                0 => script.push(Step::Settle),
                1 => script.push(Step::Moves(rng.below(8) as u32)),
                _ => {}
            }
        }
        script.push(Step::Settle);
        let order = match rng.below(3) {
            0 => Order::Oldest,
            1 => Order::Newest,
            _ => Order::Random(rng.clone()),
        };
        let depth = Depth { go_on: 7, random: 3 };
        let config = if rng.one_in(3) { config() } else { swarm(seed) };
        let seen = enumerate_script(&config, &script, order, depth);
        println!("seed {seed}: {:?}", seen.unwrap_or_else(|e| panic!("seed {seed}: {e}")));
    }
}

#[cfg(feature = "mutants")]
mod mutants {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// A broken store must be caught by the script, in one order or another.
    fn caught(mutant: Mutant) {
        let scripts = [(tight(), tight_script()), (config(), script())];
        let orders = [Order::Oldest, Order::Newest, Order::Random(Rng(5))];
        let runs = scripts.iter().flat_map(|script| orders.iter().map(move |order| (script, order)));
        let how = runs.enumerate().find_map(|(i, ((config, script), order))| {
            let broken = StoreConfig { mutant, ..config.clone() };
            let run = AssertUnwindSafe(|| {
                enumerate_script(&broken, script, order.clone(), Depth { go_on: 7, random: 3 })
            });
            let said = catch_unwind(run).unwrap_or_else(|_| Err("a panic".into())).err()?;
            Some((i, said))
        });
        let (i, said) = how.unwrap_or_else(|| panic!("{mutant:?} was not caught"));
        println!("{mutant:?}: run {i}: {}", said.chars().take(300).collect::<String>());
    }

    macro_rules! caught {
        ($($name:ident: $variant:ident;)*) => {
            $(#[test]
            fn $name() {
                caught(Mutant::$variant);
            })*
        };
    }

    caught! {
        in_place: InPlace;
        record_before_data: RecordBeforeData;
        no_verify: NoVerify;
        early_reuse: EarlyReuse;
        no_sync: NoSync;
        early_switch: EarlySwitch;
        no_sync_before_superblock: NoSyncBeforeSuperblock;
        no_sync_after_superblock: NoSyncAfterSuperblock;
        checkpoint_before_log: CheckpointBeforeLog;
        early_page_reuse: EarlyPageReuse;
        old_map: OldMap;
        no_opening: NoOpening;
    }
}
