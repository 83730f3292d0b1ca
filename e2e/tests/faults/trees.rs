//! A volume under fio and one with a mounted filesystem are snapshotted together every second while snapshots are cloned,
//! compared and deleted in random order and nodes die. In the end the nodes have what the first volume has, and not one
//! object more.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sheep_e2e::dog::count;
use sheep_e2e::oracle::Random;
use sheep_e2e::{Cluster, NetLab, wait_until};

use crate::fault::{Deck, Fault, Kind, kinds};
use crate::files::{self, Files, Span};
use crate::load::Load;
use crate::{RECOVERED, settle};

/// The node through which clients come: it stores nothing and is spared.
const GATEWAY: u8 = 4;
const STORAGE: [u8; 3] = [1, 2, 3];
const EVERY: Duration = Duration::from_secs(1);
/// Snapshots and clones that are kept at most.
const MOST: usize = 12;
/// Objects of the volume: fio writes 16 MiB, and there is a map object.
const OBJECTS: u64 = 5;
/// A command may have to wait for a node that stands still or comes back.
const PATIENCE: Duration = Duration::from_secs(120);

/// What something is, for ever.
#[derive(Clone)]
enum Contents {
    /// What it read as at the first look.
    Bytes(Option<String>),
    /// A filesystem.
    Files(Span),
}

/// A snapshot or a clone of one of the volumes.
struct Made {
    name: String,
    contents: Contents,
}

pub(crate) struct Trees {
    cluster: Cluster,
    lab: NetLab,
    work: Work,
    random: Random,
    begin: Instant,
}

impl Trees {
    pub(crate) fn new(seed: u64) -> Result<Trees> {
        let lab = NetLab::new(GATEWAY)?;
        let mut cluster = Cluster::plan_in(&lab, GATEWAY)?;
        cluster.options(GATEWAY).gateway = true;
        cluster.start_all()?;
        let work = Work::new(&mut cluster, seed)?;
        Ok(Trees { cluster, lab, work, random: Random::new(seed), begin: Instant::now() })
    }

    pub(crate) fn run(&mut self, time: Duration) -> Result<()> {
        let (mut kinds, mut victims) = (kinds(), Deck::new(&[1, 2, 3]));
        while self.begin.elapsed() < time {
            let until = Instant::now() + Duration::from_millis(1_000 + self.random.below(8_000));
            while Instant::now() < until {
                self.work.step(&mut self.cluster)?;
            }
            let (kind, victim) = (kinds.deal(&mut self.random), victims.deal(&mut self.random));
            let fault = Fault::new(kind, victim, None, &mut self.random);
            self.say(&fault.to_string());
            let Trees { lab, cluster, work, .. } = self;
            // A command may have to wait until the others have gone on without a node, and a broken path is not to be broken
            // longer for that.
            let goes_on = matches!(fault.kind, Kind::Kill | Kind::LongStop | Kind::ShortStop);
            let result = fault.inflict(lab, cluster, |cluster| match goes_on {
                true => work.step(cluster),
                false => work.wait(),
            });
            result.with_context(|| fault.to_string())?;
            self.cluster.wait_up(usize::from(GATEWAY))?;
        }
        self.finish()
    }

    fn finish(&mut self) -> Result<()> {
        let Trees { cluster, work, .. } = self;
        work.load.finish()?;
        settle(cluster)?;
        for node in STORAGE {
            work.load.verify_at(cluster, node)?;
            work.digest_at(cluster, node)?;
        }
        while !work.made.is_empty() {
            work.compare(cluster)?;
            work.delete(cluster)?;
        }
        let written = work.end_files(cluster)?;
        settle(cluster)?;
        self.give_back()?;
        let Work { number, deleted, compared, .. } = &self.work;
        self.say(&format!(
            "{number} snapshots and clones, {compared} looks at one, {deleted} deleted, {written} files written"
        ));
        ensure!(deleted == number && *compared > *number / 4, "too little was looked at");
        Ok(())
    }

