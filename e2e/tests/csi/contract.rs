//! What every backend of the CSI driver keeps to, the real one and the one in memory.

use sheep_csi::{Attributes, Backend, Error, NewSnapshot, NewVolume, SnapshotQuery, Source, Volume};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 8 * MIB;

/// A backend, and what a test needs besides.
#[tonic::async_trait]
pub(crate) trait World: Sync {
    fn backend(&self) -> &dyn Backend;
    /// Two nodes that volumes can be given to, the first of which is asked.
    fn nodes(&self) -> [String; 2];
    /// Writes something to a volume that nobody has open.
    async fn write(&self, volume: &Volume);
    /// Gives a copy that nobody has open everything that it reads from its origin.
    async fn flatten(&self, volume: &Volume);
}

fn new(name: &str, size: u64, source: Option<Source>) -> NewVolume {
    let attributes = Attributes::from([("made-by".to_owned(), "a test".to_owned())]);
    NewVolume { name: name.to_owned(), size, source, copies: None, min_copies: None, attributes }
}

fn snapshot_of(volume: &Volume, tag: &str) -> NewSnapshot {
    NewSnapshot { volume: volume.id, tag: tag.to_owned(), attributes: Attributes::new() }
}

/// An id that nothing has.
const NOBODY: u64 = 1 << 40;

fn is_missing<T: std::fmt::Debug>(result: Result<T, Error>) {
    assert!(matches!(result, Err(Error::NotFound(_))), "{result:?}");
}

fn is_refused<T: std::fmt::Debug>(result: Result<T, Error>) {
    assert!(matches!(result, Err(Error::Precondition(_))), "{result:?}");
}

fn is_no_size<T: std::fmt::Debug>(result: Result<T, Error>) {
    assert!(matches!(result, Err(Error::Invalid(_) | Error::OutOfRange(_))), "{result:?}");
}

fn exists<T: std::fmt::Debug>(result: Result<T, Error>, expected: u64) {
    match result {
        Err(Error::Exists { id, .. }) => assert_eq!(id, Some(expected)),
        other => panic!("{other:?}"),
    }
}

/// Everything, one after the other, on an empty cluster.
pub(crate) async fn keep(world: &impl World) {
    knows_itself(world).await;
    volumes_have_names_and_ids(world.backend()).await;
    lists_have_pages(world.backend()).await;
    snapshots_outlive_their_volume(world.backend()).await;
    volumes_are_copied(world.backend()).await;
    nodes_get_volumes_and_lose_them(world).await;
    marks_are_set_only_as_expected(world.backend()).await;
    blank_is_what_was_never_written(world).await;
    volumes_only_grow(world.backend()).await;
    let left = world.backend().volumes(0, 0).await.unwrap().items;
    assert!(left.is_empty(), "{left:?}");
    let left = world.backend().snapshots(&SnapshotQuery::default(), 0, 0).await.unwrap().items;
    assert!(left.is_empty(), "{left:?}");
}

async fn knows_itself(world: &impl World) {
    let backend = world.backend();
    let cluster = backend.cluster().await.unwrap();
    assert!(!cluster.is_empty() && cluster.bytes().all(|byte| byte.is_ascii_hexdigit()), "{cluster}");
    assert_eq!(backend.cluster().await.unwrap(), cluster);
    backend.serves().await.unwrap();
    assert_eq!(backend.node().await.unwrap(), world.nodes()[0]);
    let capacity = backend.capacity().await.unwrap();
    assert!(capacity.copies >= 1 && capacity.available > 0 && capacity.min_volume == MIB, "{capacity:?}");
    assert!(capacity.max_volume >= 1 << 40);
}

async fn volumes_have_names_and_ids(backend: &dyn Backend) {
    assert_eq!(backend.volume_by_name("pvc-1").await, Ok(None));
    let made = backend.create(new("pvc-1", SIZE, None)).await.unwrap();
    assert_eq!((made.name.as_str(), made.size, made.cloned), ("pvc-1", SIZE, false));
    assert_eq!(made.attributes, new("pvc-1", SIZE, None).attributes);
    assert_eq!(backend.volume(made.id).await.as_ref(), Ok(&made));
    assert_eq!(backend.volume_by_name("pvc-1").await, Ok(Some(made.clone())));
    exists(backend.create(new("pvc-1", 2 * SIZE, None)).await, made.id);
    exists(backend.create(new("pvc-1", SIZE, Some(Source::Volume(made.id)))).await, made.id);
    is_no_size(backend.create(new("pvc-2", 512, None)).await);
    is_no_size(backend.create(new("pvc-2", SIZE + 1, None)).await);
    is_missing(backend.create(new("pvc-2", SIZE, Some(Source::Volume(NOBODY)))).await);
    is_missing(backend.create(new("pvc-2", SIZE, Some(Source::Snapshot(NOBODY)))).await);
    is_missing(backend.volume(NOBODY).await);
    is_missing(backend.resize(NOBODY, SIZE).await);
    backend.delete(made.id).await.unwrap();
    is_missing(backend.delete(made.id).await);
    let again = backend.create(new("pvc-1", SIZE, None)).await.unwrap();
    assert!(again.id > made.id, "an id was given again");
    backend.delete(again.id).await.unwrap();
}

