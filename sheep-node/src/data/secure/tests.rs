use super::*;
use proptest::prelude::*;
use sheep_tls::authority::Authority;
use sheep_tls::{Identity, Pem, Role};
use std::collections::VecDeque;
use std::sync::OnceLock;
use std::time::Duration;

/// One end of a connection that takes and gives so many bytes at once at most, and then nothing.
#[derive(Default)]
struct End {
    arrived: VecDeque<u8>,
    sent: Vec<u8>,
    /// Bytes that may still be sent before it blocks.
    room: usize,
    closed: bool,
}

impl Read for End {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self.arrived.len() {
            0 if self.closed => Ok(0),
            0 => Err(io::ErrorKind::WouldBlock.into()),
            _ => self.arrived.read(to),
        }
    }
}

impl Write for End {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(self.room);
        if n == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.room -= n;
        self.sent.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pem() -> &'static Pem {
    static PEM: OnceLock<Pem> = OnceLock::new();
    PEM.get_or_init(|| {
        let day = Duration::from_secs(86_400);
        Authority::make("test", day).unwrap().issue(Role::Node, day).unwrap()
    })
}

fn session(calls: bool, unread: &[u8]) -> Session {
    let identity = Identity::new(pem(), Role::Node).unwrap();
    let tls = if calls { identity.call() } else { identity.answer() };
    Session::new(tls.unwrap(), SendQueue::default(), unread)
}

struct Side {
    session: Session,
    end: End,
    queue: SendQueue,
    got: Vec<u8>,
    over: bool,
}

impl Side {
    fn new(calls: bool) -> Self {
        let (end, queue) = (End::default(), SendQueue::default());
        Self { session: session(calls, b""), end, queue, got: Vec::new(), over: false }
    }

    /// What a turn of the data thread does.
    fn turn(&mut self, room: usize, piece: usize) -> Result<(), io::Error> {
        self.end.room = room;
        let mut to = vec![0; piece];
        while !self.over {
            match self.session.reader(&mut self.end, false).read(&mut to) {
                Ok(0) => self.over = true,
                Ok(n) => self.got.extend_from_slice(&to[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.session.send(&mut self.queue, &mut self.end)
    }
}

fn bytes(n: usize, salt: u8) -> Vec<u8> {
    (0..n).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ salt).collect()
}

/// Runs both until nothing moves; what goes from the first to the second passes through `spoil`.
fn run(
    one: &mut Side,
    other: &mut Side,
    room: usize,
    piece: usize,
    mut spoil: impl FnMut(&mut Vec<u8>),
) -> Result<(), io::Error> {
    loop {
        one.turn(room, piece)?;
        let mut flight = std::mem::take(&mut one.end.sent);
        spoil(&mut flight);
        other.end.arrived.extend(&flight);
        other.turn(room, piece)?;
        let back = std::mem::take(&mut other.end.sent);
        one.end.arrived.extend(&back);
        if flight.is_empty() && back.is_empty() {
            return Ok(());
        }
    }
}

#[test]
fn bytes_go_both_ways_at_once_however_little_fits() {
    for (room, piece, n) in
        [(1, 1, 300), (7, 64, 5_000), (1_000, 100_000, 300_000), (1 << 20, 1 << 20, 3 << 20)]
    {
        let (mut one, mut other) = (Side::new(true), Side::new(false));
        for part in bytes(n, 1).chunks(n / 3 + 1) {
            one.queue.push(part.to_vec());
        }
        other.queue.push(bytes(n, 2));
        run(&mut one, &mut other, room, piece, |_| {}).unwrap();
        assert!(other.got == bytes(n, 1) && one.got == bytes(n, 2), "{room} {piece} {n}");
        assert_eq!((one.queue.bytes(), other.queue.bytes()), (0, 0));
        one.session.farewell(&mut one.end);
        one.end.room = 100;
        one.session.farewell(&mut one.end);
        other.end.arrived.extend(&one.end.sent);
        other.turn(room, piece).unwrap();
        assert!(other.over && other.session.has_more());
    }
}

#[test]
fn no_more_is_encrypted_than_fits_a_bounded_buffer() {
    let (mut one, mut other) = (Side::new(true), Side::new(false));
    run(&mut one, &mut other, 1 << 20, 1 << 20, |_| {}).unwrap();
    one.queue.push(bytes(10 * CHUNK, 1));
    one.turn(0, 1 << 20).unwrap();
    assert!(one.queue.bytes() >= 9 * CHUNK - 1, "{} bytes are left", one.queue.bytes());
}

#[test]
fn what_came_with_the_proof_is_not_lost() {
    let (mut one, mut other) = (Side::new(true), Side::new(false));
    one.queue.push(bytes(100, 1));
    one.turn(1 << 20, 1 << 20).unwrap();
    other.session = session(false, &std::mem::take(&mut one.end.sent));
    run(&mut one, &mut other, 1 << 20, 1 << 20, |_| {}).unwrap();
    assert_eq!(other.got, bytes(100, 1));
}

#[test]
fn an_end_without_a_word_is_an_end() {
    let (mut one, mut other) = (Side::new(true), Side::new(false));
    one.queue.push(bytes(100, 1));
    run(&mut one, &mut other, 1 << 20, 1 << 20, |_| {}).unwrap();
    other.end.closed = true;
    other.turn(1 << 20, 1 << 20).unwrap();
    assert!(other.over && other.got == bytes(100, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_bytes_end_tls(bytes in prop::collection::vec(any::<u8>(), 0..3_000), calls: bool, early: bool, kind in 0u8..4) {
        let mut bytes = bytes;
        if let Some(head) = bytes.first_chunk_mut::<3>().filter(|_| kind > 0) {
            // What looks like the beginning of a record gets further.
            *head = [19 + kind, 3, 3];
        }
        let mut side = Side::new(calls);
        if early {
            side.session = session(calls, &bytes);
        } else {
            side.end.arrived.extend(&bytes);
        }
        side.end.closed = true;
        let _ = side.turn(1 << 20, 1 << 16);
        prop_assert!(side.got.is_empty());
        // And once more, as if there were another event.
        let _ = side.turn(1 << 20, 1 << 16);
        prop_assert!(side.got.is_empty());
    }

    #[test]
    fn bytes_that_are_changed_on_their_way_are_not_handed_on(at in 0usize..60_000, mask in 1u8..) {
        let (mut one, mut other) = (Side::new(true), Side::new(false));
        one.queue.push(bytes(50_000, 1));
        let mut passed = 0;
        let spoilt = run(&mut one, &mut other, 1 << 20, 1 << 16, |flight| {
            if let Some(byte) = at.checked_sub(passed).and_then(|at| flight.get_mut(at)) {
                *byte ^= mask;
            }
            passed += flight.len();
        });
        prop_assert!(bytes(50_000, 1).starts_with(&other.got));
        prop_assert!(at >= passed || spoilt.is_err() || other.got.len() < 50_000, "{at} of {passed}");
    }
}
