//! A process that is a ring member and nothing else, to measure the ring: how much it orders, and how regularly the
//! token comes. It uses the daemon's own socket, sealing and clock, and writes nothing to a disk.

mod histogram;
mod options;

use crate::clock;
use crate::ring_socket::RingSocket;
use crate::seal::{ClusterKey, Sealer};
use crate::whereabouts::Whereabouts;
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use histogram::Histogram;
use mio::{Events, Interest, Poll, Token};
use options::Options;
use sheep_totem::{Configuration, ConfigurationKind, Output, Ring, RingConfig};
use sheep_types::{ClusterId, Incarnation, Member, NodeId, Time};
use std::collections::VecDeque;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

pub(crate) use options::parse;

/// How long members are waited for.
const FORM_TIMEOUT: Duration = Duration::from_secs(60);
/// Between the ring being complete and the measured time, and after it, so that all members measure a steady state.
const MARGIN: Duration = Duration::from_secs(1);
/// Datagrams handled before timers get their turn, as in the daemon.
const BURST: usize = 64;
/// Payloads kept waiting: more than a visit of the token can take.
const QUEUE: usize = 16 << 10;
/// Room for the ring's bursts, as in the daemon.
const SOCKET_BUFFER: usize = 4 << 20;
/// Not secret: such a ring carries nothing, and costs what a sealed one costs.
const KEY: [u8; 32] = *b"ringload measures, hides nothing";
const CLUSTER: ClusterId = ClusterId(0x7269_6e67_6c6f_6164);

/// What was counted in the measured time.
struct Counted {
    start: Time,
    end: Time,
    delivered: u64,
    latency: Histogram,
    gaps: Histogram,
    /// Gaps above each of the thresholds of interest.
    above: [(Duration, u64); 4],
    configurations: u64,
    /// Processor time of this process at the first and at the last visit of the token.
    cpu: Option<(Duration, Duration)>,
}

struct Load {
    options: Options,
    ring: Ring,
    socket: RingSocket,
    me: Member,
    expected: Vec<NodeId>,
    payload: Bytes,
    /// When own payloads on the way were submitted, if latency is measured.
    on_the_way: VecDeque<Time>,
    last_token: Option<Time>,
    counted: Option<Counted>,
}

/// Runs to the end of the measured time and prints the result.
///
/// # Errors
/// The address cannot be bound, or the members are not all there within a minute.
pub(crate) fn run(options: Options) -> Result<()> {
    let mut poll = Poll::new().context("cannot make an epoll instance")?;
    let mut load = Load::new(options)?;
    poll.registry().register(load.socket.socket(), Token(0), Interest::READABLE)?;
    let limit = clock::now() + FORM_TIMEOUT;
    let mut events = Events::with_capacity(4);
    loop {
        load.fill();
        load.carry_out();
        let now = clock::now();
        match &load.counted {
            None if now > limit => bail!("{} of {} members", load.ring.members().len(), load.expected.len()),
            Some(counted) if now >= counted.end + MARGIN => break,
            _ => {}
        }
        let wait = load.ring.poll_timeout().map_or(MARGIN, |at| at.since(now)).min(MARGIN);
        if let Err(error) = poll.poll(&mut events, Some(wait))
            && error.kind() != std::io::ErrorKind::Interrupted
        {
            return Err(error).context("poll");
        }
        if !load.receive() {
            // More may be there: the next poll must not sleep.
            poll.registry().reregister(load.socket.socket(), Token(0), Interest::READABLE)?;
        }
        let now = clock::now();
        if load.ring.poll_timeout().is_some_and(|at| at <= now) {
            load.ring.handle_timeout(now);
        }
    }
    load.report()
}

/// The address decides the node id, so members know each other's without being told.
fn node_id(address: SocketAddr) -> NodeId {
    let ip = match address.ip() {
        IpAddr::V4(ip) => u64::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip) as u64 & 0xffff_ffff_ffff,
    };
    NodeId(ip << 16 | u64::from(address.port()))
}

impl Load {
    fn new(options: Options) -> Result<Self> {
        let address = options.address;
        let socket = UdpSocket::bind(address).with_context(|| format!("cannot bind {address}"))?;
        let room = socket2::SockRef::from(&socket);
        // The kernel may grant less; the ring then only loses more often.
        let _ = room.set_recv_buffer_size(SOCKET_BUFFER);
        let _ = room.set_send_buffer_size(SOCKET_BUFFER);
        socket.set_nonblocking(true)?;
        let now = clock::now();
        // A later run is a later incarnation: the clock of the machine is the memory that there is.
        let me = Member { node: node_id(address), incarnation: Incarnation(now.as_nanos()) };
        let sealer = Sealer::new(ClusterKey::new(KEY), me);
        let addresses = Whereabouts::new(me, address, options.token_loss());
        let mut socket = RingSocket::new(mio::net::UdpSocket::from_std(socket), sealer, me, addresses);
        socket.set_seeds(options.members.iter().copied());
        let config = RingConfig { queue_limit: QUEUE, ..RingConfig::with_token_loss(options.token_loss()) };
        let mut expected: Vec<NodeId> = options.members.iter().copied().map(node_id).collect();
        expected.push(me.node);
        expected.sort_unstable();
        expected.dedup();
        Ok(Self {
            ring: Ring::new(config, me, CLUSTER, 0, now.as_nanos(), now)?,
            payload: Bytes::from(vec![0x5a; options.size]),
            options,
            socket,
            me,
            expected,
            on_the_way: VecDeque::new(),
            last_token: None,
            counted: None,
        })
    }

