//! The harness itself, shown on other people's servers: what it starts works, and nothing remains of it.

use std::path::Path;
use std::time::Duration;

use sheep_e2e::fio::{Fio, Pattern, Target};
use sheep_e2e::process::{Spec, run};
use sheep_e2e::tools::{Nbdkit, bootable_image};
use sheep_e2e::vm::{Vm, VmOptions};
use sheep_e2e::{Cut, LeakCheck, NbdClient, NetLab, Oracle, Scratch, serial};

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn network_cuts_have_the_direction_they_say() {
    let _one = serial();
    let check = LeakCheck::start();
    let lab = NetLab::new(2).unwrap();
    // One datagram from `from` to `to`: does it arrive?
    let arrives = |from: u8, to: u8| {
        let listen = format!(
            "import socket; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind(('{0}',9)); s.settimeout(1); \
             import subprocess; subprocess.run(['nsenter','--net=/proc/{1}/ns/net','--','python3','-c',\
             \"import socket; socket.socket(socket.AF_INET,socket.SOCK_DGRAM).sendto(b'x',('{0}',9))\"]); s.recv(9)",
            lab.address(to),
            lab.holder(from)
        );
        let spec =
            Spec::new("datagram", "python3").args(["-c", &listen]).in_namespace_of(Some(lab.holder(to)));
        spec.command().stderr(std::process::Stdio::null()).status().unwrap().success()
    };
    assert!(arrives(1, 2) && arrives(2, 1));
    lab.cut_path(1, 2).unwrap();
    assert!(!arrives(1, 2) && arrives(2, 1));
    lab.heal_all().unwrap();
    lab.cut(1, Cut::In).unwrap();
    assert!(arrives(1, 2) && !arrives(2, 1));
    lab.heal(1).unwrap();
    lab.cut(1, Cut::Out).unwrap();
    assert!(!arrives(1, 2) && arrives(2, 1));
    lab.heal_all().unwrap();
    assert!(arrives(1, 2) && arrives(2, 1));
    drop(lab);
    check.finish().unwrap();
}

#[test]
fn a_leak_is_noticed() {
    let _one = serial();
    let check = LeakCheck::start();
    let scratch = Scratch::new("leak").unwrap();
    let process = Spec::new("leaked", "sleep").arg("60").spawn().unwrap();
    let said = LeakCheck::start().finish().unwrap_err().to_string();
    assert!(said.contains("process") && said.contains("directory"), "{said}");
    drop(process);
    drop(scratch);
    check.finish().unwrap();
}

#[test]
fn loop_devices_do_not_outlive_what_they_were_made_on() {
    let _one = serial();
    let check = LeakCheck::start();
    // A device on a file in a mount, as a test leaves it that fails.
    let scratch = Scratch::new("loops").unwrap();
    let mount = scratch.path().join("mount");
    std::fs::create_dir(&mount).unwrap();
    let on_tmpfs =
        "mount -t tmpfs tmpfs \"$0\" && truncate -s 1M \"$0/disk\" && losetup --find --show \"$0/disk\"";
    let device = run("sh", ["-c".as_ref(), on_tmpfs.as_ref(), mount.as_os_str()]).unwrap();
    let backing =
        Path::new("/sys/block").join(device.trim().trim_start_matches("/dev/")).join("loop/backing_file");
    assert!(backing.exists());
    drop(scratch);
    assert!(!backing.exists(), "the loop device is left");
    check.finish().unwrap();

    // One whose mount went with its namespace, as after SIGKILL.
    let check = LeakCheck::start();
    let scratch = Scratch::new("loops").unwrap();
    run(
        "unshare",
        ["--mount".as_ref(), "sh".as_ref(), "-c".as_ref(), on_tmpfs.as_ref(), scratch.path().as_os_str()],
    )
    .unwrap();
    drop(scratch);
    let found = check.finish().unwrap_err().to_string();
    assert!(found.contains("loop device /dev/loop"), "{found}");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("loops.sh");
    assert!(found.contains(run("sh", [script.as_os_str(), "--detach".as_ref()]).unwrap().trim()));
    assert_eq!(run("sh", [script]).unwrap(), "");
}

