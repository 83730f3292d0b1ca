//! Comparison benchmarks: the same workloads on ours and on what users would take instead, in one run.

pub mod ceph;
pub mod corosync;
pub mod disk;
pub mod footprint;
pub mod healing;
pub mod load;
pub mod machine;
pub mod many;
pub mod snapshots;
pub mod systems;

use serde_json::{Value, json};

use crate::page::table;

/// One measurement.
#[derive(Clone, Debug)]
pub struct Row {
    /// Who: `sheepdog`, `raw`, `nbdkit-file`, ...
    pub system: String,
    /// What: `randwrite-4k-qd32-durable`, ...
    pub workload: String,
    /// What was measured, or why nothing was.
    pub result: Result<Figures, String>,
}

/// What was measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Operations (or ordered messages) per second.
    pub iops: f64,
    /// Megabytes (10^6) per second.
    pub mbps: f64,
    /// Median latency, microseconds; 0 where it has none.
    pub p50_us: f64,
    /// 99th percentile of it.
    pub p99_us: f64,
    /// Longest latency; 0 where it has none.
    pub max_us: f64,
    /// Processor time of the servers per operation, microseconds; of the client for the raw disk.
    pub cpu_us_per_io: f64,
    /// Write requests that reached the disk, per operation.
    pub disk_writes_per_io: f64,
    /// Bytes written to the disk, per operation.
    pub disk_bytes_per_io: f64,
    /// Objects on the node that has most, over the mean of all nodes; 0 where that was not measured.
    pub spread: f64,
}

/// All rows of a run as JSON; what could not be measured has no figures but `missing`, the reason.
pub fn to_json(rows: &[Row]) -> Value {
    let list = rows.iter().map(|row| match &row.result {
        Ok(f) => json!({
            "system": row.system, "workload": row.workload, "iops": f.iops, "mbps": f.mbps, "p50_us": f.p50_us,
            "p99_us": f.p99_us, "max_us": f.max_us, "cpu_us_per_io": f.cpu_us_per_io, "disk_writes_per_io": f.disk_writes_per_io,
            "disk_bytes_per_io": f.disk_bytes_per_io, "spread": f.spread,
        }),
        Err(reason) => json!({"system": row.system, "workload": row.workload, "missing": reason}),
    });
    Value::Array(list.collect())
}

/// All rows of a run for a person; a ratio beside each of ours and `MISSING` where there is nothing.
pub fn to_text(rows: &[Row]) -> String {
    let heading = [
        "workload / system",
        "per second",
        "MB/s",
        "p50 us",
        "p99 us",
        "max us",
        "cpu us",
        "writes",
        "bytes",
        "spread",
        "ours is",
    ];
    let mut lines = vec![heading.map(str::to_owned).to_vec()];
    let mut workload = "";
    for row in rows {
        if row.workload != workload {
            workload = &row.workload;
            lines.push(vec![workload.to_owned()]);
        }
        let name = format!("  {}", row.system);
        let Ok(f) = &row.result else {
            lines.push(vec![name, "MISSING".to_owned()]);
            continue;
        };
        let whole = |number: f64| format!("{number:.0}");
        let tenth = |number: f64| format!("{number:.1}");
        let ours = rows.iter().find(|other| other.system == "sheepdog" && other.workload == row.workload);
        let ratio = match ours.and_then(|ours| ours.result.as_ref().ok()) {
            Some(ours) if row.system != "sheepdog" && f.iops > 0.0 => format!("{:.2} x", ours.iops / f.iops),
            _ => String::new(),
        };
        lines.push(vec![
            name,
            whole(f.iops),
            tenth(f.mbps),
            whole(f.p50_us),
            whole(f.p99_us),
            whole(f.max_us),
            whole(f.cpu_us_per_io),
            tenth(f.disk_writes_per_io),
            whole(f.disk_bytes_per_io),
            if f.spread > 0.0 { format!("{:.2}", f.spread) } else { String::new() },
            ratio,
        ]);
    }
    table(&lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_rows_are_shown_and_ratios_are_of_the_same_workload() {
        let row = |system: &str, workload: &str, iops: Option<f64>| Row {
            system: system.to_owned(),
            workload: workload.to_owned(),
            result: iops
                .map(|iops| Figures { iops, ..Figures::default() })
                .ok_or_else(|| "no such program".to_owned()),
        };
        let rows = [
            row("sheepdog", "a", Some(50.0)),
            row("raw", "a", Some(100.0)),
            row("sheepdog", "b", None),
            row("raw", "b", Some(100.0)),
        ];
        let text = to_text(&rows);
        assert_eq!(text.matches("MISSING").count(), 1);
        assert_eq!(text.matches("0.50 x").count(), 1);
        let json = to_json(&rows);
        let missing: Vec<&Value> = json.as_array().unwrap().iter().filter(|r| r["iops"].is_null()).collect();
        assert_eq!(json.as_array().unwrap().len(), 4);
        assert!(missing.len() == 1 && missing[0]["missing"] == "no such program");
    }
}
