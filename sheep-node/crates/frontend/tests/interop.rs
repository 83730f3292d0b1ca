//! Real clients (libnbd, QEMU, fio) against the memory disk of the example.

#[path = "../examples/memdisk/server.rs"]
mod server;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;

/// A memory disk serving until the process ends, in a directory of its own.
struct Server {
    dir: PathBuf,
}

impl Server {
    fn start(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("sheep-nbd-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("temporary directory");
        let listener = UnixListener::bind(dir.join("sock")).expect("socket");
        std::thread::spawn(move || server::serve(&listener, server::Disk::new(64 << 20)));
        Self { dir }
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.path("sock"))
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Standard output of a command that must succeed.
fn run(program: &str, args: &[&str]) -> String {
    let (ok, text) = attempt(program, args);
    assert!(ok, "{program} {args:?}: {text}");
    text
}

/// A command that finds the system's Python first: libnbd's module is installed there.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", format!("/usr/bin:{}", std::env::var("PATH").unwrap_or_default()));
    command
}

/// Whether a command succeeds, and all it says.
fn attempt(program: &str, args: &[&str]) -> (bool, String) {
    let output = command("timeout").arg("60").arg(program).args(args).output().expect("timeout(1)");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Whether a program is there; says so if not, because the test then checks nothing.
fn have(program: &str) -> bool {
    let found = command(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("SKIPPED: {program} is not installed, or does not start");
    }
    found
}

/// Half a MiB of noise at 1 MiB into an otherwise empty file of 64 MiB.
fn noise_file(server: &Server) -> String {
    let mut state = 1u32;
    let mut contents = vec![0u8; 64 << 20];
    for byte in &mut contents[1 << 20..3 << 19] {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    }
    let path = server.path("noise");
    std::fs::write(&path, contents).expect("noise file");
    path
}

#[test]
fn nbdinfo_sees_exports() {
    if !have("nbdinfo") {
        return;
    }
    let server = Server::start("info");
    let text = run("nbdinfo", &["--json", &server.uri("disk")]);
    let facts = [
        "\"protocol\": \"newstyle-fixed\"",
        "\"structured\": true",
        "\"export-name\": \"disk\"",
        "\"description\": \"memory disk\"",
        "\"export-size\": 67108864",
        "\"is_read_only\": false",
        "\"is_rotational\": false",
        "\"can_multi_conn\": true",
        "\"can_fua\": true",
        "\"can_flush\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"can_fast_zero\": true",
        "\"can_cache\": true",
        "\"can_df\": true",
        "\"block_size_minimum\": 512",
        "\"block_size_preferred\": 4096",
        "\"block_size_maximum\": 33554432",
        "\"base:allocation\"",
    ];
    for fact in facts {
        assert!(text.contains(fact), "{fact} missing in {text}");
    }
    assert!(run("nbdinfo", &["--json", &server.uri("readonly")]).contains("\"is_read_only\": true"));
    let list = run("nbdinfo", &["--list", &server.uri("")]);
    assert!(list.contains("export=\"disk\"") && list.contains("export=\"readonly\""), "{list}");
    for missing in ["", "other"] {
        let (ok, text) = attempt("nbdinfo", &[&server.uri(missing)]);
        assert!(!ok && text.contains("No such file or directory"), "{text}");
    }
}

#[test]
fn nbdcopy_there_and_back() {
    if !have("nbdinfo") || !have("nbdcopy") {
        return;
    }
    let server = Server::start("copy");
    let (noise, back, uri) = (noise_file(&server), server.path("back"), server.uri("disk"));
    run("nbdcopy", &["--flush", &noise, &uri]);
    run("nbdcopy", &["--connections=4", &uri, &back]);
    assert!(std::fs::read(&noise).expect("source") == std::fs::read(&back).expect("copy"), "copies differ");
    let map = run("nbdinfo", &["--map", &uri]);
    let lines: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..3], ["0", "1048576", "3"], "{map}");
    assert_eq!(lines[1][..3], ["1048576", "524288", "0"], "{map}");
    assert_eq!(lines[2][..3], ["1572864", "65536000", "3"], "{map}");
}

#[test]
fn nbdsh_checks_each_command() {
    if !have("nbdsh") {
        return;
    }
    let server = Server::start("sh");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/commands.py");
    let names = format!("uri={:?}; ro={:?}", server.uri("disk"), server.uri("readonly"));
    let text = run("nbdsh", &["-c", &names, "-c", &format!("exec(open({script:?}).read(), globals())")]);
    assert!(text.contains("all commands behave"), "{text}");
}

#[test]
fn qemu_tools() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let server = Server::start("qemu");
    let (noise, uri) = (noise_file(&server), server.uri("disk"));
    assert!(run("qemu-img", &["info", &uri]).contains("64 MiB (67108864 bytes)"));
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &noise, &uri]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &noise, &uri]);
    let steps = [
        "write -P 0xaa 8M 1M",
        "write -f -P 0xbb 9M 4k",
        "read -P 0xaa 8M 1M",
        "read -P 0xbb 9M 4k",
        "write -z -u 8M 512k",
        "read -P 0 8M 512k",
        "read -P 0xaa 8704k 512k",
        "write -z 9M 512",
        "read -P 0 9M 512",
        "read -P 0xbb 9437696 3584",
        "discard 8M 2M",
        "aio_write -P 0xcc 32M 30M",
        "aio_write -P 0xdd 16M 4M",
        "aio_flush",
        "flush",
        "read -P 0xcc 32M 30M",
        "read -P 0xdd 16M 4M",
    ];
    let args: Vec<&str> =
        ["-f", "raw"].into_iter().chain(steps.iter().flat_map(|&step| ["-c", step])).collect();
    let text = run("qemu-io", &[&args[..], &[&uri]].concat());
    assert!(!text.contains("fail") && !text.contains("error"), "{text}");
}

#[test]
fn fio_verifies_random_writes() {
    if !have("fio") || !run("fio", &["--enghelp"]).lines().any(|line| line.trim() == "nbd") {
        eprintln!("SKIPPED: fio without its nbd engine");
        return;
    }
    let server = Server::start("fio");
    let uri = format!("--uri={}", server.uri("disk"));
    let common =
        ["--name=x", "--ioengine=nbd", "--size=32M", "--rw=randwrite", "--bsrange=4k-128k", "--iodepth=32"];
    let verify =
        ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--randseed=7", "--fsync=64"];
    run("fio", &[&common[..], &verify[..], &[&uri, "--thread"]].concat());
}
