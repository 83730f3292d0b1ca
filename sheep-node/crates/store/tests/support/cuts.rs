//! Power cuts at every disk write of a script, with everything that the disk may make of them.

use super::crash::*;
use super::*;
use std::collections::BTreeSet;

/// Which of the operations under way is done first.
#[derive(Clone, Debug)]
pub enum Order {
    Oldest,
    Newest,
    Random(Rng),
}

impl Order {
    fn pick(&mut self, under_way: usize) -> usize {
        match self {
            Self::Oldest => 0,
            Self::Newest => under_way - 1,
            Self::Random(rng) => rng.below(under_way as u64) as usize,
        }
    }
}

/// What is done between two waits.
#[derive(Clone, Debug)]
pub enum Step {
    Do(Op),
    /// Until nothing moves.
    Settle,
    /// That many operations begin or finish.
    Moves(u32),
}

/// What an enumeration looks at besides the first start-up after each cut.
#[derive(Clone, Copy, Debug)]
pub struct Depth {
    /// One in so many of the reopened stores goes on, is cut at each of its writes, and again at those of the
    /// start-ups after that. 0: none.
    pub go_on: u64,
    /// Fates by chance for each cut.
    pub random: u64,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Disk writes that were cut.
    pub writes: u64,
    /// Stores reopened.
    pub opened: u64,
    pub checkpoints: u64,
    pub pages: u64,
    /// Map pages read.
    pub maps: u64,
    pub grown: u64,
    pub punched: u64,
    /// Blocks of data that were written where something had been before.
    pub reused: u64,
    /// Writes of the first and second copy of the superblock.
    pub slots: [u64; 2],
    /// Times that the log began again at its start.
    pub wraps: u64,
}

/// Fates of the unsynced blocks at one instant, in order.
type Fates = Vec<Fate>;

/// Everything that is tried at one instant.
fn fates(unsynced: &[(DiskOpId, FileId, u64)], random: u64, rng: &mut Rng) -> Vec<Fates> {
    let n = unsynced.len();
    let kept = |f: &dyn Fn(usize) -> bool| -> Fates {
        (0..n).map(|i| if f(i) { Fate::Kept } else { Fate::Lost }).collect()
    };
    let mut out = Vec::new();
    let ops: BTreeSet<DiskOpId> = unsynced.iter().map(|u| u.0).collect();
    // Prefixes: of the operations, and of the blocks if they are few.
    out.push(kept(&|_| false));
    for op in &ops {
        out.push(kept(&|i| unsynced[i].0 <= *op));
        // All but one.
        out.push(kept(&|i| unsynced[i].0 != *op));
    }
    if n <= 12 {
        (0..=n).for_each(|k| out.push(kept(&|i| i < k)));
    }
    if n <= 3 {
        (0..1usize << n).for_each(|set| out.push(kept(&|i| set >> i & 1 == 1)));
    }
    for _ in 0..random {
        out.push((0..n).map(|_| if rng.one_in(2) { Fate::Kept } else { Fate::Lost }).collect());
    }
    // Torn blocks: the last one, and one by chance.
    if n > 0 {
        let any = rng.below(n as u64) as usize;
        for (at, sectors) in
            [(n - 1, 0x01), (n - 1, 0x80), (n - 1, 0x55), (any, 0x0f), (any, rng.next() as u8)]
        {
            let mut torn = kept(&|_| true);
            torn[at] = Fate::Torn(sectors);
            out.push(torn);
        }
    }
    let code = |f: &Fate| match f {
        Fate::Lost => 0,
        Fate::Kept => 1,
        Fate::Torn(s) => 2 + u32::from(*s),
    };
    let mut had = BTreeSet::new();
    out.retain(|f| had.insert(f.iter().map(code).collect::<Vec<_>>()));
    out
}

fn crashed(disk: &VirtualDisk, unsynced: &[(DiskOpId, FileId, u64)], fates: &Fates) -> VirtualDisk {
    let mut disk = disk.clone();
    disk.crash_writes(|file, block, by| {
        // No operation wrote the file's own entry.
        let at = unsynced.iter().position(|u| *u == (by, file, block));
        at.map_or(Fate::Kept, |at| fates[at])
    });
    disk
}

