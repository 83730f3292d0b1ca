//! What goes wrong.

use crate::options::Fault;
use crate::world::{Event, World};

const MS: u64 = 1_000_000;

impl World {
    /// Injects a fault, and lets the next one come.
    pub fn nemesis(&mut self) {
        let mean = self.options.fault_interval.as_nanos() as u64;
        let after = self.rng.range(mean / 4, mean * 7 / 4);
        self.schedule(after, Event::Nemesis);
        self.rot();
        let faults = self.options.faults.clone();
        let Some(fault) = self.rng.pick(&faults).copied() else { return };
        self.counts.faults += 1;
        let node = self.target(fault);
        if self.options.restless {
            self.net.heal();
        }
        match fault {
            Fault::Crash => self.crash_and_restart(node),
            Fault::Pause => self.pause(node),
            Fault::Partition => self.partition(),
            Fault::OneWay => self.one_way(node),
            Fault::BrokenPair => self.broken_pair(node),
            Fault::BadNetwork => self.bad_network(),
            Fault::SlowDisk => self.slow_disk(node),
            Fault::PowerCut => self.power_cut(),
            Fault::LostDisk => self.lost_disk(node),
            Fault::DiskFails => self.disk_fails(node),
            Fault::DiskTaken => self.disk_taken(node),
            Fault::DiskAdded => self.disk_added(node),
        }
    }

    /// Whom the fault hits.
    fn target(&mut self, fault: Fault) -> usize {
        let node = self.rng.index(self.nodes.len());
        if !self.options.aimed || fault != Fault::Crash || self.rng.chance(300_000) {
            return node;
        }
        let used: Vec<usize> = self.clients.iter().filter_map(|client| client.is_at()).collect();
        self.rng.pick(&used).copied().unwrap_or(node)
    }

    /// A volume was taken over: what if power goes now?
    pub(crate) fn taken_over(&mut self) {
        let power = self.options.aimed && self.options.faults.contains(&Fault::PowerCut);
        if power && self.rng.chance(400_000) {
            let after = self.rng.range(1, 400) * MS;
            self.schedule(after, Event::PowerCut);
        }
    }

    /// Power goes, if it is still time for faults.
    pub(crate) fn aimed_power_cut(&mut self) {
        if !self.options.faults.is_empty() {
            self.power_cut();
        }
    }

    fn crash_and_restart(&mut self, node: usize) {
        self.crash(node);
        let after =
            if self.rng.chance(500_000) { self.rng.range(20, 800) } else { self.rng.range(800, 15_000) };
        self.schedule(after * MS, Event::Start(node));
    }

    fn pause(&mut self, node: usize) {
        let long = self.rng.range(20, 8_000) * MS;
        self.trace.say(self.now, &format!("node {node} stands still for {} ms", long / MS));
        // Never shorter than it was: what waits for the end of a pause must stay in order.
        let until = self.now + long;
        self.nodes[node].paused_until = self.nodes[node].paused_until.max(until);
    }

    fn net_changed(&mut self, least_ms: u64, most_ms: u64) {
        self.net_changes += 1;
        let shorter = if self.options.restless { 8 } else { 1 };
        let after = self.rng.range(least_ms, most_ms.div_ceil(shorter).max(least_ms)) * MS;
        let change = self.net_changes;
        self.schedule(after, Event::Heal(change));
    }

    fn partition(&mut self) {
        let sides: Vec<bool> = (0..self.nodes.len()).map(|_| self.rng.chance(500_000)).collect();
        for (from, to) in self.pairs() {
            if sides[from] != sides[to] {
                self.net.cut(from, to);
            }
        }
        let text: String = sides.iter().map(|side| if *side { 'A' } else { 'B' }).collect();
        self.trace.say(self.now, &format!("network splits: {text}"));
        self.net_changed(100, 12_000);
    }

    fn one_way(&mut self, node: usize) {
        let hears = self.rng.chance(500_000);
        let what = if hears { "hears but is not heard" } else { "is heard but hears nothing" };
        self.trace.say(self.now, &format!("node {node} {what}"));
        for other in 0..self.nodes.len() {
            if hears {
                self.net.cut(node, other);
            } else {
                self.net.cut(other, node);
            }
        }
        self.net_changed(100, 12_000);
    }

    fn broken_pair(&mut self, node: usize) {
        let other = (node + 1 + self.rng.index(self.nodes.len() - 1)) % self.nodes.len();
        self.trace.say(self.now, &format!("nodes {node} and {other} cannot talk"));
        self.net.cut(node, other);
        if self.rng.chance(700_000) {
            self.net.cut(other, node);
        }
        self.net_changed(500, 15_000);
    }

