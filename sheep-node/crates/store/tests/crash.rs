//! A crash at any instant, then reopen: everything flushed is there, and of the rest a prefix.

mod support;
use support::crash::*;
use support::*;

use sheep_store::*;

/// Submits a workload and lets the power fail after every single disk event.
fn enumerate(config: &StoreConfig, seed: u64, changes: u64, fates: u64) -> Result<u64, String> {
    let mut rng = Rng(seed);
    let mut bench = Bench::new(config.clone());
    let mut history = History::new(Model::new());
    let mut instants = 0;
    for sequence in 1..=changes {
        let op = random_op(&mut rng, 4, sequence);
        history.submit(&mut bench, op);
        if rng.one_in(4) {
            history.submit(&mut bench, Op::Flush);
        }
        // Some submissions find the disk busy with earlier ones.
        let mut moves = if rng.one_in(3) { 1 } else { 100 };
        while moves > 0 && (bench.begin_one() || bench.finish_one(rng.next() as usize)) {
            moves -= 1;
            instants += 1;
            history.take_answers(&mut bench);
            let seeds = [0, 1].into_iter().chain((0..fates).map(|_| rng.next()));
            check_crash(&bench.disk, config, &history, seeds)
                .map_err(|e| format!("seed {seed} change {sequence}: {e}"))?;
        }
    }
    Ok(instants)
}

#[test]
fn the_power_fails_at_every_instant() {
    let instants = enumerate(&config(), 1, 180, 2).unwrap();
    assert!(instants > 300, "{instants}");
}

#[test]
fn the_power_fails_at_every_instant_of_a_start_up() {
    let mut rng = Rng(11);
    let mut bench = Bench::new(config());
    let mut history = History::new(Model::new());
    for sequence in 1..=60 {
        let op = random_op(&mut rng, 4, sequence);
        history.submit(&mut bench, op);
        if rng.one_in(3) {
            history.submit(&mut bench, Op::Flush);
            bench.settle();
            history.take_answers(&mut bench);
        }
    }
    for first in 0..6 {
        let mut disk = bench.disk.clone();
        disk.crash_seeded(first);
        // What the first start-up finds is what all later ones must find: it may have been shown to somebody.
        let mut start = Bench::open(disk, config(), false);
        let mut instants = 0;
        while start.begin_one() || start.finish_one(0) {
            instants += 1;
            check_crash(&start.disk, &config(), &history, 0..5).unwrap();
        }
        let found = start.contents().unwrap();
        start.disk.crash_seeded(0);
        assert_eq!(open_and_read(start.disk, &config()).unwrap().1, found);
        assert!(instants > 10);
    }
}

#[test]
fn formatting_can_be_cut_short() {
    let mut bench = Bench::open(VirtualDisk::new(CAPACITY), config(), true);
    while bench.begin_one() || bench.finish_one(0) {
        for seed in 0..4 {
            let mut disk = bench.disk.clone();
            disk.crash_seeded(seed);
            // Either it is a store already, or one can be made.
            let mut old = Bench::open(disk.clone(), config(), false);
            old.settle();
            if old.events != [Event::Ready] {
                let mut new = Bench::open(disk, config(), true);
                new.settle();
                assert_eq!(new.events, [Event::Ready], "{:?}", old.events);
            }
        }
    }
    assert_eq!(bench.events, [Event::Ready]);
}

#[test]
fn many_lives_on_one_disk() {
    let mut all = Counts::default();
    for seed in 0..60 {
        let counts = lives(seed, &config(), 12, 600).unwrap();
        all.changes += counts.changes;
        all.crashes += counts.crashes;
        all.checkpoints += counts.checkpoints;
        all.pages += counts.pages;
        all.maps += counts.maps;
    }
    println!("{all:?}");
    assert!(all.changes > 20_000 && all.crashes > 500 && all.checkpoints > 200, "{all:?}");
    assert!(all.pages > 500 && all.maps > 500, "{all:?}");
}

#[test]
fn many_lives_with_random_limits() {
    for seed in 0..60 {
        lives(seed, &swarm(seed), 8, 600).unwrap();
    }
}

#[test]
fn many_lives_on_a_full_disk() {
    let refused: u64 = (0..30).map(|seed| full_lives(seed, 8).unwrap()).sum();
    assert!(refused > 500, "{refused}");
}

/// For long runs: `SEEDS=FROM..TO cargo test ... -- --ignored`.
#[test]
#[ignore = "as long as one likes"]
fn soak() {
    let seeds = std::env::var("SEEDS").unwrap();
    let (from, to) = seeds.split_once("..").unwrap();
    for seed in from.parse().unwrap()..to.parse().unwrap() {
        lives(seed, &config(), 12, 800).unwrap();
        lives(seed, &swarm(seed), 12, 800).unwrap();
        full_lives(seed, 8).unwrap();
        enumerate(&swarm(seed), seed, 60, 2).unwrap();
    }
}

#[test]
fn the_same_seed_does_the_same() {
    let run = || {
        let mut rng = Rng(5);
        let mut bench = Bench::new(config());
        let mut ops = Vec::new();
        for sequence in 1..200 {
            bench.submit(random_op(&mut rng, 5, sequence));
            if rng.one_in(5) {
                bench.submit(Op::Flush);
            }
            while let Some(op) = bench.store.poll_disk() {
                ops.push(op.clone());
                let id = op.id;
                let result = bench.disk.run(op);
                bench.store.handle_disk(id, result);
            }
        }
        ops
    };
    assert_eq!(run(), run());
}

#[cfg(feature = "mutants")]
mod mutants {
    use super::*;

    /// A broken store must be caught, by the enumeration or by random lives.
    fn caught(mutant: Mutant) {
        let broken = StoreConfig { mutant, ..config() };
        let random = (0..20).find_map(|seed| lives(seed, &broken, 10, 600).err());
        assert!(random.is_some(), "{mutant:?} was not caught");
    }

    #[test]
    fn in_place() {
        caught(Mutant::InPlace);
    }

    #[test]
    fn record_before_data() {
        caught(Mutant::RecordBeforeData);
    }

    #[test]
    fn no_verify() {
        caught(Mutant::NoVerify);
    }

    #[test]
    fn early_reuse() {
        caught(Mutant::EarlyReuse);
    }

    #[test]
    fn no_sync() {
        caught(Mutant::NoSync);
    }

    #[test]
    fn early_switch() {
        caught(Mutant::EarlySwitch);
    }
}
