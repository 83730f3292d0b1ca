//! `make bench`: ours beside the raw disk, nbdkit, Ceph and Corosync, measured in one run on one machine.
//!
//! Usage: bench OUTPUT.json. `BENCH_MIB` is the size of each volume (default 1024), `BENCH_SECONDS` the length of each
//! measurement (default 10), `BENCH_SYSTEMS` a list of systems to measure instead of all (the others are then
//! neither shown nor missing; `healing` is what failures cost us, `snapshots` what those cost, `steady` what is left after `BENCH_STEADY` seconds of
//! random writes, 300, and `footprint` what an idle Kubernetes pays for us, over `BENCH_IDLE` seconds, 120). Ceph is measured only with `CEPH=1`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sheep_e2e::bench::ceph::{self, Ceph};
use sheep_e2e::bench::footprint::{self, Footprint};
use sheep_e2e::bench::healing::{self, HEALING, Measurement};
use sheep_e2e::bench::many::{self, MANY};
use sheep_e2e::bench::snapshots::{self, SNAPSHOTS};
use sheep_e2e::bench::systems::{Scale, System, WORKLOADS};
use sheep_e2e::bench::{Figures, Row, corosync, machine, to_json, to_text};
use sheep_e2e::page::Page;
use sheep_e2e::process::{Proc, Spec, workspace_binary};
use sheep_e2e::tools::Nbdkit;
use sheep_e2e::{Cluster, LeakCheck, NetLab, NodeOptions, Scratch, certificates};
use sheep_tls::Role;
use sheep_tls::authority::Authority;

const MESSAGE_SIZES: [(usize, &str); 2] = [(64, "ordered-64b-3n"), (1024, "ordered-1k-3n")];
const RING: u8 = 3;
const STEADY: &str = "randwrite-4k-qd32-durable-steady";

struct Bench {
    page: Page,
    scratch: Scratch,
    scale: Scale,
    only: Option<Vec<String>>,
    rows: Vec<Row>,
    footprints: Vec<Footprint>,
}

