//! Snapshots, clones and rollback.

use super::*;
use crate::testing::ME;
use sheep_api::EXISTING_VDI;
use sheep_datapath::{FillProgress, FillState};
use sheep_types::VdiId;

impl Api {
    async fn snapshot(&mut self, name: &str, tag: &str) -> Result<Vdi, Status> {
        let attributes = [("why".to_owned(), tag.to_owned())].into();
        let request = SnapshotVdiRequest { name: name.into(), tag: tag.into(), attributes, id: 0 };
        Ok(self.vdis.snapshot(request).await?.into_inner().snapshot.unwrap())
    }

    async fn group(&mut self, names: &[&str], tag: &str) -> Result<Vec<String>, Status> {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let request = SnapshotGroupRequest { names, tag: tag.into(), ..Default::default() };
        let taken = self.vdis.snapshot_group(request).await?.into_inner().snapshots;
        Ok(taken.into_iter().map(|vdi| vdi.name).collect())
    }

    async fn clone_vdi(&mut self, source: &str, name: &str) -> Result<Vdi, Status> {
        let request =
            CloneVdiRequest { source: source.into(), name: name.into(), ..CloneVdiRequest::default() };
        Ok(self.vdis.clone_vdi(request).await?.into_inner().vdi.unwrap())
    }

    async fn rollback(&mut self, name: &str, tag: &str) -> Result<Vdi, Status> {
        let request = RollbackVdiRequest { name: name.into(), tag: tag.into() };
        Ok(self.vdis.rollback(request).await?.into_inner().vdi.unwrap())
    }

    async fn flatten(&mut self, name: &str, wanted: Option<bool>) -> Result<FlattenVdiReply, Status> {
        Ok(self.vdis.flatten(FlattenVdiRequest { name: name.into(), wanted }).await?.into_inner())
    }

    async fn names(&mut self) -> Vec<String> {
        let all = self.vdis.list(ListVdisRequest::default()).await.unwrap().into_inner().vdis;
        let mut names: Vec<String> = all.into_iter().map(|vdi| vdi.name).collect();
        names.sort();
        names
    }

    fn revoke(&self, vdi: &Vdi) {
        let vdi = VdiId(vdi.id);
        let generation = self.fake.state().vdi(vdi).unwrap().lock.unwrap().generation;
        self.fake.order(OTHER, Command::Revoke { vdi, generation }).unwrap();
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}

#[tokio::test]
async fn a_snapshot_is_taken_read_cloned_and_deleted() {
    let mut api = api().await;
    let disk = api.create("disk", 4 * MIB).await.unwrap();
    assert_eq!((disk.kind.as_str(), disk.cloned, disk.parent.as_str()), ("volume", false, ""));
    api.write("disk", 0, &[&[1; 512]]).await.unwrap();
    let one = api.snapshot("disk", "one").await.unwrap();
    assert_eq!((one.name.as_str(), one.kind.as_str(), one.tag.as_str()), ("disk@one", "snapshot", "one"));
    assert_eq!(
        (one.source.as_str(), one.source_id, one.attributes["why"].as_str()),
        ("disk", disk.id, "one")
    );
    assert!(one.created_unix_ms >= disk.created_unix_ms && one.size_bytes == 4 * MIB);
    api.write("disk", 0, &[&[2; 512]]).await.unwrap();
    assert_eq!(api.read("disk@one", 0, 512).await.unwrap(), [1; 512]);
    assert_eq!(api.read("disk", 0, 512).await.unwrap(), [2; 512]);
    let two = api.snapshot("disk", "two").await.unwrap();
    assert_eq!(two.parent, "disk@one");
    let copy = api.clone_vdi("disk@one", "copy").await.unwrap();
    assert_eq!((copy.kind.as_str(), copy.cloned, copy.origin.as_str()), ("volume", true, "disk@one"));
    assert_eq!(api.read("copy", 0, 512).await.unwrap(), [1; 512]);
    assert_eq!(api.names().await, ["copy", "disk", "disk@one", "disk@two"]);
    // In any order.
    api.delete("disk@one").await.unwrap();
    api.delete("disk").await.unwrap();
    let shown = api
        .vdis
        .list(ListVdisRequest { name: "disk@two".into(), ..Default::default() })
        .await
        .unwrap()
        .into_inner()
        .vdis;
    assert_eq!((shown[0].source.as_str(), shown[0].source_id), ("", disk.id));
    let shown = api
        .vdis
        .list(ListVdisRequest { name: "copy".into(), ..Default::default() })
        .await
        .unwrap()
        .into_inner()
        .vdis;
    assert_eq!((shown[0].cloned, shown[0].origin.as_str()), (true, ""));
    api.delete("disk@two").await.unwrap();
    assert_eq!(api.names().await, ["copy"]);
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_the_reason() {
    let mut api = api().await;
    let disk = api.create("disk", 4 * MIB).await.unwrap();
    let taken = api.snapshot("disk", "one").await.unwrap();
    let error = api.snapshot("disk", "one").await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::AlreadyExists, "a snapshot disk@one exists"));
    assert_eq!(error.metadata().get(EXISTING_VDI).unwrap(), taken.id.to_string().as_str());
    for error in
        [api.create("disk", MIB).await.unwrap_err(), api.clone_vdi("disk@one", "disk").await.unwrap_err()]
    {
        assert_eq!(error.code(), Code::AlreadyExists);
        assert_eq!(error.metadata().get(EXISTING_VDI).unwrap(), disk.id.to_string().as_str());
    }
    assert_eq!(code(api.snapshot("none", "one").await), Code::NotFound);
    assert_eq!(code(api.snapshot("disk", "a@b").await), Code::InvalidArgument);
    assert_eq!(code(api.snapshot("disk", "").await), Code::InvalidArgument);
    assert_eq!(code(api.snapshot("disk@one", "two").await), Code::FailedPrecondition);
    assert_eq!(code(api.clone_vdi("disk@none", "copy").await), Code::NotFound);
    assert_eq!(code(api.clone_vdi("disk@one", "copy@one").await), Code::InvalidArgument);
    let mut small = CloneVdiRequest { source: "disk@one".into(), name: "copy".into(), ..Default::default() };
    small.size_bytes = 2 * MIB;
    assert_eq!(code(api.vdis.clone_vdi(small.clone()).await), Code::InvalidArgument);
    small.source = "disk".into();
    assert_eq!(code(api.vdis.clone_vdi(small).await), Code::InvalidArgument);
    assert_eq!(code(api.rollback("disk", "none").await), Code::NotFound);
    assert_eq!(code(api.write("disk@one", 0, &[b"x"]).await), Code::FailedPrecondition);
    assert_eq!(code(api.resize("disk@one", 8 * MIB, false).await), Code::FailedPrecondition);
    assert_eq!(code(api.resize("disk@one", 2 * MIB, true).await), Code::FailedPrecondition);
    let lost = AcceptLossRequest { name: "disk@one".into(), ..Default::default() };
    assert_eq!(code(api.vdis.accept_loss(lost).await), Code::FailedPrecondition);
    assert_eq!(api.names().await, ["disk", "disk@one"]);
}

