//! Ordered messages per second of Corosync, each daemon in a namespace of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Figures;
use crate::netlab::NetLab;
use crate::process::{Proc, Spec, run};
use crate::scratch::Scratch;
use crate::wait_until;

/// Compiles the load program against libcpg.
fn compile(scratch: &Scratch) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/cpgload.c");
    let program = scratch.path().join("cpgload");
    let out = program.display().to_string();
    run("gcc", ["-O2", "-o", &out, &source.display().to_string(), "-lcpg"])
        .context("libcpg-dev installed? ('make tools-bench')")?;
    Ok(program)
}

/// Its defaults (real-time priority included), but without encryption and with the leaner of its transports, which
/// is about a quarter faster here: the comparison should be with Corosync at its best.
fn configuration(lab: &NetLab, nodes: u8, state: &Path) -> String {
    let members: String = (1..=nodes)
        .map(|node| {
            format!(
                "  node {{\n    nodeid: {node}\n    name: n{node}\n    ring0_addr: {}\n  }}\n",
                lab.address(node)
            )
        })
        .collect();
    format!(
        "totem {{\n  version: 2\n  cluster_name: bench\n  transport: udpu\n  crypto_cipher: none\n  crypto_hash: none\n}}\n\
         nodelist {{\n{members}}}\nlogging {{\n  to_stderr: no\n  to_syslog: no\n}}\n\
         system {{\n  state_dir: {}\n}}\n",
        state.display()
    )
}

/// Messages of `size` bytes per second that each of `nodes` members delivers while all of them send.
///
/// # Errors
/// Corosync or libcpg-dev is not installed, or the ring does not form.
pub fn ordered_messages(nodes: u8, size: usize, run_for: Duration) -> Result<Figures> {
    let scratch = Scratch::new("corosync")?;
    let program = compile(&scratch)?;
    let lab = NetLab::new(nodes)?;
    let mut daemons: Vec<Proc> = Vec::new();
    for node in 1..=nodes {
        let state = scratch.path().join(format!("state{node}"));
        std::fs::create_dir_all(&state).context("state directory")?;
        let conf = scratch.path().join(format!("corosync{node}.conf"));
        std::fs::write(&conf, configuration(&lab, nodes, &state)).context("configuration")?;
        // Its lock file is at a fixed place below /run, so each gets a /run of its own.
        let script = "mount -t tmpfs tmpfs /run && exec corosync -f -c \"$1\"";
        let daemon = Spec::new(format!("corosync {node}"), "unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
            .arg(&conf)
            .in_namespace_of(Some(lab.holder(node)))
            .log(scratch.path().join(format!("corosync{node}.log")));
        daemons.push(daemon.spawn()?);
    }
    wait_for_ipc(&lab, nodes)?;
    let before: u64 = daemons.iter().map(Proc::cpu_us).sum();
    let mut loads = Vec::new();
    for node in 1..=nodes {
        let load = Spec::new(format!("cpgload {node}"), &program)
            .args([size.to_string(), run_for.as_secs().to_string(), nodes.to_string()])
            .in_namespace_of(Some(lab.holder(node)))
            .log(scratch.path().join(format!("load{node}.log")));
        loads.push(load.spawn()?);
    }
    let mut delivered = u64::MAX;
    for load in &mut loads {
        load.wait(run_for + Duration::from_secs(90))?;
        let said = load.log_text();
        let count = said.trim().parse::<u64>().with_context(|| format!("cpgload: {said}"))?;
        delivered = delivered.min(count);
    }
    let cpu = daemons.iter().map(Proc::cpu_us).sum::<u64>() - before;
    let seconds = run_for.as_secs_f64();
    Ok(Figures {
        iops: delivered as f64 / seconds,
        mbps: delivered as f64 * size as f64 / seconds / 1e6,
        // The load runs two seconds longer than it counts.
        cpu_us_per_io: cpu as f64 / (delivered.max(1) as f64 * (seconds + 2.0) / seconds),
        ..Figures::default()
    })
}

fn wait_for_ipc(lab: &NetLab, nodes: u8) -> Result<()> {
    for node in 1..=nodes {
        wait_until("corosync ready", Duration::from_secs(30), Duration::from_millis(200), || {
            let probe =
                Spec::new("corosync-cpgtool", "corosync-cpgtool").in_namespace_of(Some(lab.holder(node)));
            Ok(probe.output().is_ok())
        })?;
    }
    Ok(())
}
