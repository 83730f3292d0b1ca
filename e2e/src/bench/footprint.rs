//! What the product costs on a Kubernetes of three nodes while nobody uses it: processor time and memory of each program, as the kernel
//! counts them for its processes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::kubernetes::{Kubernetes, product};
use crate::page::table;

/// What runs on each node that stores data and has pods with volumes.
const ON_EACH: [&str; 4] = ["storage", "gateway", "device", "csi node"];
/// How long after the last change everything has settled.
const SETTLE: Duration = Duration::from_secs(60);

/// What one part costs on one node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Percent of one processor.
    pub cpu: f64,
    /// Resident memory in MiB, shared pages of files included.
    pub resident: f64,
    /// What of it is the process's own, and is in no file.
    pub anonymous: f64,
}

/// What all parts cost in one situation.
#[derive(Clone, Debug)]
pub struct Footprint {
    /// Which.
    pub situation: &'static str,
    /// By part, and then by node.
    pub parts: BTreeMap<String, BTreeMap<String, Cost>>,
}

/// Processes of a node: by number, the ticks of 10 ms they have had, and their memory.
type Processes = BTreeMap<u32, (String, u64, Cost)>;

/// Prints number, ticks, resident and anonymous KiB, and the command line of each process. Processor time in `stat` is in ticks, but
/// their sum is counted exactly.
const LOOK: &str = r#"
for process in /proc/[0-9]*; do
    words=$(tr '\0' ' ' < "$process/cmdline" 2> /dev/null) || continue
    case $words in *sheep* | *csi-*) ;; *) continue ;; esac
    ticks=$(sed 's/.*) //' "$process/stat" 2> /dev/null | cut -d ' ' -f 12,13 | tr ' ' '+')
    memory=$(awk '/^VmRSS|^RssAnon/ { print $2 }' "$process/status" 2> /dev/null | tr '\n' ' ')
    [ -z "$memory" ] || echo "${process#/proc/} $((${ticks:-0})) $memory$words"
done
"#;

/// Measures for some time after a settling time: without a volume, and with one that is mounted and not used.
///
/// # Errors
/// No such Kubernetes, or the product does not get ready there.
pub fn measure(over: Duration) -> Result<Vec<Footprint>> {
    let kubernetes = Kubernetes::start(3)?;
    kubernetes.add_snapshots()?;
    product::install(&kubernetes, &[])?;
    let without = idle(&kubernetes, "no volume", over)?;
    let node = kubernetes.nodes().first().cloned();
    kubernetes
        .apply(&(product::claim("idle", "256Mi", None) + &product::pod("idle", "idle", node.as_deref())))?;
    product::wait_ready(&kubernetes, "idle")?;
    let with = idle(&kubernetes, "one volume, mounted and idle", over)?;
    Ok(vec![without, with])
}

fn idle(kubernetes: &Kubernetes, situation: &'static str, over: Duration) -> Result<Footprint> {
    std::thread::sleep(SETTLE);
    let mut parts: BTreeMap<String, BTreeMap<String, Cost>> = BTreeMap::new();
    let begin = Instant::now();
    let before = look(kubernetes)?;
    std::thread::sleep(over);
    let after = look(kubernetes)?;
    let passed = begin.elapsed().as_secs_f64();
    for (node, processes) in after {
        for (number, (part, ticks, cost)) in processes {
            let earlier = before.get(&node).and_then(|before| before.get(&number));
            let used = ticks.saturating_sub(earlier.map_or(0, |(_, ticks, _)| *ticks));
            let of_part = parts.entry(part).or_default().entry(node.clone()).or_default();
            // A tick is a hundredth of a second.
            add(of_part, Cost { cpu: used as f64 / passed, ..cost });
        }
    }
    Ok(Footprint { situation, parts })
}

fn add(sum: &mut Cost, cost: Cost) {
    sum.cpu += cost.cpu;
    sum.resident += cost.resident;
    sum.anonymous += cost.anonymous;
}

fn look(kubernetes: &Kubernetes) -> Result<BTreeMap<String, Processes>> {
    let nodes = (1..).zip(kubernetes.nodes());
    nodes
        .map(|(index, node)| {
            let said = kubernetes.run(index, &["sh", "-c", LOOK])?;
            Ok((node, said.lines().filter_map(process).collect()))
        })
        .collect::<Result<_>>()
        .context("looking at processes")
}

