//! Where a script gets its hands on the world: messages held back, answers caught.

use crate::world::{Event, World};
use sheep_datapath::GatewayOutput;
use std::collections::BTreeSet;

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes its way.
    Pass,
    /// It is lost.
    Drop,
    /// It arrives when the script says so.
    Hold,
}

/// Looks at a message (an event of arrival, and the node it comes from) and decides.
pub type Filter = Box<dyn FnMut(usize, &Event) -> Fate>;

/// Handles of scripts have this bit, those of clients do not.
pub const OF_SCRIPT: u64 = 1 << 63;

/// A script's hands. Empty in random runs.
#[derive(Default)]
pub struct Hooks {
    filter: Option<Filter>,
    held: Vec<Event>,
    /// What gateways said about the script's volumes, with the node that said it.
    pub outputs: Vec<(usize, GatewayOutput)>,
    /// Nodes that do not answer when the data path to them is tested.
    pub deaf: BTreeSet<usize>,
}

impl Hooks {
    /// What the filter lets through.
    pub(crate) fn pass(&mut self, from: usize, event: Event) -> Option<Event> {
        let Some(filter) = &mut self.filter else { return Some(event) };
        match filter(from, &event) {
            Fate::Pass => Some(event),
            Fate::Drop => None,
            Fate::Hold => {
                self.held.push(event);
                None
            }
        }
    }

    /// Takes what belongs to the script.
    pub(crate) fn catch(&mut self, node: usize, output: GatewayOutput) -> Option<GatewayOutput> {
        let handle = match &output {
            GatewayOutput::Opened { handle, .. }
            | GatewayOutput::OpenFailed { handle, .. }
            | GatewayOutput::Done { handle, .. }
            | GatewayOutput::Resized { handle, .. }
            | GatewayOutput::Lost { handle, .. }
            | GatewayOutput::Closed { handle } => *handle,
            GatewayOutput::Send(_) | GatewayOutput::Propose { .. } | GatewayOutput::Report { .. } => 0,
        };
        if handle & OF_SCRIPT == 0 {
            return Some(output);
        }
        self.outputs.push((node, output));
        None
    }
}

impl World {
    /// From now on every message is shown to this filter.
    pub fn filter(&mut self, filter: impl FnMut(usize, &Event) -> Fate + 'static) {
        self.hooks.filter = Some(Box::new(filter));
    }

    /// Number of messages held back.
    pub fn held(&self) -> usize {
        self.hooks.held.len()
    }

    /// Messages pass freely; those held back arrive now, in their order, or are gone.
    pub fn unfilter(&mut self, deliver: bool) {
        self.hooks.filter = None;
        for (place, event) in core::mem::take(&mut self.hooks.held).into_iter().enumerate() {
            if deliver {
                self.schedule(1 + place as u64, event);
            }
        }
    }
}