async fn lists_have_pages(backend: &dyn Backend) {
    let mut ids = Vec::new();
    for name in ["c", "b", "a"] {
        ids.push(backend.create(new(name, SIZE, None)).await.unwrap().id);
    }
    let page = |after, limit| async move {
        let page = backend.volumes(after, limit).await.unwrap();
        (page.items.into_iter().map(|volume| volume.id).collect::<Vec<_>>(), page.more)
    };
    assert_eq!(page(0, 0).await, (ids.clone(), false));
    assert_eq!(page(0, 2).await, (ids[..2].to_vec(), true));
    backend.delete(ids[1]).await.unwrap();
    assert_eq!(page(ids[1], 2).await, (ids[2..].to_vec(), false));
    assert_eq!(page(ids[2], 2).await, (vec![], false));
    for id in [ids[0], ids[2]] {
        backend.delete(id).await.unwrap();
    }
}

async fn snapshots_outlive_their_volume(backend: &dyn Backend) {
    let disk = backend.create(new("disk", SIZE, None)).await.unwrap();
    let other = backend.create(new("other", SIZE, None)).await.unwrap();
    let wanted = NewSnapshot {
        attributes: Attributes::from([("k".to_owned(), "v".to_owned())]),
        ..snapshot_of(&disk, "monday")
    };
    let taken = backend.take_snapshot(wanted.clone()).await.unwrap();
    assert_eq!((taken.tag.as_str(), taken.source, taken.size), ("monday", disk.id, SIZE));
    assert!(taken.created_unix_ms > 1_600_000_000_000 && taken.attributes == wanted.attributes);
    exists(backend.take_snapshot(wanted).await, taken.id);
    is_missing(backend.take_snapshot(NewSnapshot { volume: NOBODY, ..snapshot_of(&disk, "x") }).await);
    let tuesday = backend.take_snapshot(snapshot_of(&disk, "tuesday")).await.unwrap();
    let elsewhere = backend.take_snapshot(snapshot_of(&other, "monday")).await.unwrap();
    let list = |source: Option<u64>, tag: Option<&str>| {
        let query = SnapshotQuery { source, tag: tag.map(str::to_owned) };
        async move {
            let found = backend.snapshots(&query, 0, 0).await.unwrap().items;
            found.into_iter().map(|snapshot| snapshot.id).collect::<Vec<_>>()
        }
    };
    assert_eq!(list(None, None).await, [taken.id, tuesday.id, elsewhere.id]);
    assert_eq!(list(Some(disk.id), None).await, [taken.id, tuesday.id]);
    assert_eq!(list(None, Some("monday")).await, [taken.id, elsewhere.id]);
    assert_eq!(list(Some(NOBODY), None).await, [0; 0]);
    let first = backend.snapshots(&SnapshotQuery::default(), 0, 1).await.unwrap();
    assert!(first.more && first.items[0].id == taken.id);
    // One is not the other.
    is_missing(backend.volume(taken.id).await);
    is_missing(backend.snapshot(disk.id).await);
    is_missing(backend.delete(taken.id).await);
    is_missing(backend.delete_snapshot(disk.id).await);
    is_missing(backend.attach(taken.id, "1", true).await);
    is_missing(backend.create(new("wrong", SIZE, Some(Source::Snapshot(disk.id)))).await);

    backend.delete(disk.id).await.unwrap();
    let left = backend.snapshot(taken.id).await.unwrap();
    assert_eq!((left.source, left.size), (disk.id, SIZE));
    let clone = backend.create(new("clone", 2 * SIZE, Some(Source::Snapshot(taken.id)))).await.unwrap();
    assert!(clone.cloned && clone.size == 2 * SIZE);
    is_no_size(backend.create(new("small", SIZE / 2, Some(Source::Snapshot(taken.id)))).await);
    // The clone does not need it any more to be there.
    for snapshot in [taken.id, tuesday.id, elsewhere.id] {
        backend.delete_snapshot(snapshot).await.unwrap();
    }
    is_missing(backend.delete_snapshot(taken.id).await);
    assert!(backend.volume(clone.id).await.unwrap().cloned);
    for volume in [clone.id, other.id] {
        backend.delete(volume).await.unwrap();
    }
}

async fn volumes_are_copied(backend: &dyn Backend) {
    let disk = backend.create(new("disk", SIZE, None)).await.unwrap();
    let copy = backend.create(new("copy", SIZE, Some(Source::Volume(disk.id)))).await.unwrap();
    assert!(copy.cloned && copy.id != disk.id);
    exists(backend.create(new("copy", SIZE, Some(Source::Volume(disk.id)))).await, copy.id);
    let left = backend.snapshots(&SnapshotQuery::default(), 0, 0).await.unwrap().items;
    assert!(left.is_empty(), "{left:?}");
    backend.delete(disk.id).await.unwrap();
    backend.delete(copy.id).await.unwrap();
}