    /// Reads datagrams; says whether nothing is left.
    fn receive(&mut self) -> bool {
        for _ in 0..BURST {
            let (ring, now) = (&mut self.ring, clock::now());
            if self.socket.receive(now, |_, packet| ring.handle_packet(now, packet)).is_none() {
                return true;
            }
            self.carry_out();
            self.fill();
        }
        false
    }

    /// Keeps the ring busy, from when it is complete.
    fn fill(&mut self) {
        if self.options.idle || self.counted.is_none() {
            return;
        }
        let now = clock::now();
        let Some(window) = self.options.window else {
            // Half a queue is more than one visit sends; topping up message by message would cost a clock each.
            while self.ring.queue_len() < QUEUE / 2 && self.ring.submit(now, self.payload.clone()).is_ok() {}
            return;
        };
        while self.on_the_way.len() < window && self.ring.submit(now, self.payload.clone()).is_ok() {
            self.on_the_way.push_back(now);
        }
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.ring.poll_output() {
            match output {
                Output::Send { to, packet } => self.socket.send(to, self.ring.members(), &packet),
                // Nothing outlives this process, and its next run has a higher incarnation.
                Output::PersistNumber(number) => self.ring.handle_number_durable(clock::now(), number),
                Output::Configuration(configuration) => self.configured(&configuration),
                Output::Deliver(delivery) => self.delivered(delivery.sender),
                Output::Token(_) => self.token(),
                Output::Safe { .. } => {}
            }
        }
    }

    fn configured(&mut self, configuration: &Configuration) {
        if configuration.kind != ConfigurationKind::Regular {
            return;
        }
        let now = clock::now();
        match &mut self.counted {
            Some(counted) if now >= counted.start && now < counted.end => counted.configurations += 1,
            Some(_) => {}
            None if self.expected.iter().all(|node| configuration.index_of(*node).is_some()) => {
                let start = now + MARGIN;
                self.counted = Some(Counted {
                    start,
                    end: start + Duration::from_secs(self.options.seconds),
                    delivered: 0,
                    latency: Histogram::new(),
                    gaps: Histogram::new(),
                    above: [100, 300, 500, 1000].map(|ms| (Duration::from_millis(ms), 0)),
                    configurations: 0,
                    cpu: None,
                });
            }
            None => {}
        }
    }

    fn delivered(&mut self, sender: Member) {
        let own = (sender == self.me).then(|| self.on_the_way.pop_front()).flatten();
        let Some(counted) = &mut self.counted else { return };
        let now = clock::now();
        if now >= counted.start && now < counted.end {
            counted.delivered += 1;
            if let Some(submitted) = own {
                counted.latency.add(now.since(submitted));
            }
        }
    }

    fn token(&mut self) {
        let now = clock::now();
        let last = self.last_token.replace(now);
        let (Some(counted), Some(last)) = (&mut self.counted, last) else { return };
        if now >= counted.start && now < counted.end {
            let gap = now.since(last);
            counted.gaps.add(gap);
            counted.above.iter_mut().filter(|(limit, _)| gap > *limit).for_each(|(_, count)| *count += 1);
            let cpu = processor_time();
            counted.cpu = Some((counted.cpu.map_or(cpu, |(first, _)| first), cpu));
        }
    }

    fn report(&self) -> Result<()> {
        let Some(counted) = &self.counted else { bail!("nothing was measured") };
        let mut out = std::io::stdout().lock();
        let (stats, socket) = (self.ring.stats(), self.socket.stats);
        writeln!(
            out,
            "ring: {} configurations while measured; since the start: {} token losses, {} tokens sent again, \
             {} messages sent again, {} visits, {} datagrams sent, {} send errors",
            counted.configurations,
            stats.token_losses,
            stats.token_retransmits,
            stats.retransmits,
            stats.visits,
            socket.sent,
            socket.send_errors
        )?;
        if let Some((first, last)) = counted.cpu {
            writeln!(out, "processor time while measured: {} us", last.saturating_sub(first).as_micros())?;
        }
        if self.options.window.is_some() {
            writeln!(out, "send to own delivery: {}", summary(&counted.latency))?;
        }
        if self.options.gaps {
            writeln!(out, "token gaps: {}", summary(&counted.gaps))?;
            for (limit, count) in counted.above {
                writeln!(out, "token gaps above {limit:?}: {count}")?;
            }
            for (end, count) in counted.gaps.rows() {
                writeln!(out, "token gaps up to {} us: {count}", end.as_micros())?;
            }
        }
        writeln!(out, "{}", counted.delivered / self.options.seconds.max(1))?;
        Ok(())
    }
}

/// Processor time that all threads of this process have used.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn summary(all: &Histogram) -> String {
    let at = |share| all.quantile(share).as_micros();
    format!(
        "{} counted, p50 {} us, p99 {} us, p99.9 {} us, max {} us",
        all.count(),
        at(0.5),
        at(0.99),
        at(0.999),
        all.max().as_micros()
    )
}