    fn bad_network(&mut self) {
        self.net.loss = self.rng.range(0, 150_000);
        self.net.doubled = self.rng.range(0, 50_000);
        self.net.late = self.rng.range(0, 300_000);
        self.net.late_ns = self.rng.range(1, 100) * MS;
        self.trace.say(self.now, "network is bad");
        self.net_changed(200, 8_000);
    }

    fn slow_disk(&mut self, node: usize) {
        if self.rng.chance(500_000) {
            self.nodes[node].slow = self.rng.range(2, self.options.slowest);
            self.trace.say(self.now, &format!("disks of node {node} are slow"));
        } else {
            self.nodes[node].slow = 1;
            self.nodes[node].hung_until = self.now + self.rng.range(100, 8_000) * MS;
            self.trace.say(self.now, &format!("log disk of node {node} hangs"));
        }
    }

    fn power_cut(&mut self) {
        self.trace.say(self.now, "power goes everywhere");
        self.counts.power_cuts += 1;
        for node in 0..self.nodes.len() {
            self.crash(node);
            let after = self.rng.range(50, 3_000) * MS;
            self.schedule(after, Event::Start(node));
        }
    }

    /// Only what redundancy can bear: everything is whole, and there is a node to spare.
    fn lost_disk(&mut self, node: usize) {
        if self.options.rot.any()
            || self.counts.lost_disks > 0
            || self.nodes.len() < 4
            || self.options.copies < 2
            || !self.is_whole()
            || !self.has_its_voters()
        {
            return;
        }
        self.trace.say(self.now, &format!("node {node} loses its disks"));
        self.counts.lost_disks += 1;
        self.crash(node);
        let mut rng = self.rng.fork();
        self.nodes[node].lose_disks(&mut rng, &self.options);
        let after = self.rng.range(50, 3_000) * MS;
        self.schedule(after, Event::Start(node));
    }

    /// Whether the log is on as many nodes as it is to be. In the first moments of a cluster it is only on the first one.
    fn has_its_voters(&self) -> bool {
        let mut views = self.nodes.iter().filter_map(|node| node.running.as_ref()?.view.as_ref());
        views.all(|view| view.state.voters().len() > 2 && view.state.desired_voters().is_none())
    }

    fn pairs(&self) -> Vec<(usize, usize)> {
        let count = self.nodes.len();
        (0..count)
            .flat_map(|from| (0..count).map(move |to| (from, to)))
            .filter(|(from, to)| from != to)
            .collect()
    }

    /// No more faults: everything that was broken works again.
    pub fn stop_faults(&mut self) {
        self.trace.say(self.now, "no more faults");
        self.options.faults.clear();
        self.net_changes += 1;
        self.net.heal();
        for node in 0..self.nodes.len() {
            self.nodes[node].slow = 1;
            self.nodes[node].hung_until = 0;
            for disk in 0..self.nodes[node].disks.len() {
                self.disk_back(node, disk);
            }
            self.schedule(MS, Event::Start(node));
        }
    }

    /// Whether all nodes run in one primary component and hold everything they must.
    pub fn is_whole(&self) -> bool {
        self.why_not_whole().is_none()
    }

    /// What is missing to be whole.
    pub fn why_not_whole(&self) -> Option<String> {
        let mut epoch = None;
        for node in &self.nodes {
            let index = node.index;
            let Some(running) = &node.running else { return Some(format!("node {index} does not run")) };
            if !running.control.is_primary() {
                let ring = running.control.ring().state();
                return Some(format!("node {index} is not in the primary component (ring {ring:?})"));
            }
            let Some(view) = &running.view else { return Some(format!("node {index} has no view")) };
            if *epoch.get_or_insert(view.epoch()) != view.epoch() {
                return Some(format!("node {index} is in another epoch"));
            }
            if !view.state.is_up(node.member()) {
                return Some(format!("node {index} is not up in epoch {}", view.epoch()));
            }
            if let Some(why) = self.why_not_all_disks(node) {
                return Some(why);
            }
            let replica = running.shard.as_ref().and_then(|shard| shard.replica());
            let Some(progress) = replica.map(|replica| replica.progress()) else {
                return Some(format!("node {index} has no replica"));
            };
            if !progress.complete || progress.epoch != view.epoch() {
                return Some(format!("node {index} recovers: {progress:?}"));
            }
        }
        None
    }
}
