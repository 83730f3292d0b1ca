//! A volume and a server that breaks off.

use super::*;
use std::collections::BTreeSet;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

const SIZE: usize = 64 << 10;
const LIMIT: Duration = Duration::from_secs(20);

/// Answers as the kernel gets them: unique, error, body.
struct Answers(Mutex<Sender<(u64, i32, Vec<u8>)>>);

impl Kernel for Answers {
    fn answer(&self, head: &[u8], body: &[u8]) {
        let errno = -i32::from_le_bytes(head[4..8].try_into().unwrap());
        let unique = u64::from_le_bytes(head[8..16].try_into().unwrap());
        lock(&self.0).send((unique, errno, body.to_vec())).unwrap();
    }
}

/// Nobody who wants to know.
struct Nobody;

impl Owner for Nobody {
    fn connected(&self, _: &UnixStream) {}

    fn resized(&self, _: u64) {}
}

fn names() -> (String, String) {
    ("@c:1:2".into(), "v".into())
}

/// What a connection does with its requests.
#[derive(Clone, Copy)]
struct Behaviour {
    /// It answers so many,
    answers: usize,
    /// then it says that it is stopping, or says nothing.
    says_so: bool,
}

fn array<const N: usize>(from: &mut impl Read) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

/// The server's side of choosing an export.
fn greet(stream: &mut UnixStream) -> Option<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03").ok()?;
    array::<4>(stream)?;
    let head: [u8; 16] = array(stream)?;
    let len = u32::from_be_bytes(head[12..].try_into().unwrap()) as usize;
    stream.read_exact(&mut vec![0; len]).ok()?;
    let mut reply = |kind: u32, data: &[u8]| {
        let mut bytes = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
        for number in [7, kind, data.len() as u32] {
            bytes.extend(number.to_be_bytes());
        }
        stream.write_all(&[&bytes, data].concat()).ok()
    };
    reply(3, &[&[0, 0][..], &(SIZE as u64).to_be_bytes(), &[0, 1]].concat())?;
    reply(1, &[])
}

/// One connection, until it breaks off or the client does. Cookies that came over it.
fn serve(stream: &mut UnixStream, disk: &Mutex<Vec<u8>>, behaviour: Behaviour) -> Option<BTreeSet<u64>> {
    greet(stream)?;
    let mut seen = BTreeSet::new();
    let mut done = 0;
    while let Some(head) = array::<28>(stream) {
        let number = |range: std::ops::Range<usize>| {
            head[range].iter().fold(0, |all, byte| all << 8 | u64::from(*byte))
        };
        let (kind, cookie, offset, len) =
            (number(6..8), number(8..16), number(16..24) as usize, number(24..28) as usize);
        assert!(seen.insert(cookie), "request {cookie} came twice over one connection");
        let mut data = vec![0; if kind == 1 { len } else { 0 }];
        stream.read_exact(&mut data).ok()?;
        let mut disk = lock(disk);
        let mut read = Vec::new();
        match kind {
            0 => read = disk[offset..offset + len].to_vec(),
            1 => disk[offset..offset + len].copy_from_slice(&data),
            4 | 6 => disk[offset..offset + len].fill(0),
            _ => {}
        }
        let error: u32 = if done < behaviour.answers { 0 } else { 108 };
        if error == 0 || behaviour.says_so {
            let answer =
                [&[0x67, 0x44, 0x66, 0x98][..], &error.to_be_bytes(), &cookie.to_be_bytes()].concat();
            stream.write_all(&answer).ok()?;
            stream.write_all(if error == 0 { &read } else { &[] }).ok()?;
        }
        if error != 0 && !behaviour.says_so {
            return Some(seen);
        }
        done += 1;
    }
    Some(seen)
}