/// What a power cut at this instant may leave, in every way that is tried.
pub fn crashes(disk: &VirtualDisk, random: u64) -> Vec<VirtualDisk> {
    let unsynced = disk.unsynced();
    let mut out: Vec<_> =
        fates(&unsynced, random, &mut Rng(3)).iter().map(|f| crashed(disk, &unsynced, f)).collect();
    // The file itself may be gone.
    let mut gone = disk.clone();
    gone.crash_seeded(0);
    out.push(gone);
    out
}

/// A store under enumeration.
pub struct Cutter<'a> {
    pub bench: Bench,
    pub history: History,
    config: &'a StoreConfig,
    /// The changes, to try again those that were lost.
    ops: Vec<Op>,
    order: Order,
    depth: Depth,
    rng: Rng,
    written: BTreeSet<u64>,
    pub seen: Seen,
}

impl<'a> Cutter<'a> {
    pub fn new(bench: Bench, start: Model, config: &'a StoreConfig, order: Order, depth: Depth) -> Self {
        Self {
            bench,
            history: History::new(start),
            config,
            ops: vec![],
            order,
            depth,
            rng: Rng(77),
            written: BTreeSet::new(),
            seen: Seen::default(),
        }
    }

    /// Does the script, cutting at every write. The error says where.
    pub fn run(&mut self, script: &[Step]) -> Result<(), String> {
        for (i, step) in script.iter().enumerate() {
            let moved = match step {
                Step::Do(op) => {
                    if *op != Op::Flush {
                        self.ops.push(op.clone());
                    }
                    self.history.submit(&mut self.bench, op.clone());
                    Ok(true)
                }
                Step::Settle => self.moves(u32::MAX),
                Step::Moves(n) => self.moves(*n),
            };
            moved.map_err(|e| format!("step {i} ({step:?}), write {}: {e}", self.seen.writes))?;
        }
        let stats = self.bench.store.stats();
        (self.seen.checkpoints, self.seen.pages, self.seen.maps) =
            (stats.checkpoints, stats.pages, stats.maps);
        Ok(())
    }

