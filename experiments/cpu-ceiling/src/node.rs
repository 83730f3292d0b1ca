//! What a node does with what it receives; the engines carry bytes.

use std::alloc::{Layout, alloc_zeroed};
use std::collections::HashMap;

pub const BLOCK: usize = 4096;
pub const HEADER: usize = 32;

/// Before every message; an answer has no payload.
#[derive(Clone, Copy)]
pub struct Header {
    pub id: u64,
    pub offset: u64,
    pub payload: u64,
}

impl Header {
    pub fn put(self, out: &mut Vec<u8>) {
        for field in [self.id, self.offset, self.payload, 0] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }

    pub fn take(from: &[u8]) -> Option<Header> {
        let field = |at: usize| Some(u64::from_le_bytes(from.get(at..at + 8)?.try_into().ok()?));
        field(24)?;
        Some(Header { id: field(0)?, offset: field(8)?, payload: field(16)? })
    }
}

/// A block in memory that direct I/O takes.
pub struct Block(*mut u8);

// SAFETY: a Block is the only owner of its memory.
unsafe impl Send for Block {}

impl Block {
    fn new() -> Block {
        // SAFETY: the size is not zero; memory is checked below.
        let memory = unsafe { alloc_zeroed(Layout::from_size_align(BLOCK, BLOCK).expect("layout")) };
        assert!(!memory.is_null());
        Block(memory)
    }

    pub fn fill(&mut self, from: &[u8]) {
        assert_eq!(from.len(), BLOCK);
        // SAFETY: both are BLOCK bytes and do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.0, BLOCK) };
    }

    pub fn pointer(&self) -> *const u8 {
        self.0
    }
}

/// A write for the disk.
pub struct Job {
    pub id: u64,
    pub offset: u64,
    pub block: Block,
}

/// A shard's state: what is to be sent per connection, what is to be written, and who waits.
pub struct Node {
    gateway: bool,
    pub out: Vec<Vec<u8>>,
    pub jobs: Vec<Job>,
    spare: Vec<Block>,
    next: u64,
    /// In the gateway: the client's number of the write, and answers that are missing.
    waiting: HashMap<u64, (u64, u8)>,
    input: Vec<Vec<u8>>,
}

impl Node {
    pub fn new(gateway: bool, connections: usize) -> Node {
        Node {
            gateway,
            out: vec![Vec::new(); connections],
            jobs: Vec::new(),
            spare: Vec::new(),
            next: 0,
            waiting: HashMap::new(),
            input: vec![Vec::new(); connections],
        }
    }

    /// Bytes came in.
    pub fn received(&mut self, connection: usize, bytes: &[u8]) {
        let mut input = std::mem::take(&mut self.input[connection]);
        if input.is_empty() {
            // The usual case: whole messages, not copied together first.
            let used = self.messages(connection, bytes);
            input.extend_from_slice(&bytes[used..]);
        } else {
            input.extend_from_slice(bytes);
            let used = self.messages(connection, &input);
            input.drain(..used);
        }
        self.input[connection] = input;
    }

    fn messages(&mut self, connection: usize, bytes: &[u8]) -> usize {
        let mut at = 0;
        while let Some(header) = Header::take(&bytes[at..]) {
            let Some(payload) = bytes.get(at + HEADER..at + HEADER + header.payload as usize) else { break };
            self.message(connection, header, payload);
            at += HEADER + payload.len();
        }
        at
    }

    fn message(&mut self, connection: usize, header: Header, payload: &[u8]) {
        if self.gateway && connection > 0 {
            return self.have(header.id);
        }
        let mut id = header.id;
        if self.gateway {
            id = self.next;
            self.next += 1;
            self.waiting.insert(id, (header.id, 3));
            for peer in [1, 2] {
                Header { id, ..header }.put(&mut self.out[peer]);
                self.out[peer].extend_from_slice(payload);
            }
        }
        let mut block = self.spare.pop().unwrap_or_else(Block::new);
        block.fill(payload);
        self.jobs.push(Job { id, offset: header.offset, block });
    }

    /// The disk has it.
    pub fn written(&mut self, job: Job) {
        self.spare.push(job.block);
        if self.gateway {
            self.have(job.id);
        } else {
            Header { id: job.id, offset: 0, payload: 0 }.put(&mut self.out[0]);
        }
    }

    fn have(&mut self, id: u64) {
        let Some((client, missing)) = self.waiting.get_mut(&id) else { panic!("answer to nothing") };
        *missing -= 1;
        if *missing == 0 {
            Header { id: *client, offset: 0, payload: 0 }.put(&mut self.out[0]);
            self.waiting.remove(&id);
        }
    }
}