async fn nodes_get_volumes_and_lose_them(world: &impl World) {
    let (backend, [one, two]) = (world.backend(), world.nodes());
    let disk = backend.create(new("disk", SIZE, None)).await.unwrap();
    let first = backend.attach(disk.id, &one, false).await.unwrap();
    assert_eq!((first.node.as_str(), first.read_only), (one.as_str(), false));
    assert_eq!(backend.attach(disk.id, &one, false).await.as_ref(), Ok(&first));
    assert_eq!(backend.volume(disk.id).await.unwrap().attachments, std::slice::from_ref(&first));
    is_refused(backend.attach(disk.id, &one, true).await);
    is_refused(backend.attach(disk.id, &two, false).await);
    is_refused(backend.attach(disk.id, &two, true).await);
    is_refused(backend.delete(disk.id).await);
    for nobody in ["fake-node-id", "00000000000000f0", ""] {
        is_missing(backend.attach(disk.id, nobody, false).await);
        backend.detach(disk.id, nobody).await.unwrap();
    }
    is_missing(backend.attach(NOBODY, &one, false).await);
    is_missing(backend.detach(NOBODY, &one).await);
    backend.detach(disk.id, &two).await.unwrap();
    assert_eq!(backend.volume(disk.id).await.unwrap().attachments.len(), 1);
    backend.detach(disk.id, &one).await.unwrap();
    backend.detach(disk.id, &one).await.unwrap();
    let second = backend.attach(disk.id, &two, false).await.unwrap();
    assert!(second.index > first.index);
    backend.detach(disk.id, &two).await.unwrap();
    // Many may read.
    for node in [&one, &two] {
        assert!(backend.attach(disk.id, node, true).await.unwrap().read_only);
    }
    is_refused(backend.attach(disk.id, &one, false).await);
    assert_eq!(backend.volume(disk.id).await.unwrap().attachments.len(), 2);
    for node in [&one, &two] {
        backend.detach(disk.id, node).await.unwrap();
    }
    backend.delete(disk.id).await.unwrap();
}

async fn marks_are_set_only_as_expected(backend: &dyn Backend) {
    let disk = backend.create(new("disk", SIZE, None)).await.unwrap();
    let mark = |expected, value| async move { backend.mark(disk.id, "mark", expected, value).await };
    mark(None, Some("by one")).await.unwrap();
    let late = mark(None, Some("by two")).await;
    assert!(matches!(late, Err(Error::Busy(_))), "{late:?}");
    assert_eq!(backend.volume(disk.id).await.unwrap().attributes["mark"], "by one");
    mark(Some("by one"), None).await.unwrap();
    assert_eq!(backend.volume(disk.id).await.unwrap().attributes, new("disk", SIZE, None).attributes);
    is_missing(backend.mark(NOBODY, "mark", None, None).await);
    backend.delete(disk.id).await.unwrap();
}

async fn blank_is_what_was_never_written(world: &impl World) {
    let backend = world.backend();
    let disk = backend.create(new("disk", SIZE, None)).await.unwrap();
    assert_eq!(backend.is_blank(disk.id).await, Ok(true));
    // A copy of what is blank is blank, also when there is something on its origin later.
    let blank = backend.create(new("blank", SIZE, Some(Source::Volume(disk.id)))).await.unwrap();
    assert_eq!(backend.is_blank(blank.id).await, Ok(true));
    world.write(&disk).await;
    assert_eq!(backend.is_blank(disk.id).await, Ok(false));
    let copy = backend.create(new("copy", SIZE, Some(Source::Volume(disk.id)))).await.unwrap();
    assert_eq!(backend.is_blank(copy.id).await, Ok(false), "what it has of its origin counts");
    let again = backend.create(new("again", SIZE, Some(Source::Volume(copy.id)))).await.unwrap();
    assert_eq!(backend.is_blank(blank.id).await, Ok(true));
    world.flatten(&copy).await;
    backend.delete(disk.id).await.unwrap();
    for id in [copy.id, again.id] {
        assert_eq!(backend.is_blank(id).await, Ok(false), "also without its origin");
    }
    is_missing(backend.is_blank(NOBODY).await);
    for id in [copy.id, again.id, blank.id] {
        backend.delete(id).await.unwrap();
    }
}

async fn volumes_only_grow(backend: &dyn Backend) {
    let disk = backend.create(new("disk", SIZE, None)).await.unwrap();
    assert_eq!(backend.resize(disk.id, 2 * SIZE).await.unwrap().size, 2 * SIZE);
    assert_eq!(backend.resize(disk.id, 2 * SIZE).await.unwrap().size, 2 * SIZE);
    is_refused(backend.resize(disk.id, SIZE).await);
    assert_eq!(backend.volume(disk.id).await.unwrap().size, 2 * SIZE);
    backend.delete(disk.id).await.unwrap();
}