fn main() -> Result<ExitCode> {
    let output = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("target/bench.json"), PathBuf::from);
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok()).unwrap_or(default)
    };
    let check = LeakCheck::start();
    let mut bench = Bench {
        page: Page::new(),
        scratch: Scratch::new("bench")?,
        scale: Scale {
            bytes: number("BENCH_MIB", 1024) << 20,
            run: Duration::from_secs(number("BENCH_SECONDS", 10)),
        },
        only: std::env::var("BENCH_SYSTEMS").ok().map(|list| list.split(',').map(str::to_owned).collect()),
        rows: Vec::new(),
        footprints: Vec::new(),
    };
    bench.page.title("Sheepdog benchmarks");
    let (described, quiet) = machine::describe();
    bench.page.say(&described);
    if !quiet {
        bench.page.bad("something else is running: compare ratios only, and do not trust those much");
    }
    bench.run("raw", Bench::raw);
    bench.run("nbdkit-file", Bench::nbdkit_file);
    bench.run("nbdkit-memory", Bench::nbdkit_memory);
    bench.run("sheepdog", Bench::sheepdog);
    bench.run("sheepdog-encrypted", Bench::encrypted);
    bench.run("ceph-rbd", Bench::ceph);
    bench.steady(Duration::from_secs(number("BENCH_STEADY", 300)));
    bench.costs("healing", "recovery", healing::recovery);
    bench.costs("healing", "longest writes", healing::longest_writes);
    bench.costs("snapshots", "snapshots", snapshots::costs);
    bench.costs("snapshots", "a volume of 1 TiB", many::terabyte);
    bench.costs("snapshots", "many clones at once", many::boot_storm);
    bench.costs("snapshots", "10,000 snapshots", many::chain);
    bench.costs("snapshots", "spread over the nodes", many::spread);
    bench.messages("corosync", corosync::ordered_messages);
    bench.messages("sheepdog", our_messages);
    bench.footprint(Duration::from_secs(number("BENCH_IDLE", 120)));
    let Bench { page, scratch, mut rows, footprints, .. } = bench;
    drop(scratch);
    check.finish()?;

    let order = |row: &Row| {
        let workloads = WORKLOADS.iter().map(|w| w.name).chain([STEADY]).chain(HEALING).chain(SNAPSHOTS);
        let workloads = workloads.chain(MANY);
        let workloads = workloads.chain(MESSAGE_SIZES.iter().map(|(_, name)| *name));
        (workloads.into_iter().position(|name| name == row.workload), row.system != "sheepdog")
    };
    rows.sort_by_key(order);
    page.title("Results (latency, processor time and disk writes are per operation)");
    page.say(&to_text(&rows));
    footprints.iter().for_each(|footprint| page.say(&footprint::to_text(footprint)));
    write_json(&output, &rows, &footprints)?;
    page.say(&format!("written to {}", output.display()));
    let mut reasons: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for row in &rows {
        if let Err(reason) = &row.result {
            *reasons.entry((&row.system, reason)).or_default() += 1;
        }
    }
    for ((system, reason), count) in &reasons {
        page.bad(&format!("{system}: {count} measurements are MISSING: {reason}"));
    }
    Ok(if reasons.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write_json(output: &Path, rows: &[Row], footprints: &[Footprint]) -> Result<()> {
    if let Some(dir) = output.parent() {
        std::fs::create_dir_all(dir).context("directory of the results")?;
    }
    let mut all = to_json(rows);
    all.as_array_mut().context("results")?.extend(footprint::to_json(footprints));
    let text = serde_json::to_string_pretty(&all).context("results")?;
    std::fs::write(output, text + "\n").with_context(|| format!("writing {}", output.display()))
}

impl Bench {
    fn wanted(&self, system: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.iter().any(|name| name == system))
    }

    /// Measures one system; what it could not measure is missing.
    fn run(&mut self, system: &str, measure: fn(&mut Bench) -> Result<()>) {
        if !self.wanted(system) {
            return;
        }
        self.page.step(system);
        let ended = measure(self);
        if let Err(error) = &ended {
            self.page.bad(&format!("{error:#}"));
        }
        let reason = ended.err().map_or_else(|| "not measured".to_owned(), |error| format!("{error:#}"));
        for workload in &WORKLOADS {
            if !self.rows.iter().any(|row| row.system == system && row.workload == workload.name) {
                self.record(system, workload.name, Err(reason.clone()));
            }
        }
    }

    fn record(&mut self, system: &str, workload: &str, result: Result<Figures, String>) {
        self.rows.push(Row { system: system.to_owned(), workload: workload.to_owned(), result });
    }

    fn workloads(&mut self, name: &str, system: &System) -> Result<()> {
        system.fill(self.scale).context("filling")?;
        for workload in &WORKLOADS {
            let result = system.measure(workload, self.scale, self.scratch.path());
            match &result {
                Ok(figures) => self.page.say(&format!("{:<28}{:>10.0} /s", workload.name, figures.iops)),
                Err(error) => self.page.bad(&format!("{}: {error:#}", workload.name)),
            }
            self.record(name, workload.name, result.map_err(|error| format!("{error:#}")));
        }
        Ok(())
    }

    fn file(&self, name: &str) -> Result<PathBuf> {
        let path = self.scratch.path().join(name);
        let file = std::fs::File::create(&path).context("file for the benchmark")?;
        file.set_len(self.scale.bytes).context("size of the file")?;
        Ok(path)
    }

    fn raw(&mut self) -> Result<()> {
        let path = self.file("raw")?;
        let result = self.workloads("raw", &System::Raw(path.clone()));
        std::fs::remove_file(path).context("removing the file")?;
        result
    }

    fn nbdkit(&mut self, name: &str, plugin: &[&str]) -> Result<()> {
        let socket = self.scratch.path().join("nbdkit.sock");
        let mut server = Nbdkit::start(&socket, plugin)?;
        let servers = vec![server.process().pid()];
        self.workloads(name, &System::Nbd { socket, export: "vm".to_owned(), servers })
    }

    fn nbdkit_file(&mut self) -> Result<()> {
        let path = self.file("nbdkit")?;
        let result = self.nbdkit("nbdkit-file", &["file", &path.display().to_string()]);
        std::fs::remove_file(path).context("removing the file")?;
        result
    }

    fn nbdkit_memory(&mut self) -> Result<()> {
        self.nbdkit("nbdkit-memory", &["memory", &self.scale.bytes.to_string()])
    }

    fn sheepdog(&mut self) -> Result<()> {
        let (_cluster, system) = self.our_system(&[])?;
        self.workloads("sheepdog", &system)
    }

    /// The same with TLS between the nodes.
    fn encrypted(&mut self) -> Result<()> {
        let day = Duration::from_secs(86_400);
        let node = Authority::make("bench", day).and_then(|authority| authority.issue(Role::Node, day))?;
        certificates::write(self.scratch.path(), "node", &node)?;
        let mut options = certificates::options(self.scratch.path(), "node");
        options.push("--encrypt-data".to_owned());
        let (_cluster, system) = self.our_system(&options)?;
        self.workloads("sheepdog-encrypted", &system)
    }

    /// Three nodes with a volume in three copies, served by the first.
    fn our_system(&self, options: &[String]) -> Result<(Cluster, System)> {
        let options = NodeOptions { extra: options.to_vec(), ..NodeOptions::default() };
        let mut cluster = Cluster::plan(3)?.with_options(&options);
        cluster.start_all()?;
        cluster.any_dog()?.create("bench", &self.scale.bytes.to_string(), 3)?;
        let mut servers = Vec::new();
        for node in &mut cluster.nodes {
            servers.push(node.process()?.pid());
        }
        let socket = cluster.node(1).nbd_socket();
        Ok((cluster, System::Nbd { socket, export: "bench".to_owned(), servers }))
    }

    /// Ceph is a large installation, so it is measured only if somebody asks for it.
    fn ceph(&mut self) -> Result<()> {
        if std::env::var_os("CEPH").is_none_or(|value| value.is_empty() || value == "0") {
            bail!("not installed and measured unless asked for with 'make bench CEPH=1'");
        }
        let system = System::Rbd(Ceph::start(self.scale.bytes).context("starting Ceph")?);
        self.page.say(&ceph::version()?);
        self.workloads("ceph-rbd", &system)
    }

    /// Durable random writes after a long time of them, when every log and cache is full.
    fn steady(&mut self, time: Duration) {
        if !self.wanted("steady") {
            return;
        }
        self.page.step(&format!("steady state, after {} s of random writes", time.as_secs()));
        let result = self.after(time);
        match &result {
            Ok(figures) => self.page.say(&format!("{STEADY:<34}{:>10.0} /s", figures.iops)),
            Err(error) => self.page.bad(&format!("{error:#}")),
        }
        self.record("sheepdog", STEADY, result.map_err(|error| format!("{error:#}")));
    }

    fn after(&mut self, time: Duration) -> Result<Figures> {
        let (_cluster, system) = self.our_system(&[])?;
        system.fill(self.scale).context("filling")?;
        let durable = WORKLOADS.iter().find(|workload| workload.name == "randwrite-4k-qd32-durable");
        let durable = durable.context("no such workload")?;
        let before = Scale { run: time, ..self.scale };
        system.measure(durable, before, self.scratch.path()).context("before")?;
        system.measure(durable, self.scale, self.scratch.path())
    }

    /// What a failure, or a snapshot, costs us.
    fn costs(&mut self, group: &str, what: &str, measure: fn(Scale) -> Result<Vec<Measurement>>) {
        if !self.wanted(group) {
            return;
        }
        self.page.step(what);
        match measure(self.scale) {
            Ok(found) => {
                for (name, figures) in found {
                    let Figures { iops, mbps, p50_us, p99_us, max_us, spread, .. } = figures;
                    let latency = format!("median {p50_us:.0}, p99 {p99_us:.0}, longest {max_us:.0} us");
                    self.page.say(&match spread > 0.0 {
                        true => format!("{name:<40}{spread:.2} times the mean on the fullest node"),
                        false => format!("{name:<40}{iops:>10.0} /s, {mbps:>6.1} MB/s, {latency}"),
                    });
                    self.record("sheepdog", name, Ok(figures));
                }
            }
            Err(error) => {
                self.page.bad(&format!("{error:#}"));
                self.record("sheepdog", what, Err(format!("{error:#}")));
            }
        }
    }

    /// What we cost while nobody uses us.
    fn footprint(&mut self, over: Duration) {
        if !self.wanted("footprint") {
            return;
        }
        self.page.step("idle, on a Kubernetes of three nodes");
        match footprint::measure(over) {
            Ok(found) => self.footprints = found,
            Err(error) => {
                self.page.bad(&format!("{error:#}"));
                self.record("sheepdog", "footprint", Err(format!("{error:#}")));
            }
        }
    }

    fn messages(&mut self, system: &str, measure: fn(u8, usize, Duration) -> Result<Figures>) {
        if !self.wanted(system) {
            return;
        }
        self.page.step(&format!("ordered messages: {system}"));
        for (size, name) in MESSAGE_SIZES {
            let result = measure(RING, size, self.scale.run);
            match &result {
                Ok(figures) => self.page.say(&format!("{name:<28}{:>10.0} /s", figures.iops)),
                Err(error) => self.page.bad(&format!("{name}: {error:#}")),
            }
            self.record(system, name, result.map_err(|error| format!("{error:#}")));
        }
    }
}

