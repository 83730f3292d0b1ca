use super::*;
use crate::testing::ME;
use sheep_types::VdiId;

fn attach(vdi: &Vdi, node: sheep_types::NodeId, read_only: bool) -> AttachRequest {
    AttachRequest { id: vdi.id, node: node.to_string(), read_only, ..AttachRequest::default() }
}

fn detach(vdi: &Vdi, node: sheep_types::NodeId) -> DetachRequest {
    DetachRequest { id: vdi.id, node: node.to_string(), ..DetachRequest::default() }
}

impl Api {
    async fn change(
        &mut self,
        vdi: &Vdi,
        expected: &[(&str, Option<&str>)],
        changes: &[(&str, Option<&str>)],
    ) -> Result<Vdi, Status> {
        let list = |list: &[(&str, Option<&str>)]| {
            let one = |(key, value): &(&str, Option<&str>)| Attribute {
                key: (*key).to_owned(),
                value: value.map(str::to_owned),
            };
            list.iter().map(one).collect()
        };
        let (expected, changes) = (list(expected), list(changes));
        let request = ChangeAttributesRequest { id: vdi.id, expected, changes, ..Default::default() };
        Ok(self.vdis.change_attributes(request).await?.into_inner().vdi.unwrap())
    }

    async fn page(&mut self, request: ListVdisRequest) -> (Vec<String>, u64, bool) {
        let reply = self.vdis.list(request).await.unwrap().into_inner();
        let last = reply.vdis.last().map_or(0, |vdi| vdi.id);
        (reply.vdis.into_iter().map(|vdi| vdi.name).collect(), last, reply.more)
    }
}

#[tokio::test]
async fn an_attached_volume_is_its_nodes_alone() {
    let mut api = api().await;
    api.fake.add_other();
    let disk = api.create("disk", 8 * MIB).await.unwrap();
    let first = api.vdis.attach(attach(&disk, OTHER.node, false)).await.unwrap().into_inner();
    let shown = first.vdi.unwrap().attachments;
    assert_eq!(
        (shown.len(), shown[0].index, shown[0].node.clone()),
        (1, first.index, OTHER.node.to_string())
    );
    // Again: the same. Otherwise or elsewhere: no.
    let again = api.vdis.attach(attach(&disk, OTHER.node, false)).await.unwrap().into_inner();
    assert_eq!(again.index, first.index);
    for refused in [attach(&disk, OTHER.node, true), attach(&disk, ME.node, false)] {
        assert_eq!(api.vdis.attach(refused).await.unwrap_err().code(), Code::FailedPrecondition);
    }
    let strangers = [
        attach(&disk, sheep_types::NodeId(7), false),
        attach(&Vdi { id: 999, ..disk.clone() }, ME.node, true),
    ];
    for nobody in strangers {
        assert_eq!(api.vdis.attach(nobody).await.unwrap_err().code(), Code::NotFound);
    }
    assert_eq!(api.delete("disk").await.unwrap_err().code(), Code::FailedPrecondition);

    // What the node holds ends with the attachment.
    let attachment = Some(sheep_types::LogIndex(first.index));
    let lock = Command::Lock { vdi: VdiId(disk.id), attachment, mode: AccessMode::Write, take_from: None };
    api.fake.order(OTHER, lock).unwrap();
    let after = api.vdis.detach(detach(&disk, OTHER.node)).await.unwrap().into_inner().vdi.unwrap();
    assert!(after.attachments.is_empty() && after.lock.is_none());
    api.vdis.detach(detach(&disk, OTHER.node)).await.unwrap();
    let again = api.vdis.attach(attach(&disk, ME.node, false)).await.unwrap().into_inner();
    assert!(again.index > first.index);
    // Somebody who is late takes nothing away from another node.
    api.vdis.detach(detach(&disk, OTHER.node)).await.unwrap();
    assert_eq!(
        api.vdis.list(ListVdisRequest::default()).await.unwrap().into_inner().vdis[0].attachments.len(),
        1
    );
}

#[tokio::test]
async fn who_has_to_open_an_attached_volume_is_named() {
    let mut api = api().await;
    api.fake.add_other();
    let disk = api.create("disk", 8 * MIB).await.unwrap();
    let attached = api.vdis.attach(attach(&disk, OTHER.node, false)).await.unwrap().into_inner();
    let snapshot = |tag: &str| SnapshotVdiRequest { id: disk.id, tag: tag.into(), ..Default::default() };
    api.vdis.snapshot(snapshot("clean")).await.unwrap();
    // The holder has died: only a node that it is attached to can settle it.
    let attachment = Some(sheep_types::LogIndex(attached.index));
    let vdi = VdiId(disk.id);
    let lock = Command::Lock { vdi, attachment, mode: AccessMode::Write, take_from: None };
    let generation = match api.fake.order(OTHER, lock).unwrap() {
        Outcome::Locked { generation, .. } => generation,
        other => panic!("{other:?}"),
    };
    api.fake.order(OTHER, Command::Unlock { vdi, generation, clean: false }).unwrap();
    let resize = ResizeVdiRequest { id: disk.id, size_bytes: 16 * MIB, ..Default::default() };
    let errors =
        [api.vdis.snapshot(snapshot("dirty")).await.unwrap_err(), api.vdis.resize(resize).await.unwrap_err()];
    for error in errors {
        assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
        assert_eq!(error.metadata().get(ASK_NODE).unwrap().to_str().unwrap(), OTHER.node.to_string());
    }
}

