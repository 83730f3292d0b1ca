//! Power cuts at every instant, compared with the model.

use super::*;

/// A run of a store whose every submitted change is remembered.
pub struct History {
    /// State after each change; the first is what the store began with.
    pub states: Vec<Model>,
    /// Everything up to here was flushed.
    pub flushed: usize,
    flushes: Vec<(u64, usize)>,
}

impl History {
    pub fn new(start: Model) -> Self {
        Self { states: vec![start], flushed: 0, flushes: vec![] }
    }

    pub fn submit(&mut self, bench: &mut Bench, op: Op) {
        if op == Op::Flush {
            let token = bench.submit(op);
            self.flushes.push((token, self.states.len() - 1));
        } else {
            let mut next = self.states.last().unwrap().clone();
            apply(&mut next, &op);
            bench.submit(op);
            self.states.push(next);
        }
        self.take_answers(bench);
    }

    pub fn take_answers(&mut self, bench: &mut Bench) {
        for event in bench.events.drain(..) {
            match event {
                Event::Done { token, result: Ok(_) } => {
                    if let Some(i) = self.flushes.iter().position(|f| f.0 == token) {
                        self.flushed = self.flushed.max(self.flushes.swap_remove(i).1);
                    }
                }
                Event::Done { result: Err(StoreError::NotFound(_)), .. } | Event::Ready | Event::SpaceLow => {
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Which state a reopened store is in: a prefix of the changes with at least all that was flushed.
    pub fn find(&self, contents: &Result<Model, StoreError>) -> Result<usize, String> {
        let contents = contents.as_ref().map_err(|e| format!("reading after the crash: {e}"))?;
        let range = self.flushed..self.states.len();
        range.clone().rev().find(|&i| self.states[i] == *contents).ok_or_else(|| {
            let older = (0..self.flushed).rev().find(|&i| self.states[i] == *contents);
            let flushed = &self.states[self.flushed];
            format!("no state in {range:?} fits (but {older:?}); flushed {flushed:#?}, found {contents:#?}")
        })
    }
}

/// Opens what a power cut left and reads everything.
pub fn open_and_read(disk: VirtualDisk, config: &StoreConfig) -> Result<(Bench, Model), String> {
    let mut bench = Bench::open(disk, config.clone(), false);
    bench.settle();
    match std::mem::take(&mut bench.events).as_slice() {
        [Event::Ready, rest @ ..] if rest.iter().all(|e| *e == Event::SpaceLow) => {}
        other => return Err(format!("open: {other:?}")),
    }
    let contents = bench.contents().map_err(|e| format!("reading after the crash: {e}"))?;
    Ok((bench, contents))
}

/// The power fails now, in `fates` different ways; every time the store must come up with a right state.
pub fn check_crash(
    disk: &VirtualDisk,
    config: &StoreConfig,
    history: &History,
    seeds: impl Iterator<Item = u64>,
) -> Result<(), String> {
    for seed in seeds {
        let mut disk = disk.clone();
        disk.crash_seeded(seed);
        let (_, contents) = open_and_read(disk, config).map_err(|e| format!("fate {seed}: {e}"))?;
        history.find(&Ok(contents)).map_err(|e| format!("fate {seed}: {e}"))?;
    }
    Ok(())
}

/// What happened.
#[derive(Debug, Default)]
pub struct Counts {
    pub changes: u64,
    pub crashes: u64,
    pub checkpoints: u64,
    pub pages: u64,
    pub maps: u64,
}

/// One seed: several lives on one disk. In each the store does random things, with random completion order,
/// until the power fails; start-ups are cut short too.
pub fn lives(seed: u64, config: &StoreConfig, lives: u64, steps: u64) -> Result<Counts, String> {
    let mut rng = Rng(seed);
    let mut bench = Bench::new(config.clone());
    let mut state = Model::new();
    let (mut sequence, mut counts) = (0, Counts::default());
    for life in 0..lives {
        let mut history = History::new(state);
        let steps = rng.below(steps) + 1;
        for _ in 0..steps {
            match rng.below(10) {
                0..=2 => {
                    sequence += 1;
                    let op = random_op(&mut rng, 6, sequence);
                    history.submit(&mut bench, op);
                }
                3 if rng.one_in(2) => history.submit(&mut bench, Op::Flush),
                4..=6 => drop(bench.begin_one()),
                _ => drop(bench.finish_one(rng.next() as usize)),
            }
            history.take_answers(&mut bench);
        }
        counts.checkpoints += bench.store.stats().checkpoints;
        counts.pages += bench.store.stats().pages;
        counts.maps += bench.store.stats().maps;
        let mut disk = bench.disk;
        disk.crash_seeded(rng.below(6));
        counts.crashes += 1;
        // Some start-ups do not get far.
        while rng.one_in(3) {
            let mut cut = Bench::open(disk, config.clone(), false);
            for _ in 0..rng.below(20) {
                cut.begin_all();
                cut.finish_one(0);
            }
            disk = cut.disk;
            disk.crash_seeded(rng.below(6));
            counts.crashes += 1;
        }
        let what = |e: String| format!("seed {seed} life {life}: {e}");
        let (reopened, contents) = open_and_read(disk, config).map_err(what)?;
        let at = history.find(&Ok(contents)).map_err(what)?;
        state = history.states.swap_remove(at);
        bench = reopened;
    }
    counts.changes = sequence;
    Ok(counts)
}

/// Settings drawn from a seed, so that limits are hit in all combinations.
pub fn swarm(seed: u64) -> StoreConfig {
    let mut rng = Rng(seed ^ 0x5eed);
    let mut pick = |choices: &[u64]| choices[rng.below(choices.len() as u64) as usize];
    StoreConfig {
        log_bytes: BLOCK as u64 * pick(&[24, 32, 100, 400, 1000]),
        batch_bytes: pick(&[200, 1024, 4096, 20_000]) as u32,
        commit_bytes: BLOCK as u64 * pick(&[4, 100]),
        inflight_bytes: BLOCK as u64 * pick(&[2, 1000]),
        delta_limit: pick(&[10, 60, 1000]),
        fold_above: pick(&[0, 2, 6, 100]) as usize,
        inline_runs: pick(&[0, 2, 100]) as usize,
        page_cache: pick(&[0, 1, 64]) as usize,
        map_cache: pick(&[0, 300, 1 << 20]),
        prewrite: pick(&[0, 1]) == 1,
        ..config()
    }
}

/// One seed on a store that is nearly always full. Returns how often there was no space.
pub fn full_lives(seed: u64, lives: u64) -> Result<u64, String> {
    let mut rng = Rng(seed);
    let config = StoreConfig { capacity_limit: Some((48 + 256 + rng.below(90)) * BLOCK as u64), ..config() };
    let mut bench = Bench::new(config.clone());
    let mut state = Model::new();
    let (mut sequence, mut refused) = (0, 0);
    for life in 0..lives {
        let mut history = History::new(state);
        for _ in 0..rng.below(150) {
            sequence += 1;
            let op = random_op(&mut rng, 60, sequence);
            let mut next = history.states.last().unwrap().clone();
            apply(&mut next, &op);
            match bench.run(op.clone()) {
                Ok(_) => history.states.push(next),
                Err(StoreError::NoSpace) if !matches!(op, Op::Delete { .. } | Op::SetHeader { .. }) => {
                    refused += 1
                }
                Err(StoreError::NotFound(_)) => {}
                other => return Err(format!("seed {seed}: {op:?}: {other:?}")),
            }
            if rng.one_in(5) {
                history.submit(&mut bench, Op::Flush);
                bench.settle();
                history.take_answers(&mut bench);
                if !bench.store.is_idle() || history.flushed + 1 != history.states.len() {
                    return Err(format!("seed {seed} life {life}: a flush hangs"));
                }
            }
        }
        let mut disk = bench.disk;
        disk.crash_seeded(rng.below(6));
        let (reopened, contents) = open_and_read(disk, &config).map_err(|e| format!("seed {seed}: {e}"))?;
        let at = history.find(&Ok(contents)).map_err(|e| format!("seed {seed} life {life}: {e}"))?;
        state = history.states.swap_remove(at);
        bench = reopened;
    }
    Ok(refused)
}
