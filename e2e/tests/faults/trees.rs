//! A volume is snapshotted every second under fio while snapshots are cloned, compared and deleted in random order and
//! nodes die. In the end the nodes have what the volume has, and not one object more.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sheep_e2e::dog::count;
use sheep_e2e::oracle::Random;
use sheep_e2e::{Cluster, NetLab, wait_until};

use crate::fault::{Deck, Fault, kinds};
use crate::load::Load;
use crate::{RECOVERED, settle};

/// The node through which clients come: it stores nothing and is spared.
const GATEWAY: u8 = 4;
const EVERY: Duration = Duration::from_secs(1);
/// Snapshots and clones that are kept at most.
const MOST: usize = 12;
/// Objects of the volume: fio writes 16 MiB, and there is a map object.
const OBJECTS: u64 = 5;
/// A command may have to wait for a node that stands still or comes back.
const PATIENCE: Duration = Duration::from_secs(120);

/// Something that was made of the volume, and what it reads as.
struct Made {
    name: String,
    digest: Option<String>,
}

pub(crate) struct Trees {
    cluster: Cluster,
    lab: NetLab,
    load: Load,
    random: Random,
    begin: Instant,
    made: Vec<Made>,
    last: Instant,
    number: u32,
    deleted: u32,
    compared: u32,
}

impl Trees {
    pub(crate) fn new(seed: u64) -> Result<Trees> {
        let lab = NetLab::new(GATEWAY)?;
        let mut cluster = Cluster::plan_in(&lab, GATEWAY)?;
        cluster.options(GATEWAY).gateway = true;
        cluster.start_all()?;
        cluster.create("disk", "64M", 3)?;
        let mut load = Load::new(&mut cluster, "disk");
        load.move_to(&mut cluster, GATEWAY)?;
        let (random, begin) = (Random::new(seed), Instant::now());
        let (made, last, number, deleted, compared) = (Vec::new(), begin, 0, 0, 0);
        Ok(Trees { cluster, lab, load, random, begin, made, last, number, deleted, compared })
    }

    pub(crate) fn run(mut self, time: Duration) -> Result<()> {
        let (mut kinds, mut victims) = (kinds(), Deck::new(&[1, 2, 3]));
        while self.begin.elapsed() < time {
            let until = Instant::now() + Duration::from_millis(1_000 + self.random.below(8_000));
            while Instant::now() < until {
                self.step()?;
            }
            let fault = Fault::new(
                kinds.deal(&mut self.random),
                victims.deal(&mut self.random),
                None,
                &mut self.random,
            );
            self.say(&fault.to_string());
            let Trees { lab, cluster, load, .. } = &mut self;
            let result = fault.inflict(lab, cluster, |_| {
                std::thread::sleep(Duration::from_millis(50));
                load.keep_up()
            });
            result.with_context(|| fault.to_string())?;
            self.cluster.wait_up(usize::from(GATEWAY))?;
        }
        self.load.finish()?;
        settle(&mut self.cluster)?;
        for node in [1, 2, 3] {
            self.load.verify_at(&mut self.cluster, node)?;
        }
        while !self.made.is_empty() {
            self.compare()?;
            self.delete()?;
        }
        settle(&mut self.cluster)?;
        self.give_back()?;
        let Trees { number, deleted, compared, .. } = self;
        self.say(&format!("{number} snapshots and clones, {compared} looks at one, {deleted} deleted"));
        ensure!(deleted == number && compared > number / 2, "too little was looked at");
        Ok(())
    }