#[tokio::test]
async fn a_volume_is_copied_and_no_snapshot_is_left() {
    let mut api = api().await;
    api.create("disk", 4 * MIB).await.unwrap();
    api.write("disk", 512, &[&[3; 512]]).await.unwrap();
    let mut request = CloneVdiRequest {
        source: "disk".into(),
        name: "copy".into(),
        size_bytes: 8 * MIB,
        copies: 2,
        ..CloneVdiRequest::default()
    };
    let copy = api.vdis.clone_vdi(request.clone()).await.unwrap().into_inner().vdi.unwrap();
    assert_eq!((copy.size_bytes, copy.copies, copy.cloned, copy.origin.as_str()), (8 * MIB, 2, true, ""));
    assert_eq!(api.read("copy", 512, 512).await.unwrap(), [3; 512]);
    assert_eq!(api.names().await, ["copy", "disk"]);
    // Nor when it comes to nothing.
    (request.name, request.copies) = ("other".into(), 17);
    assert_eq!(code(api.vdis.clone_vdi(request).await), Code::InvalidArgument);
    assert_eq!(api.names().await, ["copy", "disk"]);
}

#[tokio::test]
async fn an_open_volume_is_snapshot_by_its_holder() {
    let mut api = api().await;
    api.fake.add_other();
    let disk = api.create("disk", 4 * MIB).await.unwrap();
    let id = VdiId(disk.id);
    let open =
        |answer| crate::handle::VolumeRequest::Open { vdi: id, read_only: false, alone: false, answer };
    let opened = api.fake.handle.volume(open).await.unwrap();
    let held = api.fake.state().vdi(id).unwrap().lock.unwrap().generation;
    api.snapshot("disk", "open").await.unwrap();
    let lock = api.fake.state().vdi(id).unwrap().lock;
    assert_eq!(lock.map(|lock| lock.generation), Some(held), "its user has it as before");
    assert_eq!(code(api.rollback("disk", "open").await), Code::FailedPrecondition);
    let (answer, _) = tokio::sync::oneshot::channel();
    let close = crate::handle::VolumeRequest::Close { handle: opened.handle, answer };
    api.fake.handle.volumes.send(crate::data::DataMessage::Volume(close)).unwrap();
    api.rollback("disk", "open").await.unwrap();

    api.lock_elsewhere(&disk);
    for (error, message) in [
        (api.snapshot("disk", "else").await.unwrap_err(), "open at node second"),
        (api.clone_vdi("disk", "copy").await.unwrap_err(), "open at node second"),
        (api.rollback("disk", "open").await.unwrap_err(), "in use by node second"),
    ] {
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().contains(message), "{}", error.message());
        assert_eq!(error.metadata().get(ASK_NODE).unwrap(), OTHER.node.to_string().as_str());
    }
    // Its snapshots are there for all.
    api.clone_vdi("disk@open", "copy").await.unwrap();
    // Not closed cleanly: opening settles it.
    api.revoke(&disk);
    assert!(!api.fake.state().vdi(id).unwrap().is_clean());
    api.snapshot("disk", "settled").await.unwrap();
    let state = api.fake.state();
    let record = state.vdi(id).unwrap();
    assert!(record.lock.is_none() && record.is_clean());
}

