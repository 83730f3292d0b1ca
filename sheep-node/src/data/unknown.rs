//! Clients that ask for a volume which this node does not know, or does not know yet.
//!
//! A node that has just been started says that it is ready before it has heard what the cluster has, and a volume that
//! was made through another node is known here only when the entry has come. Neither is a reason to refuse.

use super::DataThread;
use super::exports::{self, Found, Sought};
use super::volumes::{Opened, Waiter};
use mio::Token;
use sheep_frontend::nbd::OpenError;
use sheep_types::Time;
use std::time::Duration;

/// How long a name that nobody knows is looked for.
const UNKNOWN: Duration = Duration::from_millis(500);
/// How long by a node that has not been in the primary component since its start.
const NOT_CAUGHT_UP: Duration = Duration::from_secs(15);

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

    fn patience(&self) -> Duration {
        if self.lease == Time::ZERO { NOT_CAUGHT_UP } else { UNKNOWN }
    }

    /// When the first of them is given up. A name that becomes known comes with a view, which ends the wait too.
    pub(super) fn unknown_timeout(&self) -> Option<Time> {
        self.unknown.iter().map(|asked| asked.since + self.patience()).min()
    }

    /// Looks again for what was not known, and gives up what was looked for long enough.
    pub(super) fn look_for_unknown(&mut self, now: Time) {
        let patience = self.patience();
        for asked in core::mem::take(&mut self.unknown) {
            if self.found(now, &asked) {
                continue;
            }
            if now.since(asked.since) < patience && self.stopping.is_none() {
                self.unknown.push(asked);
            } else {
                self.clients.opened(asked.client, Err(not_known(&asked.name)));
            }
        }
    }

    /// Whether somebody has been answered, or is when the volume is open.
    fn found(&mut self, now: Time, asked: &Unknown) -> bool {
        let Some(view) = &self.view else { return false };
        let found = match exports::seek(view, self.me.node, &asked.name) {
            Sought::Found(found) => found,
            Sought::Unknown => return false,
            Sought::Foreign => {
                let denied = OpenError::Denied("this node is of another cluster".into());
                self.clients.opened(asked.client, Err(denied));
                return true;
            }
            Sought::Ended => {
                self.clients.opened(asked.client, Err(OpenError::NotFound));
                return true;
            }
        };
        let Found { vdi, size, read_only, attachment } = found;
        if asked.info_only {
            self.clients.opened(asked.client, Ok((None, Opened { size, read_only })));
        } else {
            self.open(now, vdi, read_only, false, Waiter::Client(asked.client, attachment));
        }
        true
    }
}

/// What a client is told of a name that this node does not know. Whoever names an attachment takes "no such export" for its end,
/// which nobody may say who only does not know it yet.
fn not_known(name: &str) -> OpenError {
    match name.starts_with('@') {
        true => OpenError::Denied("this node does not know the attachment yet".into()),
        false => OpenError::NotFound,
    }
}