    /// What is left of everything is what the volume has: each node has a copy of each of its objects. Besides there are
    /// notes of recovery, which do not go with the volume.
    fn give_back(&mut self) -> Result<()> {
        let (mut with, mut since) = (Vec::new(), Instant::now());
        let result = wait_until("space to come back", RECOVERED, Duration::from_secs(1), || {
            let now = self.objects()?;
            if now != with {
                (with, since) = (now, Instant::now());
            }
            Ok(with.iter().all(|objects| *objects < 2 * OBJECTS) && since.elapsed() > Duration::from_secs(5))
        });
        result.with_context(|| format!("{with:?} objects are left"))?;
        [1, 2, 3].into_iter().try_for_each(|node| self.load.verify_at(&mut self.cluster, node))?;
        self.dog(&["vdi", "delete", "disk"])?;
        let mut without = Vec::new();
        let result = wait_until("all space to come back", RECOVERED, Duration::from_secs(1), || {
            without = self.objects()?;
            Ok(with.iter().zip(&without).all(|(with, without)| *with == without + OBJECTS))
        });
        result.map(drop).with_context(|| format!("{with:?} objects with the volume, {without:?} without"))
    }

    fn say(&self, text: &str) {
        println!("{:6.1} s  {text}", self.begin.elapsed().as_secs_f64());
    }

    /// Objects that each storage node has.
    fn objects(&mut self) -> Result<Vec<u64>> {
        let infos = (1..GATEWAY).map(|node| self.cluster.node(node).dog()?.json(&["node", "info"]));
        infos.map(|info| Ok(count(&info?, "objects"))).collect()
    }

    fn dog(&mut self, words: &[&str]) -> Result<()> {
        let dog = self.cluster.node(GATEWAY).dog()?;
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

    fn step(&mut self) -> Result<()> {
        self.load.keep_up()?;
        if self.last.elapsed() >= EVERY {
            self.last = Instant::now();
            self.number += 1;
            let tag = format!("s{}", self.number);
            self.dog(&["vdi", "snapshot", "disk", &tag])?;
            self.made.push(Made { name: format!("disk@{tag}"), digest: None });
        }
        match self.random.below(6) {
            0 if !self.made.is_empty() => self.clone()?,
            1 | 2 => self.compare()?,
            _ => {}
        }
        while self.made.len() > MOST {
            self.delete()?;
        }
        Ok(())
    }

    /// A clone reads as its snapshot does.
    fn clone(&mut self) -> Result<()> {
        let at = self.random.below(self.made.len() as u64) as usize;
        let (from, digest) = (self.made[at].name.clone(), self.made[at].digest.clone());
        if !from.contains('@') {
            return Ok(());
        }
        self.number += 1;
        let name = format!("clone{}", self.number);
        self.dog(&["vdi", "clone", &from, &name])?;
        self.made.push(Made { name, digest });
        Ok(())
    }

    /// One of them, read through a node, is what it was at the first look.
    fn compare(&mut self) -> Result<()> {
        if self.made.is_empty() {
            return Ok(());
        }
        let at = self.random.below(self.made.len() as u64) as usize;
        let (name, node) = (self.made[at].name.clone(), 1 + self.random.below(3) as u8);
        let file = self.cluster.path().join("contents");
        let path = file.display().to_string();
        let dog = self.cluster.node(node).dog()?;
        let mut last = None;
        let read = wait_until(&format!("{name} read"), PATIENCE, Duration::from_millis(200), || {
            last = dog.run(&["vdi", "read", &name, "-f", &path]).err();
            Ok(last.is_none())
        });
        read.with_context(|| last.map_or(String::new(), |error| format!("{error:#}")))?;
        let digest = digest(&file)?;
        let known = self.made[at].digest.get_or_insert_with(|| digest.clone());
        ensure!(*known == digest, "{name} is not what it was, read through node {node}");
        self.compared += 1;
        Ok(())
    }

    fn delete(&mut self) -> Result<()> {
        let at = self.random.below(self.made.len() as u64) as usize;
        let Made { name, .. } = self.made.swap_remove(at);
        self.dog(&["vdi", "delete", &name])?;
        self.deleted += 1;
        Ok(())
    }
}

fn digest(file: &Path) -> Result<String> {
    let sum = sheep_e2e::process::run("sha256sum", [file.display().to_string()])?;
    Ok(sum.split(' ').next().unwrap_or_default().to_owned())
}
