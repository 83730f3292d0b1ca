//! The act of the second machine: snapshot and clone of a disk that is being written, both machines side by side.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, ensure};
use sheep_e2e::page::seconds;
use sheep_e2e::vm::Vm;

use crate::{Demo, FEW, FILES, HAPPENS_AFTER, MINUTE, VOLUME, writing};

const SNAPSHOT: &str = "vm@then";
const CLONE: &str = "clone";

/// Checksums of files by name.
type Sums = BTreeMap<String, String>;

impl Demo {
    pub(crate) fn second_machine(&mut self, vm: &mut Vm) -> Result<()> {
        self.snapshot_and_clone(vm)?;
        self.page.step("A second machine boots from the clone, while the first one writes");
        let id = vm.send(&writing("c", FEW, "sums"))?;
        let mut clone = self.boot(CLONE)?;
        wrote(&vm.finish(id, 2 * MINUTE)?)?;
        let then = self.clone_shows_one_instant(vm, &mut clone)?;
        self.both_write_on(vm, &mut clone, then)?;
        clone.power_off(MINUTE)
    }

    fn snapshot_and_clone(&mut self, vm: &mut Vm) -> Result<()> {
        self.page.step("While the guest writes, its disk gets a snapshot, and this a clone");
        let pause = self.write_through(vm, "s", |demo| {
            demo.timed("snapshot, while the guest writes", &["vdi", "snapshot", VOLUME, "then"])?;
            demo.timed("clone of the snapshot", &["vdi", "clone", SNAPSHOT, CLONE])
        })?;
        self.page.fact("longest write, snapshot and clone made", seconds(pause));
        self.show(&["vdi", "tree"])
    }

    /// Shows a command of `dog`, and how long it took, the start of the program included.
    fn timed(&mut self, what: &'static str, words: &[&str]) -> Result<()> {
        let start = Instant::now();
        self.show(words)?;
        self.page.fact(what, seconds(start.elapsed()));
        Ok(())
    }

    /// The clone must show every file up to one, whole, and none behind it. Returns what its files read as.
    fn clone_shows_one_instant(&mut self, vm: &mut Vm, clone: &mut Vm) -> Result<Sums> {
        self.page.step("What the second machine finds");
        let replayed = clone.run("dmesg | grep -m 1 'vda1.*recovery complete'", MINUTE);
        ensure!(replayed.is_ok(), "the guest's kernel did not replay a journal");
        self.page.good(
            "a file system cut off in the middle of a write, which its kernel has mended by the journal",
        );
        let (first, then) = (noted(vm, "sums")?, stored(clone)?);
        let whole = one_instant(&first, &then)?;
        self.page.fact("checksums right, in the clone", format!("{whole} of {whole}"));
        self.page.fact("files written later, in the clone", format!("0 of {}", first.len() - whole));
        Ok(then)
    }

    /// Both write files of the same names at the same time, and read afterwards what they wrote and had before.
    fn both_write_on(&mut self, vm: &mut Vm, clone: &mut Vm, then: Sums) -> Result<()> {
        self.page.step("Both write, files of the same names");
        let (one, other) = (vm.send(&writing("w", FEW, "sums"))?, clone.send(&writing("w", FEW, "new"))?);
        wrote(&vm.finish(one, 2 * MINUTE)?)?;
        wrote(&clone.finish(other, 2 * MINUTE)?)?;
        let (mine, theirs) = (noted(vm, "sums")?, noted(clone, "new")?);
        ensure!(
            theirs.len() == FEW as usize
                && theirs.iter().all(|(name, sum)| mine.get(name).is_some_and(|s| s != sum)),
            "the two machines should have written different files of the same names"
        );
        let mut expected = then;
        expected.extend(theirs);
        ensure!(stored(vm)? == mine, "the first machine does not read what it wrote");
        ensure!(stored(clone)? == expected, "the second machine does not read what it had and wrote");
        for machine in [vm, clone] {
            ensure!(machine.io_errors().is_empty(), "a guest saw I/O errors: {:?}", machine.io_errors());
        }
        self.page
            .fact("both write on, each reads its own", format!("{} + {} files", mine.len(), expected.len()));
        self.show(&["vdi", "list"])
    }
}

/// How many files a copy has whole, of those that a machine wrote one after the other with a snapshot among them.
/// The copy must show an instant at the time of the snapshot: every file up to one, and none behind it.
fn one_instant(first: &Sums, copy: &Sums) -> Result<usize> {
    let same = |name: &String| copy.get(name) == first.get(name);
    let acts = ["a", "s"].map(|act| (1..=FILES).map(move |n| format!("{act}{n}")));
    let order: Vec<String> = acts.into_iter().flatten().collect();
    let whole = order.iter().take_while(|name| same(name)).count();
    ensure!(
        whole >= (FILES + HAPPENS_AFTER) as usize,
        "only {whole} files of those synced before the snapshot"
    );
    ensure!(whole < order.len(), "the clone has everything, also what was written after the snapshot");
    // One more may be there, the one that was being written.
    let beyond: Vec<&String> = copy.keys().filter(|name| !order[..=whole].contains(name)).collect();
    ensure!(beyond.is_empty(), "written after the snapshot, and yet in the clone: {beyond:?}");
    Ok(whole)
}

/// What the guest noted when it wrote.
fn noted(vm: &mut Vm, list: &str) -> Result<Sums> {
    Ok(sums(&vm.run(&format!("cat /data/{list}"), MINUTE)?))
}

/// What the files read as, from the disk.
fn stored(vm: &mut Vm) -> Result<Sums> {
    let read = "cd /data; sync; echo 3 > /proc/sys/vm/drop_caches; sha256sum [a-z]*[0-9]";
    Ok(sums(&vm.run(read, 2 * MINUTE)?))
}

fn sums(printed: &str) -> Sums {
    let pairs = printed.lines().filter_map(|line| line.trim().split_once("  "));
    pairs.map(|(sum, name)| (name.to_owned(), sum.to_owned())).collect()
}

/// Whether a guest wrote all files it should.
fn wrote(printed: &str) -> Result<()> {
    let lines = printed.lines().filter(|line| line.trim().starts_with("wrote ")).count();
    ensure!(lines == FEW as usize, "the guest could not write: {printed}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(act: &str, files: u32) -> Sums {
        (1..=files).map(|n| (format!("{act}{n}"), format!("sum of {act}{n}"))).collect()
    }

    #[test]
    fn a_copy_shows_everything_up_to_one_file_and_nothing_behind() {
        let mut first = written("a", FILES);
        let mut copy = first.clone();
        first.extend(written("s", FILES));
        first.extend(written("c", FEW));
        let with = |copy: &Sums, name: &str, sum: &str| {
            let mut copy = copy.clone();
            copy.insert(name.to_owned(), sum.to_owned());
            one_instant(&first, &copy)
        };
        copy.extend(written("s", 17));
        assert_eq!(one_instant(&first, &copy).unwrap(), 67);
        assert_eq!(with(&copy, "s18", "half of it").unwrap(), 67);
        assert!(with(&copy, "s19", "sum of s19").is_err(), "a gap before it");
        assert!(with(&copy, "c1", "sum of c1").is_err(), "of a later act");
        assert!(with(&copy, "a7", "another").is_err(), "synced before");
        assert!(with(&copy, "s15", "another").is_err(), "synced before, in the same act");
        assert!(one_instant(&first, &first).is_err(), "not of the time of the snapshot");
    }
}