#[test]
fn own_client_and_fio_agree_with_nbdkit() {
    let _one = serial();
    let check = LeakCheck::start();
    let scratch = Scratch::new("nbd").unwrap();
    let socket = scratch.path().join("s");
    let server = Nbdkit::start(&socket, &["memory", "64M"]).unwrap();
    let mut client = NbdClient::unix(&socket, "vm", LIMIT).unwrap();
    assert_eq!(client.size, 64 << 20);
    let mut oracle = Oracle::new(64, 3);
    let mut buffer = vec![0; 4096];
    for block in 0..64 {
        let data = oracle.send(block);
        client.write(block as u64 * 4096, &data, block % 2 == 0).unwrap();
        oracle.answered(block);
    }
    client.flush().unwrap();
    for block in 0..64 {
        client.read(block as u64 * 4096, &mut buffer).unwrap();
        oracle.check(block, &buffer).unwrap();
    }
    client.trim(0, 4096).unwrap();
    client.write_zeroes(4096, 4096).unwrap();
    client.read(4096, &mut buffer).unwrap();
    assert!(oracle.check(1, &buffer).is_err(), "zeroes instead of an answered write");
    assert!(client.write(64 << 20, &buffer, false).is_err(), "a write behind the end");

    let job = |rw| Fio::new(Target::Nbd(server.uri()), rw, "4M").shape("4k", 8);
    let measured = job(Pattern::RandomWrite).verify(5).run().unwrap();
    assert_eq!(measured.operations, 1024);
    assert!(measured.iops > 0.0 && measured.p99_us >= measured.p50_us);
    job(Pattern::RandomWrite).verify_only(5).run().unwrap();
    assert!(
        job(Pattern::RandomWrite).verify_only(6).run().is_err(),
        "stale data of another seed goes unnoticed"
    );
    drop((client, server, scratch));
    check.finish().unwrap();
}

#[test]
fn a_machine_boots_from_an_export_and_survives_a_restart_of_the_server() {
    let _one = serial();
    let check = LeakCheck::start();
    let scratch = Scratch::new("vm").unwrap();
    let disk = scratch.path().join("disk.raw");
    Spec::new("cp", "cp").arg("--sparse=always").arg(bootable_image().unwrap()).arg(&disk).output().unwrap();
    let socket = scratch.path().join("s");
    let serve = |disk: &Path| Nbdkit::start(&socket, &["file", disk.to_str().unwrap()]).unwrap();
    let first = serve(&disk);
    let options = VmOptions {
        dir: scratch.path(),
        socket: &socket,
        export: "vm",
        reconnect: Duration::from_secs(60),
        outlive: false,
    };
    let mut vm = Vm::start(&options).unwrap();
    vm.wait_booted(Duration::from_secs(90)).unwrap();
    let minute = Duration::from_secs(60);
    assert!(vm.run("uname -a", minute).unwrap().contains("Linux sheep-guest"));
    assert!(
        vm.run("exit_code() { return 3; }; exit_code", minute).unwrap_err().to_string().contains("status 3")
    );
    let write = "for i in $(seq 1 20); do dd if=/dev/urandom of=f$i bs=64k count=4 oflag=direct 2>/dev/null \
                 && sha256sum f$i >> sums && echo wrote $i; done";
    let id = vm.send(write).unwrap();
    while !vm.progress(id).unwrap().iter().any(|line| line == "wrote 5") {}
    drop(first);
    std::thread::sleep(Duration::from_millis(500));
    let second = serve(&disk);
    assert!(vm.finish(id, minute).unwrap().contains("wrote 20"));
    let checked =
        vm.run("echo 3 > /proc/sys/vm/drop_caches; sha256sum -c sums | grep -c OK", minute).unwrap();
    assert_eq!(checked, "20");
    assert_eq!(vm.io_errors(), Vec::<String>::new());
    vm.power_off(minute).unwrap();
    drop((vm, second, scratch));
    check.finish().unwrap();
}
