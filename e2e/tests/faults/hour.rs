//! A long time of random faults at all storage nodes, full disks among them, under fio on several volumes; and then
//! a look at what is left over.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sheep_e2e::dog::{count, text};
use sheep_e2e::oracle::Random;
use sheep_e2e::{Cluster, Filesystem, NetLab};

use crate::fault::{Deck, Fault, Kind, kinds};
use crate::load::Load;
use crate::{RECOVERED, settle};

/// The node through which clients come: it stores nothing and is spared, for fio cannot connect again.
const GATEWAY: u8 = 4;
const VOLUMES: [&str; 3] = ["one", "two", "three"];
/// Room of a storage node, MiB: a few times what the volumes take.
const ROOM: u64 = 768;
/// Between two full checks.
const CHECK: Duration = Duration::from_secs(600);
/// What the gateway may take more than after the first check.
const MORE_MEMORY: u64 = 64 << 20;
const MORE_FILES: usize = 8;

pub(crate) struct Hour {
    /// Before the cluster, whose files are in them: fields are dropped in order.
    disks: Vec<Filesystem>,
    cluster: Cluster,
    lab: NetLab,
    loads: Vec<Load>,
    random: Random,
    begin: Instant,
    faults: BTreeMap<String, u32>,
    /// Memory and open files of the gateway at the first check.
    first: Option<(u64, usize)>,
}

impl Hour {
    pub(crate) fn new(seed: u64) -> Result<Hour> {
        let lab = NetLab::new(GATEWAY)?;
        let mut cluster = Cluster::plan_in(&lab, GATEWAY)?;
        cluster.options(GATEWAY).gateway = true;
        let disks = (1..GATEWAY).map(|node| Filesystem::new(&cluster.node(node).dir, ROOM));
        let disks = disks.collect::<Result<Vec<_>>>()?;
        cluster.start_all()?;
        for volume in VOLUMES {
            cluster.create(volume, "64M", 3)?;
        }
        let mut loads: Vec<Load> = VOLUMES.iter().map(|volume| Load::new(&mut cluster, volume)).collect();
        loads.iter_mut().try_for_each(|load| load.move_to(&mut cluster, GATEWAY))?;
        let (random, begin, faults) = (Random::new(seed), Instant::now(), BTreeMap::new());
        Ok(Hour { lab, cluster, disks, loads, random, begin, faults, first: None })
    }

    pub(crate) fn run(mut self, time: Duration) -> Result<()> {
        let (mut kinds, mut victims) = (kinds(), Deck::new(&[1, 2, 3]));
        let mut checked = Instant::now();
        while self.begin.elapsed() < time {
            let pause = Duration::from_millis(500 + self.random.below(5_000));
            self.run_for(pause)?;
            let victim = victims.deal(&mut self.random);
            if self.random.below(6) == 0 {
                self.fill_disk(victim).with_context(|| format!("full disk of node {victim}"))?;
            } else {
                let kind = kinds.deal(&mut self.random);
                let fault = Fault::new(kind, victim, None, &mut self.random);
                self.say(&fault.to_string());
                *self.faults.entry(name(fault.kind)).or_default() += 1;
                let Hour { lab, cluster, loads, .. } = &mut self;
                let result = fault.inflict(lab, cluster, |_| keep_up(loads));
                result.with_context(|| fault.to_string())?;
            }
            self.cluster.wait_up(usize::from(GATEWAY))?;
            if checked.elapsed() > CHECK.min(time / 4) {
                self.check()?;
                checked = Instant::now();
            }
        }
        self.check()?;
        self.delete()?;
        let passes: u32 = self.loads.iter().map(|load| load.seed).sum();
        self.say(&format!("{passes} passes of fio; faults: {:?}", self.faults));
        Ok(())
    }

    fn say(&self, text: &str) {
        println!("{:6.1} s  {text}", self.begin.elapsed().as_secs_f64());
    }

    fn run_for(&mut self, time: Duration) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < time {
            keep_up(&mut self.loads)?;
        }
        Ok(())
    }

    /// The disk of a node fills up behind its back. It goes on.
    fn fill_disk(&mut self, victim: u8) -> Result<()> {
        let length = Duration::from_millis(1_000 + self.random.below(10_000));
        self.say(&format!("node {victim}: disk full for {:.1} s", length.as_secs_f64()));
        *self.faults.entry("full disk".into()).or_default() += 1;
        let disk = &self.disks[usize::from(victim) - 1];
        disk.fill()?;
        let start = Instant::now();
        while start.elapsed() < length {
            keep_up(&mut self.loads)?;
        }
        self.disks[usize::from(victim) - 1].free()?;
        ensure!(self.cluster.node(victim).is_running(), "node {victim} was ended by a full disk");
        Ok(())
    }

    /// Everything is read back, every copy is where it belongs, and the gateway has not grown.
    fn check(&mut self) -> Result<()> {
        self.loads.iter_mut().try_for_each(Load::finish)?;
        settle_all(&mut self.cluster)?;
        for load in &mut self.loads {
            [1, 2, 3].into_iter().try_for_each(|node| load.verify_at(&mut self.cluster, node))?;
            load.move_to(&mut self.cluster, GATEWAY)?;
        }
        let process = self.cluster.node(GATEWAY).process()?;
        let files = std::fs::read_dir(format!("/proc/{}/fd", process.pid()))?.count();
        let memory = process.resident_bytes();
        self.say(&format!("checked; gateway: {} MiB, {files} files", memory >> 20));
        let (first_memory, first_files) = *self.first.get_or_insert((memory, files));
        ensure!(
            memory <= first_memory + MORE_MEMORY,
            "the gateway grew from {first_memory} to {memory} bytes"
        );
        ensure!(files <= first_files + MORE_FILES, "the gateway had {first_files} open files, now {files}");
        Ok(())
    }

    /// Without volumes there is nothing left.
    fn delete(&mut self) -> Result<()> {
        for volume in VOLUMES {
            self.cluster.wait_closed(volume)?;
            self.cluster.any_dog()?.run(&["vdi", "delete", volume])?;
        }
        settle_all(&mut self.cluster)?;
        for node in 1..GATEWAY {
            let dog = self.cluster.node(node).dog()?;
            let mut info = serde_json::Value::Null;
            sheep_e2e::wait_until("space to come back", RECOVERED, Duration::from_secs(1), || {
                info = dog.json(&["node", "info"])?;
                // The log of the store, and notes of recovery itself.
                Ok(count(&info, "used_bytes") < 8 << 20)
            })
            .with_context(|| format!("node {}: {info}", text(&info, "id")))?;
            self.say(&format!(
                "node {node}: {} KiB used without volumes, {} objects",
                count(&info, "used_bytes") >> 10,
                count(&info, "objects")
            ));
        }
        Ok(())
    }
}

fn name(kind: Kind) -> String {
    match kind {
        Kind::Cut(_) => "cut".into(),
        Kind::PathIn | Kind::PathOut => "one path cut".into(),
        kind => format!("{kind:?}"),
    }
}

fn keep_up(loads: &mut [Load]) -> Result<()> {
    std::thread::sleep(Duration::from_millis(50));
    loads.iter_mut().try_for_each(Load::keep_up)
}

fn settle_all(cluster: &mut Cluster) -> Result<()> {
    cluster.wait_up(usize::from(GATEWAY))?;
    settle(cluster)
}