    /// What is left of everything is what the volume has: each node has a copy of each of its objects, and nothing else.
    fn give_back(&mut self) -> Result<()> {
        self.left_are(OBJECTS)?;
        let Trees { cluster, work, .. } = self;
        STORAGE.into_iter().try_for_each(|node| work.load.verify_at(cluster, node))?;
        dog(cluster, &["vdi", "delete", "disk"])?;
        self.left_are(0)
    }

    /// Waits until each storage node has so many objects.
    fn left_are(&mut self, wanted: u64) -> Result<()> {
        let mut left = Vec::new();
        let result = wait_until("space to come back", RECOVERED, Duration::from_secs(1), || {
            left = objects(&mut self.cluster)?;
            Ok(left.iter().all(|objects| *objects == wanted))
        });
        result.map(drop).with_context(|| format!("{left:?} objects are left, not {wanted} on each node"))
    }

    fn say(&self, text: &str) {
        println!("{:6.1} s  {text}", self.begin.elapsed().as_secs_f64());
    }
}

/// Objects that each storage node has.
fn objects(cluster: &mut Cluster) -> Result<Vec<u64>> {
    let infos = STORAGE.into_iter().map(|node| cluster.node(node).dog()?.json(&["node", "info"]));
    infos.map(|info| Ok(count(&info?, "objects"))).collect()
}

/// A command, until it is done.
fn dog(cluster: &mut Cluster, words: &[&str]) -> Result<()> {
    let dog = cluster.node(GATEWAY).dog()?;
    let mut last = None;
    let done = wait_until(&words.join(" "), PATIENCE, Duration::from_millis(200), || {
        last = dog.run(words).err();
        // It was done, and only the answer was lost.
        Ok(last.as_ref().is_none_or(|error| {
            let text = error.to_string();
            text.contains(" exists") || (words.contains(&"delete") && text.contains("no VDI"))
        }))
    });
    done.map(drop).with_context(|| last.map_or(String::new(), |error| format!("{error:#}")))
}

/// What goes on all the time, whatever happens to the storage nodes.
struct Work {
    load: Load,
    files: Option<Files>,
    random: Random,
    made: Vec<Made>,
    last: Instant,
    number: u32,
    deleted: u32,
    compared: u32,
}

impl Work {
    fn new(cluster: &mut Cluster, seed: u64) -> Result<Work> {
        cluster.create("disk", "64M", 3)?;
        let mut load = Load::new(cluster, "disk");
        load.move_to(cluster, GATEWAY)?;
        cluster.create("files", "256M", 3)?;
        let files = Files::new(&cluster.node(GATEWAY).nbd_uri("files"), cluster.path())?;
        let (random, made, last) = (Random::new(seed + 1), Vec::new(), Instant::now());
        Ok(Work { load, files: Some(files), random, made, last, number: 0, deleted: 0, compared: 0 })
    }

    /// Clients write on, and nothing else happens.
    fn wait(&mut self) -> Result<()> {
        std::thread::sleep(Duration::from_millis(50));
        self.load.keep_up()
    }