    fn moves(&mut self, most: u32) -> Result<bool, String> {
        for _ in 0..most {
            if !self.one_move()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Begins or finishes one operation.
    fn one_move(&mut self) -> Result<bool, String> {
        if let Some(op) = self.bench.store.poll_disk() {
            let write = matches!(op.kind, DiskOpKind::Write { .. });
            self.note(&op);
            self.bench.under_way.push_back(op.id);
            self.bench.disk.begin(op);
            if write {
                self.seen.writes += 1;
                self.cut()?;
            }
            return Ok(true);
        }
        let under_way = self.bench.under_way.len();
        if under_way == 0 {
            return Ok(false);
        }
        let syncs = self.bench.disk.counts().2;
        let which = self.order.pick(under_way);
        self.bench.finish_one(which);
        self.history.take_answers(&mut self.bench);
        if self.bench.disk.counts().2 > syncs {
            self.cut()?;
        }
        Ok(true)
    }

    fn note(&mut self, op: &DiskOp) {
        let block = BLOCK as u64;
        match &op.kind {
            DiskOpKind::Write { offset, data, .. } => match offset / block {
                0 => self.seen.slots[0] += 1,
                8 => self.seen.slots[1] += 1,
                16 => self.seen.wraps += 1,
                first => {
                    let blocks = data.iter().map(Bytes::len).sum::<usize>() as u64 / block;
                    let had = (first..first + blocks).filter(|b| !self.written.insert(*b)).count();
                    if first >= 16 + self.config.log_bytes / block {
                        self.seen.reused += had as u64;
                    }
                }
            },
            DiskOpKind::Allocate { .. } => self.seen.grown += 1,
            DiskOpKind::Punch { .. } => self.seen.punched += 1,
            _ => {}
        }
    }

    /// The power fails here, in every way that is tried.
    fn cut(&mut self) -> Result<(), String> {
        let unsynced = self.bench.disk.unsynced();
        for fates in fates(&unsynced, self.depth.random, &mut self.rng) {
            let disk = crashed(&self.bench.disk, &unsynced, &fates);
            let what = |e: String| format!("{unsynced:?} {fates:?}: {e}");
            let deeper = self.depth.go_on > 0 && self.seen.opened.is_multiple_of(self.depth.go_on);
            self.seen.opened += 1;
            let (reopened, contents) = open_and_read(disk.clone(), self.config).map_err(what)?;
            let at = self.history.find(&Ok(contents.clone())).map_err(what)?;
            if deeper {
                self.seen.opened += start_up_cut(&disk, self.config, &contents).map_err(what)?;
                self.go_on(reopened, contents, at).map_err(what)?;
            }
        }
        Ok(())
    }

    /// The reopened store is used: what was lost is done once more, as its client would, and some more.
    fn go_on(&mut self, reopened: Bench, contents: Model, at: usize) -> Result<(), String> {
        let again = self.ops[at.min(self.ops.len())..].iter().take(2).cloned();
        let mut script: Vec<Step> = again.enumerate().map(|(i, op)| Step::Do(later(op, i as u64))).collect();
        script.push(Step::Do(Op::Flush));
        script.push(Step::Settle);
        let whole: Vec<u64> = (0..u64::from(BLOCKS)).map(|i| 0xffff_0000 | i).collect();
        for (n, first, tags) in [(1, 3, &whole[..2]), (9, 0, &whole[..])] {
            let head = header(n, 9000 + u64::from(first));
            let create = n == 9 || !contents.contains_key(&object(n));
            script.push(Step::Do(Op::Write {
                header: head,
                create,
                offset: first * BLOCK_SIZE,
                body: data(tags),
            }));
        }
        script.extend([Step::Do(Op::Flush), Step::Settle]);
        let depth = Depth { go_on: 0, random: 0 };
        let mut next = Cutter::new(reopened, contents, self.config, self.order.clone(), depth);
        next.run(&script).map_err(|e| format!("going on: {e}"))?;
        self.seen.opened += next.seen.opened;
        let last = next.history.states.last().unwrap().clone();
        if next.history.flushed + 1 != next.history.states.len() {
            return Err("going on: a flush hangs".into());
        }
        let mut disk = next.bench.disk;
        disk.crash(|_, _| Fate::Lost);
        self.seen.opened += start_up_cut(&disk, self.config, &last)?;
        Ok(())
    }
}

/// The same change under a later version.
fn later(mut op: Op, n: u64) -> Op {
    match &mut op {
        Op::Write { header, .. }
        | Op::Replace { header, .. }
        | Op::Patch { header, .. }
        | Op::SetHeader { header }
        | Op::CloneBlocks { header, .. } => header.version.sequence += 5000 + n,
        _ => {}
    }
    op
}

/// The power fails at every write of a start-up too, and at every one of the start-up after that. What was found
/// once must be found again. Gives how often a store was opened.
fn start_up_cut(disk: &VirtualDisk, config: &StoreConfig, want: &Model) -> Result<u64, String> {
    let mut opened = 0;
    let mut level = vec![disk.clone()];
    for depth in 0..2 {
        let mut next = Vec::new();
        for disk in level {
            let mut bench = Bench::open(disk, config.clone(), false);
            while let Some(op) = bench.store.poll_disk() {
                let write = matches!(op.kind, DiskOpKind::Write { .. });
                bench.under_way.push_back(op.id);
                bench.disk.begin(op);
                if write {
                    let unsynced = bench.disk.unsynced();
                    let tries = fates(&unsynced, 0, &mut Rng(depth));
                    next.extend(tries.iter().map(|f| crashed(&bench.disk, &unsynced, f)));
                }
                while bench.finish_one(0) {}
            }
            opened += 1;
            let found = bench.contents().map_err(|e| format!("start-up {depth}: {e}"))?;
            if found != *want {
                return Err(format!("start-up {depth}: found {found:#?} instead of {want:#?}"));
            }
        }
        // The second time two of them are enough.
        next.truncate(if depth == 0 { 4 } else { 2 });
        level = next;
    }
    Ok(opened)
}

/// The whole enumeration of one script on a new store.
pub fn enumerate_script(
    config: &StoreConfig,
    script: &[Step],
    order: Order,
    depth: Depth,
) -> Result<Seen, String> {
    let mut cutter = Cutter::new(Bench::new(config.clone()), Model::new(), config, order, depth);
    cutter.run(script)?;
    Ok(cutter.seen)
}
