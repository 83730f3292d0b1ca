//! The skeleton of a replicated block store without any logic: a client with a queue of 4 KiB writes, a node that
//! writes each to its own disk and sends it to two others, which write it and answer; an answer to the client when
//! all three have it. Nothing is checked, numbered or remembered. What this costs is a floor for what the product
//! can cost.
//!
//! usage: cpu-ceiling run ENGINE SHARDS DISK DEPTH SECONDS DIR
//!
//! ENGINE is epoll or uring; SHARDS the threads per node, each with connections and a file of its own; DISK is none
//! (complete at once), write (direct I/O) or sync (direct I/O, fdatasync shared by what waits for it). Prints writes
//! per second and the processor time of the three nodes per write, without the client's.

mod client;
mod epoll;
mod node;
mod uring;

use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What a shard waits for before it answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Disk {
    /// Nothing.
    None,
    /// The write.
    Write,
    /// The write and an fdatasync after it.
    Sync,
}

impl Disk {
    fn parse(text: &str) -> Disk {
        match text {
            "none" => Disk::None,
            "write" => Disk::Write,
            "sync" => Disk::Sync,
            _ => panic!("DISK is none, write or sync"),
        }
    }
}

/// What a shard is made of: connections by number. In the gateway 0 is the client, 1 and 2 are peers; in a replica
/// there is only 0, the gateway.
pub struct Shard {
    pub sockets: Vec<OwnedFd>,
    pub gateway: bool,
    pub disk: Disk,
    pub file: PathBuf,
}

/// Bytes of each shard's file.
pub const SPAN: u64 = 256 << 20;
const BASE_PORT: u16 = 17_100;

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["run", engine, shards, disk, depth, seconds, dir] => {
            run(engine, number(shards), disk, number(depth), number(seconds) as u64, Path::new(dir))
        }
        ["node", index, engine, shards, disk, dir] => {
            node(number(index), engine, number(shards), disk, Path::new(dir))
        }
        _ => panic!("usage: cpu-ceiling run epoll|uring SHARDS none|write|sync DEPTH SECONDS DIR"),
    }
}

fn number(text: &str) -> usize {
    text.parse().expect("a number")
}

fn run(engine: &str, shards: usize, disk: &str, depth: usize, seconds: u64, dir: &Path) -> io::Result<()> {
    let mut nodes = Vec::new();
    // The gateway connects to the others, so it comes last.
    for index in [1, 2, 0] {
        let child = Command::new(std::env::current_exe()?)
            .args(["node", &index.to_string(), engine, &shards.to_string(), disk])
            .arg(dir)
            .stdout(Stdio::piped())
            .spawn()?;
        nodes.push(ready(child)?);
    }
    let sockets: io::Result<Vec<UnixStream>> =
        (0..shards).map(|shard| UnixStream::connect(dir.join(format!("gateway{shard}")))).collect();
    let (start, limit) = (Instant::now(), Duration::from_secs(seconds));
    let before: u64 = nodes.iter().map(|node| cpu_us(node.id())).sum();
    let clients: Vec<_> = sockets?
        .into_iter()
        .map(|socket| std::thread::spawn(move || client::load(socket, (depth / shards).max(1), limit)))
        .collect();
    let mut latencies = Vec::new();
    for client in clients {
        latencies.extend(client.join().expect("client")?);
    }
    let took = start.elapsed().as_secs_f64();
    let cpu = nodes.iter().map(|node| cpu_us(node.id())).sum::<u64>() - before;
    for mut node in nodes {
        node.kill()?;
        node.wait()?;
    }
    latencies.sort_unstable();
    let count = latencies.len().max(1);
    let at = |percent: usize| latencies.get(count * percent / 100).copied().unwrap_or(0);
    writeln!(
        io::stdout(),
        "{engine} shards {shards} disk {disk} depth {depth}: {:.0} writes/s, cpu {:.1} us per write, p50 {} us, p99 {} us",
        count as f64 / took,
        cpu as f64 / count as f64,
        at(50),
        at(99)
    )
}

/// Waits until a node has said a line.
fn ready(mut child: Child) -> io::Result<Child> {
    let mut line = String::new();
    let out = child.stdout.take().expect("piped");
    io::BufRead::read_line(&mut io::BufReader::new(out), &mut line)?;
    assert_eq!(line.trim(), "ready");
    Ok(child)
}

fn node(index: usize, engine: &str, shards: usize, disk: &str, dir: &Path) -> io::Result<()> {
    // A node must not outlive the run.
    // SAFETY: prctl with these arguments touches no memory.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let mut made = Vec::new();
    let mut later: Vec<Box<dyn FnOnce() -> io::Result<OwnedFd>>> = Vec::new();
    for shard in 0..shards {
        let mut sockets = Vec::new();
        if index == 0 {
            let path = dir.join(format!("gateway{shard}"));
            let _ = std::fs::remove_file(&path);
            let listener = std::os::unix::net::UnixListener::bind(path)?;
            later.push(Box::new(move || Ok(listener.accept()?.0.into())));
            for peer in [1, 2] {
                let stream = TcpStream::connect(("127.0.0.1", port(peer, shard)))?;
                stream.set_nodelay(true)?;
                sockets.push(stream.into());
            }
        } else {
            let listener = TcpListener::bind(("127.0.0.1", port(index, shard)))?;
            later.push(Box::new(move || {
                let stream = listener.accept()?.0;
                stream.set_nodelay(true)?;
                Ok(stream.into())
            }));
        }
        let file = dir.join(format!("disk{index}.{shard}"));
        let shard = Shard { sockets, gateway: index == 0, disk: Disk::parse(disk), file };
        if shard.disk != Disk::None {
            // Filled before the time that counts.
            epoll::open(&shard)?;
        }
        made.push(shard);
    }
    writeln!(io::stdout(), "ready")?;
    io::stdout().flush()?;
    let mut threads = Vec::new();
    for (mut shard, accept) in made.into_iter().zip(later) {
        shard.sockets.insert(0, accept()?);
        let uring = engine == "uring";
        threads.push(std::thread::spawn(move || if uring { uring::run(shard) } else { epoll::run(shard) }));
    }
    threads.into_iter().try_for_each(|thread| thread.join().expect("shard"))
}

fn port(node: usize, shard: usize) -> u16 {
    BASE_PORT + (node * 16 + shard) as u16
}

/// Processor time of a process in microseconds, in ticks of 10 ms.
fn cpu_us(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum::<u64>() * 10_000
}
