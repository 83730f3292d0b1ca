//! The state machine.
use crate::{DiskOp, DiskOpId, DiskResult, Event, Header, Op, StoreConfig, StoreIdentity, Usage};
use sheep_types::ObjectId;

/// A store. See the [crate] documentation.
#[derive(Debug)]
pub struct Store {}

impl Store {
    /// Opens (or, with `format_new`, makes) a store. It serves after [`Event::Ready`].
    pub fn open(_config: StoreConfig, _identity: StoreIdentity, _format_new: bool) -> Self {
        Self {}
    }
    /// Asks for an operation; its result comes as [`Event::Done`] with the same token.
    pub fn submit(&mut self, _token: u64, _op: Op) {}
    /// Takes the result of a disk operation.
    pub fn handle_disk(&mut self, _id: DiskOpId, _result: DiskResult) {}
    /// Next disk operation, if any.
    pub fn poll_disk(&mut self) -> Option<DiskOp> {
        None
    }
    /// Next event, if any.
    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }
    /// Header of an object, from memory.
    pub fn header(&self, _object: ObjectId) -> Option<&Header> {
        None
    }
    /// Headers of all objects from `from` on, in order of id.
    pub fn objects(&self, _from: ObjectId) -> impl Iterator<Item = &Header> {
        std::iter::empty()
    }
    /// How full it is.
    pub fn usage(&self) -> Usage {
        Usage::default()
    }
}