fn socket(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("sheep-device-{name}-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

fn against(name: &str, behaviours: &[Behaviour]) {
    let path = socket(name);
    let listener = UnixListener::bind(&path).unwrap();
    let disk = Arc::new(Mutex::new(vec![0; SIZE]));
    let behaviours = behaviours.to_vec();
    let shared = Arc::clone(&disk);
    std::thread::spawn(move || {
        for at in 0.. {
            let (mut stream, _) = listener.accept().unwrap();
            serve(&mut stream, &shared, behaviours[at % behaviours.len()]);
        }
    });
    let (sender, answers) = channel();
    let kernel = Box::new(Answers(Mutex::new(sender)));
    let volume = Volume::new(&path, names(), 0, kernel, Box::new(Nobody));
    assert_eq!(volume.open().unwrap(), nbd::Export { size: SIZE as u64, read_only: false });
    // Writes of different blocks together, then each is read again.
    let io = |unique, kind, block: u64| Io { unique, kind, offset: block * 512, len: 512 };
    for block in 0..64u8 {
        volume.begin(io(u64::from(block), Kind::Write, block.into()), &[block + 1; 512]);
    }
    let mut left: BTreeSet<u64> = (0..64).collect();
    while !left.is_empty() {
        let (unique, errno, _) = answers.recv_timeout(LIMIT).unwrap();
        assert!(
            errno == 0 && left.remove(&unique),
            "answer {unique} with {errno} comes twice or is an error"
        );
    }
    for block in 0..64u8 {
        volume.begin(io(100 + u64::from(block), Kind::Read, block.into()), &[]);
        let (unique, errno, body) = answers.recv_timeout(LIMIT).unwrap();
        assert_eq!((unique, errno, body), (100 + u64::from(block), 0, vec![block + 1; 512]));
    }
    volume.close();
    volume.begin(io(999, Kind::Read, 0), &[]);
    assert_eq!(answers.recv_timeout(LIMIT).unwrap(), (999, EIO, vec![]));
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn what_has_no_answer_is_sent_again_and_answered_once() {
    let breaks = |answers| Behaviour { answers, says_so: false };
    against("whole", &[breaks(usize::MAX)]);
    against("breaks", &[breaks(5), breaks(0), breaks(1), breaks(17)]);
    against("stops", &[Behaviour { answers: 7, says_so: true }, breaks(usize::MAX)]);
}

#[test]
fn a_large_range_is_one_answer() {
    let path = socket("range");
    let (sender, answers) = channel();
    let volume =
        Volume::new(&path, names(), 1 << 40, Box::new(Answers(Mutex::new(sender))), Box::new(Nobody));
    volume.begin(Io { unique: 1, kind: Kind::Punch, offset: 0, len: 5 * RANGE_MAX + 1 }, &[]);
    let cookies: Vec<u64> = lock(&volume.table).pending.keys().copied().collect();
    assert_eq!(cookies.len(), 6);
    let lens: u64 = lock(&volume.table).pending.values().map(|pending| pending.io.len).sum();
    assert_eq!(lens, 5 * RANGE_MAX + 1);
    for (at, cookie) in cookies.iter().enumerate() {
        assert!(answers.try_recv().is_err());
        volume.done(*cookie, if at == 2 { 28 } else { 0 }, &[]);
    }
    assert_eq!(answers.try_recv().unwrap(), (1, 28, vec![]));
}

/// The rule that keeps what was sent over the connection of a dead worker from coming after what its successor sends.
#[test]
fn an_old_connection_is_read_until_its_server_has_done_everything() {
    let (ours, mut server) = UnixStream::pair().unwrap();
    let mut client = ours.try_clone().unwrap();
    client.write_all(&[7; 100]).unwrap();
    // The worker dies; the holder has the other descriptor.
    drop(client);
    let took = Duration::from_millis(300);
    let slow = std::thread::spawn(move || {
        std::thread::sleep(took);
        let mut all = Vec::new();
        server.read_to_end(&mut all).unwrap();
        server.write_all(&[1; 5000]).unwrap();
        all.len()
    });
    let begin = Instant::now();
    drain(ours.into());
    assert!(begin.elapsed() >= took, "it did not wait for the server");
    assert_eq!(slow.join().unwrap(), 100);
}