    fn step(&mut self, cluster: &mut Cluster) -> Result<()> {
        self.load.keep_up()?;
        if self.last.elapsed() >= EVERY {
            self.last = Instant::now();
            self.snapshot(cluster)?;
        }
        match self.random.below(6) {
            0 if !self.made.is_empty() => self.clone(cluster)?,
            1 | 2 => self.compare(cluster)?,
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
        while self.made.len() > MOST {
            self.delete(cluster)?;
        }
        Ok(())
    }

    /// Both volumes, at one instant.
    fn snapshot(&mut self, cluster: &mut Cluster) -> Result<()> {
        let tag = format!("s{}", self.number);
        let Some(files) = self.files.take() else { return Ok(()) };
        let span = files.during(|| dog(cluster, &["vdi", "snapshot", "disk", "files", "--tag", &tag]));
        self.files = Some(files);
        self.made(format!("disk@{tag}"), Contents::Bytes(None));
        self.made(format!("files@{tag}"), Contents::Files(span?));
        Ok(())
    }

    fn made(&mut self, name: String, contents: Contents) {
        self.number += 1;
        self.made.push(Made { name, contents });
    }

    /// A clone contains what its snapshot does.
    fn clone(&mut self, cluster: &mut Cluster) -> Result<()> {
        let at = self.random.below(self.made.len() as u64) as usize;
        let (from, contents) = (self.made[at].name.clone(), self.made[at].contents.clone());
        if from.contains('@') {
            self.clone_of(cluster, &from, contents)?;
        }
        Ok(())
    }

    fn clone_of(&mut self, cluster: &mut Cluster, from: &str, contents: Contents) -> Result<String> {
        let name = format!("clone{}", self.number);
        dog(cluster, &["vdi", "clone", from, &name])?;
        self.made(name.clone(), contents);
        Ok(name)
    }

    /// One of them contains what it must.
    fn compare(&mut self, cluster: &mut Cluster) -> Result<()> {
        if self.made.is_empty() {
            return Ok(());
        }
        let at = self.random.below(self.made.len() as u64) as usize;
        let (name, contents) = (self.made[at].name.clone(), self.made[at].contents.clone());
        self.compared += 1;
        match contents {
            Contents::Files(span) => self.check_files(cluster, &name, span),
            Contents::Bytes(known) => {
                let digest = digest(cluster, &name, GATEWAY)?;
                let known = known.unwrap_or_else(|| digest.clone());
                ensure!(known == digest, "{name} is not what it was");
                self.made[at].contents = Contents::Bytes(Some(known));
                Ok(())
            }
        }
    }

    /// A check may have to replay the journal, so what is checked of a snapshot is a clone.
    fn check_files(&mut self, cluster: &mut Cluster, name: &str, span: Span) -> Result<()> {
        let clone = match name.contains('@') {
            true => self.clone_of(cluster, name, Contents::Files(span))?,
            false => name.to_owned(),
        };
        let dir = cluster.path().to_owned();
        files::check(&cluster.node(GATEWAY).nbd_uri(&clone), &dir, span)
            .with_context(|| format!("{clone}, looked at as {name}"))
    }

    /// Whatever is compared by its bytes reads the same through this node.
    fn digest_at(&mut self, cluster: &mut Cluster, node: u8) -> Result<()> {
        for Made { name, contents } in &self.made {
            if let Contents::Bytes(Some(known)) = contents {
                ensure!(digest(cluster, name, node)? == *known, "{name} is another one at node {node}");
            }
        }
        Ok(())
    }

    /// The filesystem ends as it should, and its volume goes.
    fn end_files(&mut self, cluster: &mut Cluster) -> Result<u64> {
        let Some(files) = self.files.take() else { return Ok(0) };
        let written = files.written();
        files.finish()?;
        cluster.wait_closed("files")?;
        dog(cluster, &["vdi", "delete", "files"])?;
        Ok(written)
    }

    fn delete(&mut self, cluster: &mut Cluster) -> Result<()> {
        let at = self.random.below(self.made.len() as u64) as usize;
        let Made { name, .. } = self.made.swap_remove(at);
        dog(cluster, &["vdi", "delete", &name])?;
        self.deleted += 1;
        Ok(())
    }
}

/// The checksum of all of it, read through a node.
fn digest(cluster: &mut Cluster, name: &str, node: u8) -> Result<String> {
    let file = cluster.path().join("contents");
    let path = file.display().to_string();
    let dog = cluster.node(node).dog()?;
    let mut last = None;
    let read = wait_until(&format!("{name} read"), PATIENCE, Duration::from_millis(200), || {
        last = dog.run(&["vdi", "read", name, "-f", &path]).err();
        Ok(last.is_none())
    });
    read.with_context(|| last.map_or(String::new(), |error| format!("{error:#}")))?;
    let sum = sheep_e2e::process::run("sha256sum", [&path])?;
    Ok(sum.split(' ').next().unwrap_or_default().to_owned())
}