#[tokio::test]
async fn an_id_means_one_vdi_for_ever() {
    let mut api = api().await;
    let disk = api.create("disk", 8 * MIB).await.unwrap();
    let id = disk.id;
    let resize = ResizeVdiRequest { id, size_bytes: 16 * MIB, ..Default::default() };
    assert_eq!(api.vdis.resize(resize).await.unwrap().into_inner().vdi.unwrap().size_bytes, 16 * MIB);
    let snapshot = SnapshotVdiRequest { id, tag: "s".into(), ..Default::default() };
    let snapshot = api.vdis.snapshot(snapshot).await.unwrap().into_inner().snapshot.unwrap();
    let clone = CloneVdiRequest { source_id: snapshot.id, name: "copy".into(), ..Default::default() };
    assert_eq!(api.vdis.clone_vdi(clone).await.unwrap().into_inner().vdi.unwrap().origin, "disk@s");
    // The name is given again: the id still means the old one, which is gone.
    api.vdis.delete(DeleteVdiRequest { id, ..Default::default() }).await.unwrap();
    api.create("disk", 8 * MIB).await.unwrap();
    let gone = DeleteVdiRequest { id, name: "disk".into() };
    assert_eq!(api.vdis.delete(gone).await.unwrap_err().code(), Code::NotFound);
    let listed = api.vdis.list(ListVdisRequest { id, ..Default::default() }).await;
    assert_eq!(listed.unwrap_err().code(), Code::NotFound);
    assert_eq!(api.vdis.list(ListVdisRequest::default()).await.unwrap().into_inner().vdis.len(), 3);
}

#[tokio::test]
async fn lists_come_by_pages_and_by_what_is_wanted() {
    let mut api = api().await;
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        ids.push(api.create(name, 8 * MIB).await.unwrap().id);
        let snapshot = SnapshotVdiRequest { name: name.into(), tag: "s".into(), ..Default::default() };
        api.vdis.snapshot(snapshot).await.unwrap();
    }
    let volumes =
        |after, limit| ListVdisRequest { kind: "volume".into(), after, limit, ..Default::default() };
    assert_eq!(api.page(volumes(0, 2)).await, (vec!["a".into(), "b".into()], ids[1], true));
    assert_eq!(api.page(volumes(ids[1], 1)).await, (vec!["c".into()], ids[2], false));
    assert_eq!(api.page(volumes(ids[2], 5)).await, (vec![], 0, false));
    // The last of a page is deleted before the next one is asked for.
    api.delete("b").await.unwrap();
    assert_eq!(api.page(volumes(ids[1], 5)).await.0, ["c"]);
    let of = |source_id, tag: &str| ListVdisRequest {
        kind: "snapshot".into(),
        source_id,
        tag: tag.into(),
        ..Default::default()
    };
    assert_eq!(api.page(of(0, "")).await.0.len(), 3);
    assert_eq!(api.page(of(ids[2], "")).await.0, ["c@s"]);
    assert_eq!((api.page(of(0, "s")).await.0.len(), api.page(of(0, "t")).await.0.len()), (3, 0));
    let odd = ListVdisRequest { kind: "file".into(), ..Default::default() };
    assert_eq!(api.vdis.list(odd).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn attributes_change_if_others_are_as_expected() {
    let mut api = api().await;
    let disk = api.create("disk", 8 * MIB).await.unwrap();
    let changed = api.change(&disk, &[("k", None)], &[("k", Some("1"))]).await.unwrap();
    assert_eq!(changed.attributes.get("k").map(String::as_str), Some("1"));
    let late = api.change(&disk, &[("k", None)], &[("k", Some("2"))]).await.unwrap_err();
    assert_eq!(late.code(), Code::Aborted);
    let twice = api.change(&disk, &[], &[("k", None), ("k", Some("3"))]).await.unwrap_err();
    assert_eq!(twice.code(), Code::InvalidArgument);
    let gone = api.change(&disk, &[("k", Some("1"))], &[("k", None)]).await.unwrap();
    assert!(gone.attributes.is_empty());
}