fn process(line: &str) -> Option<(u32, (String, u64, Cost))> {
    let mut words = line.split_whitespace();
    let mut number = || words.next()?.parse::<u64>().ok();
    let (pid, ticks, resident, anonymous) = (number()?, number()?, number()?, number()?);
    let part = part(&words.collect::<Vec<_>>())?;
    let mebibytes = |kib: u64| kib as f64 / 1024.0;
    let cost = Cost { cpu: 0.0, resident: mebibytes(resident), anonymous: mebibytes(anonymous) };
    Some((pid.try_into().ok()?, (part, ticks, cost)))
}

/// To which part a process belongs, by its command line.
fn part(words: &[&str]) -> Option<String> {
    let program = words.first()?.rsplit('/').next()?;
    match program {
        "sheep" if words.contains(&"--gateway") => Some("gateway".to_owned()),
        "sheep" => Some("storage".to_owned()),
        "sheep-device" => Some("device".to_owned()),
        "sheep-csi" => Some(format!("csi {}", words.get(1)?)),
        "sheep-operator" => Some("operator".to_owned()),
        sidecar if sidecar.starts_with("csi-") => Some(sidecar.to_owned()),
        _ => None,
    }
}

impl Footprint {
    /// What runs on each node, together.
    fn nodes(&self) -> BTreeMap<String, Cost> {
        let mut sums: BTreeMap<String, Cost> = BTreeMap::new();
        for part in ON_EACH {
            for (node, cost) in self.parts.get(part).into_iter().flatten() {
                add(sums.entry(node.clone()).or_default(), *cost);
            }
        }
        sums
    }

    fn rows(&self) -> Vec<(String, Vec<Cost>)> {
        let list = |nodes: &BTreeMap<String, Cost>| nodes.values().copied().collect();
        let parts = self.parts.iter().map(|(part, nodes)| (part.clone(), list(nodes)));
        parts
            .chain([("a node: storage, gateway, device, csi node".to_owned(), list(&self.nodes()))])
            .collect()
    }
}

/// For a person: each part, over the nodes that it runs on.
pub fn to_text(footprint: &Footprint) -> String {
    let heading = [footprint.situation, "nodes", "cpu %", "most", "RSS MiB", "most", "anonymous", "most"]
        .map(str::to_owned);
    let mut lines = vec![heading.to_vec()];
    for (part, costs) in footprint.rows() {
        let mut line = vec![part, costs.len().to_string()];
        for (of, digits) in [(cpu as fn(&Cost) -> f64, 2), (resident, 1), (anonymous, 1)] {
            let mean = costs.iter().map(of).sum::<f64>() / costs.len().max(1) as f64;
            let most = costs.iter().map(of).fold(0.0, f64::max);
            line.extend([mean, most].map(|value| format!("{value:.digits$}")));
        }
        lines.push(line);
    }
    table(&lines)
}

fn cpu(cost: &Cost) -> f64 {
    cost.cpu
}

fn resident(cost: &Cost) -> f64 {
    cost.resident
}

fn anonymous(cost: &Cost) -> f64 {
    cost.anonymous
}

/// For a program: each part on each node.
pub fn to_json(footprints: &[Footprint]) -> Vec<Value> {
    let mut list = Vec::new();
    for Footprint { situation, parts } in footprints {
        for (part, nodes) in parts {
            list.extend(nodes.iter().map(|(node, cost)| {
                json!({
                    "system": "sheepdog", "workload": format!("idle, {situation}"), "part": part, "node": node,
                    "cpu_percent": cost.cpu, "rss_mib": cost.resident, "anonymous_mib": cost.anonymous,
                })
            }));
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_told_apart_by_their_command_lines() {
        let of = |line: &str| process(line).map(|(_, (part, ..))| part);
        assert_eq!(
            of("7 120 4096 2048 /usr/bin/sheep /var/lib/sheepdog/gateway --gateway"),
            Some("gateway".into())
        );
        assert_eq!(of("8 120 4096 2048 /usr/bin/sheep /var/lib/sheepdog/storage"), Some("storage".into()));
        assert_eq!(of("9 1 4096 2048 /usr/bin/sheep-csi node --x"), Some("csi node".into()));
        assert_eq!(of("9 1 4096 2048 /csi-attacher --v=2"), Some("csi-attacher".into()));
        assert_eq!(of("9 1 4096 2048 sh -c sheep"), None);
    }

    #[test]
    fn a_node_is_what_runs_on_each() {
        let cost = Cost { cpu: 1.0, resident: 10.0, anonymous: 5.0 };
        let nodes: BTreeMap<String, Cost> = [("n1".to_owned(), cost)].into();
        let parts = ["storage", "gateway", "operator"].map(|part| (part.to_owned(), nodes.clone())).into();
        let sums = Footprint { situation: "idle", parts }.nodes();
        assert!((sums["n1"].resident - 20.0).abs() < 1e-9);
    }
}