#[tokio::test]
async fn a_volume_goes_back_to_its_own_snapshots_only() {
    let mut api = api().await;
    api.fake.add_other();
    let disk = api.create("disk", 4 * MIB).await.unwrap();
    api.write("disk", 0, &[&[1; 512]]).await.unwrap();
    api.snapshot("disk", "one").await.unwrap();
    api.write("disk", 0, &[&[2; 512]]).await.unwrap();
    api.snapshot("disk", "two").await.unwrap();
    api.resize("disk", 8 * MIB, false).await.unwrap();
    let back = api.rollback("disk", "one").await.unwrap();
    assert_eq!((back.id, back.size_bytes, back.parent.as_str()), (disk.id, 4 * MIB, "disk@one"));
    assert_eq!(api.read("disk", 0, 512).await.unwrap(), [1; 512]);
    assert_eq!(api.read("disk@two", 0, 512).await.unwrap(), [2; 512]);
    // Not closed cleanly: it is settled before.
    api.lock_elsewhere(&disk);
    api.revoke(&disk);
    api.rollback("disk", "two").await.unwrap();
    assert_eq!(api.read("disk", 0, 512).await.unwrap(), [2; 512]);
    api.delete("disk").await.unwrap();
    api.create("disk", 4 * MIB).await.unwrap();
    assert_eq!(code(api.rollback("disk", "two").await), Code::FailedPrecondition);
    assert_eq!(code(api.rollback("disk@two", "two").await), Code::NotFound);
}

