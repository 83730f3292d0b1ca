//! What the name of an export means: a VDI by its name, or a volume under one attachment and no other.

use sheep_datapath::View;
use sheep_state::AccessMode;
use sheep_types::{ClusterId, LogIndex, NodeId, VdiId};

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Export<'a> {
    Named(&'a str),
    /// `@CLUSTER:VOLUME:ATTACHMENT`; no VDI is called so.
    Attached {
        cluster: ClusterId,
        vdi: VdiId,
        attachment: LogIndex,
    },
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sought {
    /// It can be opened.
    Found(Found),
    /// This node does not know it, and may do so soon.
    Unknown,
    /// This node is of another cluster.
    Foreign,
    /// The attachment has ended, and never comes back.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) vdi: VdiId,
    pub(super) size: u64,
    pub(super) read_only: bool,
    /// Under this attachment only.
    pub(super) attachment: Option<LogIndex>,
}

fn parse(name: &str) -> Export<'_> {
    let attached = || {
        let mut parts = name.strip_prefix('@')?.split(':');
        let cluster = ClusterId(u128::from_str_radix(parts.next()?, 16).ok()?);
        let (vdi, attachment) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let end = parts.next().is_none();
        end.then_some(Export::Attached { cluster, vdi: VdiId(vdi), attachment: LogIndex(attachment) })
    };
    attached().unwrap_or(Export::Named(name))
}

/// Looks for an export at the node `me`.
pub(super) fn seek(view: &View, me: NodeId, name: &str) -> Sought {
    let (record, wanted) = match parse(name) {
        Export::Named(name) => (view.state.vdi_by_name(name), None),
        Export::Attached { cluster, .. } if cluster != view.cluster => return Sought::Foreign,
        Export::Attached { vdi, attachment, .. } => (view.state.vdi(vdi), Some(attachment)),
    };
    let own = record.and_then(|record| record.attachments.iter().find(|present| present.node == me));
    match (record, wanted) {
        (Some(record), _) if wanted.is_none() || own.map(|own| own.index) == wanted => Sought::Found(Found {
            vdi: record.id,
            size: record.size,
            read_only: record.is_snapshot() || own.is_some_and(|own| own.mode == AccessMode::Read),
            attachment: wanted,
        }),
        // What was ordered up to here is known here, and an index is given once.
        (_, Some(attachment)) if view.state.applied() >= attachment => Sought::Ended,
        _ => Sought::Unknown,
    }
}

/// Whether a volume is attached to the node `me` so.
pub(super) fn is_attached(view: &View, me: NodeId, vdi: VdiId, attachment: LogIndex) -> bool {
    let record = view.state.vdi(vdi);
    record.is_some_and(|record| {
        record.attachments.iter().any(|present| present.node == me && present.index == attachment)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeNode, ME, OTHER};
    use sheep_engine::Published;
    use sheep_state::{CacheMode, Command, CreateVdi, Outcome};
    use sheep_types::Member;
    use std::sync::Arc;

    struct World {
        fake: FakeNode,
        vdi: VdiId,
    }

    impl World {
        fn start() -> Self {
            let fake = FakeNode::start();
            fake.add_other();
            let create = Command::CreateVdi(CreateVdi {
                name: "disk".into(),
                size: 1 << 30,
                copies: None,
                min_copies: None,
                cache: CacheMode::default(),
                created_unix_ms: 0,
                attributes: Default::default(),
            });
            let Ok(Outcome::Created { vdi, .. }) = fake.order(ME, create) else { panic!() };
            Self { fake, vdi }
        }

        fn attach(&self, node: Member, mode: AccessMode) -> LogIndex {
            let attach = Command::Attach { vdi: self.vdi, node: node.node, mode, share: false };
            let Ok(Outcome::Attached { attachment }) = self.fake.order(ME, attach) else { panic!() };
            attachment
        }

        fn seek(&self, name: &str) -> Sought {
            let state = Arc::new(self.fake.state());
            let Published { index, state } = Published { index: state.applied(), state };
            let cluster = state.cluster();
            seek(&View::advance(None, ME, cluster, index, state), ME.node, name)
        }

        fn name(&self, attachment: LogIndex) -> String {
            format!("@{}:{}:{}", self.fake.state().cluster(), self.vdi.0, attachment.0)
        }
    }

    #[test]
    fn names_of_exports() {
        let attached = Export::Attached { cluster: ClusterId(0xab), vdi: VdiId(7), attachment: LogIndex(9) };
        assert_eq!(parse("@ab:7:9"), attached);
        for other in ["disk", "disk@tag", "@", "@ab:7", "@ab:7:9:1", "@xyz:7:9", "@ab:-7:9", "@ab::9"] {
            assert_eq!(parse(other), Export::Named(other));
        }
    }

    #[test]
    fn only_the_present_attachment_opens_and_an_ended_one_never_again() {
        let world = World::start();
        let first = world.attach(ME, AccessMode::Write);
        let found = Found { vdi: world.vdi, size: 1 << 30, read_only: false, attachment: Some(first) };
        assert_eq!(world.seek(&world.name(first)), Sought::Found(found));
        assert_eq!(world.seek("disk"), Sought::Found(Found { attachment: None, ..found }));
        // What this node has not heard of yet is not over.
        assert_eq!(world.seek(&world.name(LogIndex(first.0 + 1000))), Sought::Unknown);
        assert_eq!(world.seek("other"), Sought::Unknown);
        assert_eq!(world.seek(&format!("@77:{}:{}", world.vdi.0, first.0)), Sought::Foreign);
        world.fake.order(ME, Command::Detach { vdi: world.vdi, attachment: first }).unwrap();
        assert_eq!(world.seek(&world.name(first)), Sought::Ended);
        let second = world.attach(ME, AccessMode::Read);
        assert_eq!(world.seek(&world.name(first)), Sought::Ended, "another attachment is no excuse");
        let read_only = Found { read_only: true, ..found };
        let by_attachment = Found { attachment: Some(second), ..read_only };
        assert_eq!(world.seek(&world.name(second)), Sought::Found(by_attachment));
        assert_eq!(world.seek("disk"), Sought::Found(Found { attachment: None, ..read_only }));
        let elsewhere = world.attach(OTHER, AccessMode::Read);
        assert_eq!(world.seek(&world.name(elsewhere)), Sought::Ended, "it is another node's");
    }
}
