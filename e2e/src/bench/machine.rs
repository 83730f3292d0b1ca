//! How busy the machine is by itself: on a busy one no figure means much.

use std::time::Duration;

/// What the processors did in some time, in clock ticks of all of them together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processors {
    idle: u64,
    stolen: u64,
    total: u64,
}

impl Processors {
    /// Since the machine started.
    pub fn now() -> Processors {
        Processors::parse(&std::fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    fn parse(stat: &str) -> Processors {
        let first = stat.lines().next().unwrap_or_default();
        // Documentation/filesystems/proc.rst: user nice system idle iowait irq softirq steal; guest time is in user.
        let ticks: Vec<u64> =
            first.split_whitespace().skip(1).take(8).filter_map(|field| field.parse().ok()).collect();
        let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
        Processors { idle: at(3) + at(4), stolen: at(7), total: ticks.iter().sum() }
    }

    /// Shares (0 to 1) of the time since `earlier` that were spent working, and that the host took away.
    pub fn since(self, earlier: Processors) -> (f64, f64) {
        let total = self.total.saturating_sub(earlier.total).max(1) as f64;
        let idle = self.idle.saturating_sub(earlier.idle) as f64;
        let stolen = self.stolen.saturating_sub(earlier.stolen) as f64;
        (1.0 - (idle + stolen) / total, stolen / total)
    }
}

/// One line about the machine, and whether it is quiet enough to measure on. Takes a second.
pub fn describe() -> (String, bool) {
    let before = Processors::now();
    std::thread::sleep(Duration::from_secs(1));
    let (busy, stolen) = Processors::now().since(before);
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let line = format!(
        "Linux {}, {cores} processors, {:.0} % busy and {:.0} % taken by the host before the start, load average {}",
        kernel.trim(),
        busy * 100.0,
        stolen * 100.0,
        load.split(' ').next().unwrap_or_default()
    );
    (line, busy + stolen < 0.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_come_from_the_line_of_all_processors() {
        let before = Processors::parse("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n");
        let after = Processors::parse("cpu  130 10 60 830 70 0 0 100 7 0\ncpu0 2 2 2 2 2 2 2 2 0 0\n");
        let (busy, stolen) = after.since(before);
        assert!((busy - 0.25).abs() < 1e-9 && (stolen - 0.5).abs() < 1e-9, "{busy} {stolen}");
    }
}