#[tokio::test]
async fn a_clone_is_flattened_and_gives_way() {
    let mut api = api().await;
    api.create("disk", 8 * MIB).await.unwrap();
    api.snapshot("disk", "one").await.unwrap();
    let clone = api.clone_vdi("disk@one", "clone").await.unwrap();
    let state = |reply: Result<FlattenVdiReply, Status>| reply.unwrap().state;
    assert_eq!(state(api.flatten("clone", None).await), "off");
    assert_eq!(state(api.flatten("disk", Some(true)).await), "flat");
    assert_eq!(code(api.flatten("disk@one", Some(true)).await), Code::FailedPrecondition);
    let begun = api.flatten("clone", Some(true)).await.unwrap();
    assert_eq!((begun.state.as_str(), begun.total), ("waiting", 2));
    assert!(begun.vdi.unwrap().flattening);
    assert_eq!(state(api.flatten("clone", Some(false)).await), "off");
    api.flatten("clone", Some(true)).await.unwrap();
    // This node is at it, and says how far it is.
    let vdi = VdiId(clone.id);
    api.fake.order(ME, Command::LockToFlatten { vdi }).unwrap();
    let progress = FillProgress { done: 1, total: 2, left: 0, bytes: 9, state: FillState::NoRoom };
    api.fake.set_data(|data| data.flattening = [(vdi, progress)].into());
    let shown = api.flatten("clone", None).await.unwrap();
    assert_eq!((shown.state.as_str(), shown.done, shown.bytes), ("no room", 1, 9));
    // Another one is asked.
    let generation = |api: &Api| api.fake.state().vdi(vdi).unwrap().lock.unwrap().generation;
    let unlock = |generation| Command::Unlock { vdi, generation, clean: true };
    api.fake.order(ME, unlock(generation(&api))).unwrap();
    api.fake.add_other();
    api.fake.order(OTHER, Command::LockToFlatten { vdi }).unwrap();
    assert!(api.flatten("clone", None).await.unwrap_err().message().contains("flattens it"));
    // It closes the volume for who wants to delete it.
    let (mut vdis, held) = (api.vdis.clone(), generation(&api));
    let deletion = vdis.delete(DeleteVdiRequest { name: "clone".into(), id: 0 });
    let holder = async {
        while !api.fake.state().vdi(vdi).unwrap().lock.unwrap().asked {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        api.fake.order(OTHER, unlock(held)).unwrap();
    };
    let (deleted, ()) = tokio::join!(deletion, holder);
    deleted.unwrap();
}

#[tokio::test]
async fn a_volume_and_its_snapshots_change_their_copies() {
    let mut api = api().await;
    api.create("disk", 8 * MIB).await.unwrap();
    api.snapshot("disk", "one").await.unwrap();
    let alter = |name: &str, copies, min_copies| AlterCopiesRequest { name: name.into(), copies, min_copies };
    let altered = api.vdis.alter_copies(alter("disk", 3, 2)).await.unwrap().into_inner().vdi.unwrap();
    assert_eq!((altered.copies, altered.min_copies), (3, 2));
    let altered = api.vdis.alter_copies(alter("disk@one", 1, 0)).await.unwrap().into_inner().vdi.unwrap();
    assert_eq!((altered.copies, altered.min_copies), (1, 1));
    assert_eq!(code(api.vdis.alter_copies(alter("disk", 0, 0)).await), Code::InvalidArgument);
    assert_eq!(code(api.vdis.alter_copies(alter("disk", 1, 2)).await), Code::InvalidArgument);
}

/// Lets the other node stand still when it is asked to, so many times.
async fn stands_still(fake: &FakeNode, vdi: &Vdi, times: usize) {
    let (vdi, mut last) = (VdiId(vdi.id), None);
    for _ in 0..times {
        let (generation, token) = loop {
            let lock = fake.state().vdi(vdi).unwrap().lock.unwrap();
            if let Some(token) = lock.pause_asked.filter(|token| last != Some(*token)) {
                break (lock.generation, token);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        last = Some(token);
        fake.order(OTHER, Command::Pause { vdi, generation, token }).unwrap();
    }
}

#[tokio::test]
async fn a_group_is_taken_of_volumes_that_are_open_at_several_nodes() {
    let mut api = api().await;
    api.fake.add_other();
    api.create("here", 4 * MIB).await.unwrap();
    let there = api.create("there", 4 * MIB).await.unwrap();
    api.create("closed", 4 * MIB).await.unwrap();
    api.lock_elsewhere(&there);
    let mut vdis = api.vdis.clone();
    let request = |names: &[&str], tag: &str| SnapshotGroupRequest {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        tag: tag.into(),
        ..Default::default()
    };
    let one = vdis.snapshot_group(request(&["closed", "there", "here"], "one"));
    let (taken, ()) = tokio::join!(one, stands_still(&api.fake, &there, 1));
    let names: Vec<String> = taken.unwrap().into_inner().snapshots.into_iter().map(|vdi| vdi.name).collect();
    assert_eq!(names, ["closed@one", "there@one", "here@one"]);
    let state = api.fake.state();
    let lock = state.vdi(VdiId(there.id)).unwrap().lock.unwrap();
    assert_eq!((lock.pause_asked, lock.paused), (None, None), "it goes on");
    let since = |name: &str| state.vdi_by_name(name).unwrap().snapshot_of.unwrap().since;
    assert!(since("closed@one") == since("there@one") && since("there@one") == since("here@one"));

    // One that is taken already, or cannot be: none is.
    api.snapshot("closed", "two").await.unwrap();
    assert_eq!(code(api.group(&["here", "there", "closed"], "two").await), Code::AlreadyExists);
    assert_eq!(code(api.group(&["here", "none"], "three").await), Code::NotFound);
    assert_eq!(code(api.group(&["here", "closed@one"], "three").await), Code::FailedPrecondition);
    assert_eq!(code(api.group(&["here", "here"], "three").await), Code::InvalidArgument);
    assert_eq!(code(api.group(&[], "three").await), Code::InvalidArgument);
    assert_eq!(code(api.group(&["here", "closed"], "a@b").await), Code::InvalidArgument);
    // A holder that does not come to rest is let go on.
    let error = api.group(&["here", "there"], "three").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("there could not come to rest"), "{}", error.message());
    let lock = api.fake.state().vdi(VdiId(there.id)).unwrap().lock.unwrap();
    assert_eq!((lock.pause_asked, lock.paused), (None, None));
    assert_eq!(
        api.names().await,
        ["closed", "closed@one", "closed@two", "here", "here@one", "there", "there@one"]
    );
}

#[tokio::test]
async fn a_group_that_is_too_large_holds_nobody_up() {
    let mut api = api().await;
    let names = (0..257).map(|number| format!("disk{number}")).collect();
    let request = SnapshotGroupRequest { names, tag: "one".into(), ..Default::default() };
    // There is none of these volumes, and nobody looks for them.
    let error = api.vdis.snapshot_group(request).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
}