/// Ours, in the same kind of network: `ringload ADDRESS SIZE SECONDS MEMBER...` joins a ring on its address with the
/// other members, sends as fast as flow control lets it, and prints how many messages it delivered.
fn our_messages(nodes: u8, size: usize, run: Duration) -> Result<Figures> {
    let program = workspace_binary("ringload")?;
    let lab = NetLab::new(nodes)?;
    let scratch = Scratch::new("ringload")?;
    let members: Vec<String> = (1..=nodes).map(|node| lab.address(node).to_string()).collect();
    let mut loads: Vec<Proc> = Vec::new();
    for node in 1..=nodes {
        let load = Spec::new(format!("ringload {node}"), &program)
            .args([lab.address(node).to_string(), size.to_string(), run.as_secs().to_string()])
            .args(&members)
            .in_namespace_of(Some(lab.holder(node)))
            .log(scratch.path().join(format!("load{node}.log")));
        loads.push(load.spawn()?);
    }
    let (mut rate, mut cpu) = (u64::MAX, 0);
    for load in &mut loads {
        load.wait(run + Duration::from_secs(90))?;
        let said = load.log_text();
        let last = said.lines().last().unwrap_or_default().trim();
        rate = rate.min(last.parse::<u64>().with_context(|| format!("ringload: {said}"))?);
        let used = said.lines().find_map(|line| line.strip_prefix("processor time while measured: "));
        let used = used.and_then(|text| text.strip_suffix(" us")?.parse::<u64>().ok());
        cpu += used.with_context(|| format!("no processor time in: {said}"))?;
    }
    let rate = rate as f64;
    Ok(Figures {
        iops: rate,
        mbps: rate * size as f64 / 1e6,
        // Of members and load together: here they are one process, unlike Corosync's.
        cpu_us_per_io: cpu as f64 / (rate * run.as_secs_f64()).max(1.0),
        ..Figures::default()
    })
}
