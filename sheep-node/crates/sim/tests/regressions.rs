//! Seeds that found a bug once, each with what it was.

use sheep_sim::{Options, run};

fn passes(seed: u64, rivals: bool) {
    let mut options = Options::from_seed(seed).single_disk();
    options.rivals = rivals;
    check(options);
}

/// A seed with the options that make what a broken variant needs likely.
fn passes_as(preset: &str, seed: u64) {
    let mut options = Options::from_seed(seed).single_disk();
    sheep_sim::mutants::preset(preset, &mut options);
    check(options);
}

fn check(options: Options) {
    let seed = options.seed;
    if let Some(failure) = run(options).failure {
        panic!("seed {seed}: {failure}");
    }
}

/// Every holder of an acknowledged, unflushed first write is cut off together with its gateway: the reference
/// asked the next holder for a write that nobody it could reach had heard of.
#[test]
fn holders_that_are_cut_off_do_not_count() {
    passes(23, true);
    passes(43, true);
}

/// A node failed another whose disk stood still, and was away before that one had heard of it. The others went on
/// with it, and the two were never again in one ring.
#[test]
fn who_is_held_failed_hears_of_it() {
    passes(2146, false);
}

/// The only copy of an object became current while another node asked it about earlier epochs. It could not say any
/// more how it had stood in them, and the other node took the object for lost.
#[test]
fn a_copy_that_becomes_current_is_not_lost() {
    passes(629, false);
}

/// A node that came back applied its exclusion and got a renewed lease at once: its gateway, which had not seen the
/// new state yet, answered what it had held back.
#[test]
fn a_renewal_does_not_overtake_the_exclusion() {
    passes(903, true);
}

/// A node was away while an object was entered in the map and discarded. It came back with the object as it was long
/// before, still marked as new, and the next holder entered it again.
#[test]
fn discarded_objects_stay_away() {
    passes(697, true);
    passes(1204, true);
}

/// A member answered a later write of the object before the flush of a durable one. The gateway took that one for
/// durable too, answered it, and forgot it; then power went.
#[test]
fn a_durable_write_is_durable_when_answered() {
    passes_as("datapath:resend-is-behind", 23);
    passes_as("datapath:resend-is-behind", 49);
}

/// The only copy was on a node that had been away while the others recovered. It came back, had nothing to recover
/// itself, and with that the epochs were forgotten that proved its copy current: the others took it for lost.
#[test]
fn epochs_that_prove_a_copy_are_kept() {
    passes(415, true);
}

/// Seeds with disks that come and go, whose runs were stopped by what the reference did not know: holders that an epoch
/// left out give way to those that it had, also if that epoch is forgotten by now.
#[test]
fn seeds_that_failed_once_pass() {
    for seed in [23, 142, 171, 216, 322, 790] {
        let mut options = Options::from_seed(seed);
        options.rivals = seed % 2 == 0;
        check(options);
    }
}

/// The same with rot: a copy that is damaged and not current says of itself what its header says.
#[test]
fn rotten_seeds_that_failed_once_pass() {
    for seed in [3, 36, 53] {
        for rivals in [false, true] {
            let mut options = Options::from_seed(seed);
            (options.rot.data, options.rivals) = (true, rivals);
            check(options);
        }
    }
}

/// The only copy that counted had a damaged block: nobody could become equal to it, and its object, and with it the epoch,
/// was never recovered.
#[test]
fn a_damaged_block_of_the_only_copy_holds_nothing_up() {
    for seed in [3, 34, 56, 112] {
        for rivals in [false, true] {
            let mut options = Options::from_seed(seed);
            (options.rot.unflushed, options.rivals) = (true, rivals);
            check(options);
        }
    }
}

/// A disk could not be opened when its node started, and was given up; the only other holders had restarted. Nobody could
/// say anything of the epochs that had counted on the disk, so nothing of before was found.
#[test]
fn epochs_that_count_on_a_disk_that_never_worked_prove_something() {
    let mut options = Options::from_seed(103);
    (options.rot.data, options.rot.records, options.rivals, options.flips) = (true, true, true, 2_000);
    check(options);
    // Given up before any epoch had heard of the failure.
    let mut options = Options::from_seed(34);
    options.rot.records = true;
    check(options);
}

/// A machine that had lost its disks counted its runs anew, and one of them had the number of a run that had held a write
/// which nobody had flushed: the reference took that holder for alive. And a store counted as made that never was, or the
/// other way round.
#[test]
fn runs_of_a_machine_are_told_apart() {
    for seed in [4332, 4353, 4386, 5878] {
        check(Options::from_seed(seed));
    }
}

/// A member hung before it heard that an object was in the map, still counted as up when the object was discarded, and was
/// out when it was removed. Then power went, and its copy came back.
#[test]
fn a_discarded_object_stays_away() {
    check(Options::from_seed(4801));
}

/// A volume was deleted while nodes recovered: its objects stayed on the list of what was to be recovered.
#[test]
fn recovery_does_not_wait_for_what_was_deleted() {
    let mut options = Options::from_seed(34);
    options.snapshots = true;
    check(options);
}

/// A comparison with a smaller snapshot that ended within a block called that block the same although it was not; one with a
/// snapshot that was deleted meanwhile never ended, and its volume could not be closed.
#[test]
fn comparisons_are_right_and_end() {
    for seed in [6628, 6807] {
        let mut options = Options::from_seed(seed);
        options.snapshots = true;
        check(options);
    }
}

/// Power went, and who came next had the volume open only to flatten it: the reference did not hear of that.
#[test]
fn who_flattens_takes_over_too() {
    let mut options = Options::from_seed(6914);
    (options.snapshots, options.rot.data) = (true, true);
    check(options);
}

/// A creation waited at the holder's own replica for the object that it begins as; the next write to the object was told at
/// once that there is no copy, and was sent again at once, without end.
#[test]
fn who_waits_for_a_creation_does_not_spin() {
    let mut options = Options::from_seed(7218);
    options.snapshots = true;
    check(options);
}

/// A node came back that had the good contents of some blocks in its copy of a snapshot's object only; the volume's object, which
/// began as a clone of that, had them lost on all others.
#[test]
fn what_is_lost_of_a_clone_is_found_in_what_it_began_as() {
    for seed in [8157, 8214] {
        let mut options = Options::from_seed(seed);
        (options.snapshots, options.rot.data) = (true, true);
        check(options);
    }
}
