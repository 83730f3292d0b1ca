//! What happened, as a running hash: the same seed must give the same one.

/// FNV-1a over everything noted; printed too, if asked for.
#[derive(Clone, Debug)]
pub struct Trace {
    hash: u64,
    events: u64,
    verbose: bool,
}

impl Trace {
    /// An empty trace.
    pub fn new(verbose: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, events: 0, verbose }
    }

    fn eat(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// An event of the world, by numbers.
    pub fn event(&mut self, at: u64, kind: u8, node: usize, detail: u64) {
        self.events += 1;
        self.eat(&at.to_le_bytes());
        self.eat(&[kind, node as u8]);
        self.eat(&detail.to_le_bytes());
    }

    /// Something a person wants to read.
    pub fn say(&mut self, at: u64, text: &str) {
        self.eat(text.as_bytes());
        if self.verbose {
            eprintln!("{:>12.6} {text}", at as f64 / 1e9);
        }
    }

    /// The hash of everything so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.events
    }
}
