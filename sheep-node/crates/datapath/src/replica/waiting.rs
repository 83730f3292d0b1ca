//! Requests that cannot be answered yet, bounded in number, bytes and time.

use sheep_types::{ObjectId, Time};
use sheep_wire::{Body, Header, Refusal, Reply, Request};
use std::collections::{BTreeMap, VecDeque};

/// A waiting request.
#[derive(Debug)]
pub(crate) struct Entry {
    header: Header,
    request: Request,
    /// When it is answered with `late`.
    deadline: Time,
    late: Reply,
}

impl Entry {
    /// The request, and the deadline that it keeps when it has to wait again.
    pub(crate) fn into_parts(self) -> (Header, Request, Time) {
        (self.header, self.request, self.deadline)
    }
}

/// All waiting requests.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    view: VecDeque<Entry>,
    objects: BTreeMap<ObjectId, VecDeque<Entry>>,
    len: usize,
    bytes: usize,
}

fn bytes_of(request: &Request) -> usize {
    match request {
        Request::Write(write) => match &write.body {
            Body::Data { payload, .. } => payload.len(),
            Body::Zero { .. } => 0,
        },
        _ => 0,
    }
}

impl Waiting {
    /// Number of waiting requests.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether one more request would be too much.
    pub(crate) fn is_full(&self, request: &Request, requests: usize, bytes: usize) -> bool {
        self.len >= requests || self.bytes.saturating_add(bytes_of(request)) > bytes
    }

    fn note(&mut self, entry: &Entry) {
        self.len += 1;
        self.bytes += bytes_of(&entry.request);
    }

    fn release<'a>(&mut self, entries: impl IntoIterator<Item = &'a Entry>) {
        for entry in entries {
            self.len -= 1;
            self.bytes -= bytes_of(&entry.request);
        }
    }

    /// Waits for a view (or for the store to start).
    pub(crate) fn push_for_view(&mut self, header: Header, request: Request, deadline: Time) {
        let entry = Entry { header, request, deadline, late: Reply::Refused(Refusal::Busy) };
        self.note(&entry);
        self.view.push_back(entry);
    }

    /// Waits for something about an object.
    pub(crate) fn push(
        &mut self,
        object: ObjectId,
        header: Header,
        request: Request,
        deadline: Time,
        late: Reply,
    ) {
        let entry = Entry { header, request, deadline, late };
        self.note(&entry);
        self.objects.entry(object).or_default().push_back(entry);
    }

    /// Objects that requests wait for.
    pub(crate) fn objects(&self) -> Vec<ObjectId> {
        self.objects.keys().copied().collect()
    }

    /// Takes the requests of an object, oldest first.
    pub(crate) fn take(&mut self, object: ObjectId) -> VecDeque<Entry> {
        let entries = self.objects.remove(&object).unwrap_or_default();
        self.release(&entries);
        entries
    }

    /// Takes all that wait for a view, oldest first.
    pub(crate) fn take_for_view(&mut self) -> Vec<(Header, Request)> {
        let entries = core::mem::take(&mut self.view);
        self.release(&entries);
        entries.into_iter().map(|entry| (entry.header, entry.request)).collect()
    }

    /// Takes everything.
    pub(crate) fn take_all(&mut self) -> Vec<(Header, Request)> {
        let mut all = self.take_for_view();
        for object in self.objects() {
            all.extend(self.take(object).into_iter().map(|entry| (entry.header, entry.request)));
        }
        all
    }

    /// Takes those that have waited too long for a view.
    pub(crate) fn expired_for_view(&mut self, now: Time) -> Vec<(Header, Reply)> {
        let entries = core::mem::take(&mut self.view);
        let (late, rest): (VecDeque<_>, VecDeque<_>) =
            entries.into_iter().partition(|entry| entry.deadline <= now);
        self.view = rest;
        self.release(&late);
        late.into_iter().map(|entry| (entry.header, entry.late)).collect()
    }

    /// Takes those of an object that have waited too long, with the answer they get.
    pub(crate) fn expired(&mut self, now: Time, object: ObjectId) -> Vec<(Header, Reply)> {
        let Some(entries) = self.objects.remove(&object) else { return Vec::new() };
        let (late, rest): (VecDeque<_>, VecDeque<_>) =
            entries.into_iter().partition(|entry| entry.deadline <= now);
        if !rest.is_empty() {
            self.objects.insert(object, rest);
        }
        self.release(&late);
        late.into_iter().map(|entry| (entry.header, entry.late)).collect()
    }
}
