//! Clones that are to be flattened and that nobody uses: one node opens each for the purpose.

use super::DataThread;
use sheep_state::ClusterState;
use sheep_types::{Member, Time, VdiId};
use std::collections::BTreeMap;
use std::time::Duration;

/// Open at once for nobody.
const AT_ONCE: usize = 2;
/// A volume that was used is left alone so long.
const UNUSED: Duration = Duration::from_secs(3);
/// One that was opened is not opened again before.
const AGAIN: Duration = Duration::from_secs(30);

/// What is known of volumes that are to be flattened.
#[derive(Default)]
pub(super) struct Idle {
    /// Since when nobody uses them.
    unused: BTreeMap<VdiId, Time>,
    /// When they were last opened here.
    opened: BTreeMap<VdiId, Time>,
}

/// The storage node that opens a volume: every node comes to the same one.
fn chosen(state: &ClusterState, vdi: VdiId) -> Option<Member> {
    let up: Vec<Member> =
        state.members().iter().filter(|member| member.is_up()).map(|member| member.member()).collect();
    let place = vdi.0.checked_rem(up.len() as u64)?;
    up.get(usize::try_from(place).ok()?).copied()
}

impl Idle {
    /// Volumes that this node is to open now, if it may open so many.
    fn due(&mut self, state: &ClusterState, me: Member, now: Time, room: usize) -> Vec<VdiId> {
        let is_unused = |vdi: &VdiId| {
            let record = state.vdi(*vdi);
            record.is_some_and(|record| {
                record.lock.is_none() && record.readers.is_empty() && record.attachments.is_empty()
            })
        };
        let unused: Vec<VdiId> = state.flattening().filter(is_unused).collect();
        let before = std::mem::take(&mut self.unused);
        self.unused = unused.iter().map(|vdi| (*vdi, before.get(vdi).copied().unwrap_or(now))).collect();
        self.opened.retain(|_, at| now.since(*at) < AGAIN);
        let ripe = self.unused.iter().filter(|(vdi, since)| {
            now.since(**since) >= UNUSED && !self.opened.contains_key(vdi) && chosen(state, **vdi) == Some(me)
        });
        let due: Vec<VdiId> = ripe.map(|(vdi, _)| *vdi).take(room).collect();
        self.opened.extend(due.iter().map(|vdi| (*vdi, now)));
        due
    }
}

impl DataThread {
    /// Opens volumes that are to be flattened, a few at a time.
    pub(super) fn flatten_unused(&mut self, now: Time) {
        let Some(view) = self.view.clone().filter(|_| !self.closing && now < self.lease) else { return };
        let room = AT_ONCE.saturating_sub(self.volumes.in_background());
        for vdi in self.idle.due(&view.state, self.me, now, room) {
            let action = self.volumes.flatten(vdi);
            self.act(now, action);
        }
    }

    /// Whether the volume is held only to be flattened, and given back to who asks for it.
    pub(super) fn is_given_back(&self, vdi: VdiId) -> bool {
        let record = self.view.as_ref().and_then(|view| view.state.vdi(vdi));
        record.and_then(|record| record.lock).is_some_and(|lock| lock.background)
    }

    /// A volume could not be opened because it was closed meanwhile: it is opened for who waits for it.
    pub(super) fn reopened(&mut self, now: Time, volume: u64) -> bool {
        let closing = self.volumes.is_closing(volume);
        if closing {
            for action in self.volumes.closed(volume) {
                self.act(now, action);
            }
        }
        closing
    }

    /// Says how far volumes are that are flattened here.
    pub(super) fn describe_flattening(&mut self, status: &mut crate::handle::DataStatus) {
        if let Some(shard) = &mut self.shard {
            status.flattening = shard.gateway().flattening().collect();
        }
    }
}
