//! Clients that ask for a volume which this node does not know, or does not know yet.
//!
//! A node that has just been started says that it is ready before it has heard what the cluster has, and a volume that
//! was made through another node is known here only when the entry has come. Neither is a reason to refuse.

use super::DataThread;
use super::volumes::{Opened, Waiter};
use mio::Token;
use sheep_frontend::nbd::OpenError;
use sheep_types::Time;
use std::time::Duration;

/// How long a name that nobody knows is looked for.
const UNKNOWN: Duration = Duration::from_millis(500);
/// How long by a node that has not been in the primary component since its start.
const NOT_CAUGHT_UP: Duration = Duration::from_secs(15);
/// How often it is looked for.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A client and the name it asks for.
pub(super) struct Unknown {
    client: Token,
    name: String,
    info_only: bool,
    since: Time,
}

impl DataThread {
    /// An NBD client asks for a volume.
    pub(super) fn client_opens(&mut self, now: Time, client: Token, name: String, info_only: bool) {
        let asked = Unknown { client, name, info_only, since: now };
        if !self.found(now, &asked) {
            self.unknown.push(asked);
        }
    }

    /// Looks again for what was not known, and gives up what was looked for long enough.
    pub(super) fn look_for_unknown(&mut self, now: Time) {
        let patience = if self.lease == Time::ZERO { NOT_CAUGHT_UP } else { UNKNOWN };
        for asked in core::mem::take(&mut self.unknown) {
            if self.found(now, &asked) {
                continue;
            }
            if now.since(asked.since) < patience && self.stopping.is_none() {
                self.unknown.push(asked);
            } else {
                self.clients.opened(asked.client, Err(OpenError::NotFound));
            }
        }
    }

    fn found(&mut self, now: Time, asked: &Unknown) -> bool {
        let vdi = self.view.as_ref().and_then(|view| view.state.vdi_by_name(&asked.name).cloned());
        let Some(vdi) = vdi else { return false };
        if asked.info_only {
            self.clients.opened(asked.client, Ok((None, Opened { size: vdi.size, read_only: false })));
        } else {
            self.open(now, vdi.id, false, Waiter::Client(asked.client));
        }
        true
    }
}
