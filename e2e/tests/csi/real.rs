//! A cluster of real nodes behind the driver.

use crate::contract::{World, keep};
use sheep_api::v1::vdis_client::VdisClient;
use sheep_api::v1::{FlattenVdiRequest, WriteVdiRequest};
use sheep_csi::{Backend, Error, NewSnapshot, NewVolume, SnapshotQuery, Source, Volume};
use sheep_e2e::dog::text;
use sheep_e2e::{Cluster, LeakCheck, NbdClient, serial};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

struct Real {
    backend: sheep_csi::Cluster,
    nodes: [String; 2],
    address: String,
}

#[tonic::async_trait]
impl World for Real {
    fn backend(&self) -> &dyn Backend {
        &self.backend
    }

    fn nodes(&self) -> [String; 2] {
        self.nodes.clone()
    }

    async fn write(&self, volume: &Volume) {
        let name = volume.name.clone();
        let message = WriteVdiRequest { name, data: vec![7; 4096], ..WriteVdiRequest::default() };
        let mut client = VdisClient::connect(format!("http://{}", self.address)).await.unwrap();
        client.write(tokio_stream::iter([message])).await.unwrap();
    }

    async fn flatten(&self, volume: &Volume) {
        let mut client = VdisClient::connect(format!("http://{}", self.address)).await.unwrap();
        let flat = async {
            loop {
                let request = FlattenVdiRequest { name: volume.name.clone(), wanted: Some(true) };
                if client.flatten(request).await.unwrap().into_inner().state == "flat" {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(LIMIT, flat).await.unwrap();
        assert!(!self.backend.volume(volume.id).await.unwrap().cloned);
    }
}

/// The ids of nodes 1 and 2.
fn ids(cluster: &mut Cluster) -> [String; 2] {
    [1, 2].map(|index| {
        let info = cluster.node(index).dog().unwrap().json(&["node", "info"]).unwrap();
        text(&info, "id").to_owned()
    })
}

fn address(cluster: &mut Cluster, index: u8) -> String {
    format!("{}:7002", cluster.node(index).address)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn volume(name: &str) -> NewVolume {
    let size = 64 << 20;
    NewVolume {
        name: name.into(),
        size,
        source: None,
        copies: None,
        min_copies: None,
        attributes: Default::default(),
    }
}

/// A call that broke off after it had taken the snapshot that a copy is made from.
async fn copies_leave_no_snapshots(backend: &sheep_csi::Cluster) {
    let disk = backend.create(volume("disk")).await.unwrap();
    let wanted = NewVolume { source: Some(Source::Volume(disk.id)), ..volume("copy") };
    let break_off = async || {
        let (volume, tag) = (disk.id, "csi-clone-copy".to_owned());
        backend.take_snapshot(NewSnapshot { volume, tag, attributes: Default::default() }).await.unwrap();
    };
    let left = async || backend.snapshots(&SnapshotQuery::default(), 0, 0).await.unwrap().items;
    break_off().await;
    let copy = backend.create(wanted.clone()).await.unwrap();
    assert_eq!(left().await, [], "the call was repeated");
    break_off().await;
    assert!(matches!(backend.create(wanted).await, Err(Error::Exists { .. })));
    assert_eq!(left().await, [], "it is repeated when the copy is there");
    break_off().await;
    backend.delete(copy.id).await.unwrap();
    assert_eq!(left().await, [], "nobody repeats it, and the copy is deleted");
    backend.delete(disk.id).await.unwrap();
}

#[test]
fn a_real_cluster_keeps_the_contract() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(2).unwrap();
    let (nodes, address) = (ids(&mut cluster), address(&mut cluster, 1));
    let runtime = runtime();
    runtime.block_on(async {
        let backend = sheep_csi::Cluster::new(std::slice::from_ref(&address)).unwrap();
        let world = Real { backend, nodes, address };
        keep(&world).await;
        copies_leave_no_snapshots(&world.backend).await;
    });
    drop(runtime);
    drop(cluster);
    check.finish().unwrap();
}

/// A volume is given to a node, written there and taken away; the node has not been asked and cannot write any more. Calls
/// that only the node can carry out that has a volume open find it, and calls go to another node when one is gone.
#[test]
fn an_attachment_is_a_fence_and_any_node_can_be_asked() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut cluster = Cluster::start(3).unwrap();
    let [one, two] = ids(&mut cluster);
    let servers = [3, 1].map(|index| address(&mut cluster, index));
    let runtime = runtime();
    let backend = runtime.block_on(async { sheep_csi::Cluster::new(&servers) }).unwrap();
    let disk = runtime.block_on(backend.create(volume("disk"))).unwrap();
    runtime.block_on(backend.attach(disk.id, &one, false)).unwrap();
    // Only the node that has it can open it.
    assert!(NbdClient::unix(&cluster.node(2).nbd_socket(), "disk", Duration::from_secs(5)).is_err());
    let mut client = NbdClient::unix(&cluster.node(1).nbd_socket(), "disk", LIMIT).unwrap();
    client.write(0, &[1; 4096], false).unwrap();
    client.flush().unwrap();
    // Node 3 is asked, and node 1 does it.
    let wanted =
        sheep_csi::NewSnapshot { volume: disk.id, tag: "open".into(), attributes: Default::default() };
    let taken = runtime.block_on(backend.take_snapshot(wanted)).unwrap();
    assert_eq!(runtime.block_on(backend.resize(disk.id, 128 << 20)).unwrap().size, 128 << 20);
    runtime.block_on(backend.detach(disk.id, &one)).unwrap();
    runtime.block_on(backend.attach(disk.id, &two, false)).unwrap();
    let mut second = NbdClient::unix(&cluster.node(2).nbd_socket(), "disk", LIMIT).unwrap();
    let mut buffer = [0; 4096];
    second.read(0, &mut buffer).unwrap();
    assert_eq!(buffer, [1; 4096]);
    second.write(4096, &[2; 4096], false).unwrap();
    second.flush().unwrap();
    assert!(
        client.write(4096, &[3; 4096], false).is_err(),
        "a node writes a volume that was taken away from it"
    );
    second.read(4096, &mut buffer).unwrap();
    assert_eq!(buffer, [2; 4096]);
    drop((client, second));
    // The node that was asked is gone.
    cluster.node(3).kill();
    let shown = runtime.block_on(async {
        tokio::time::timeout(LIMIT, async {
            loop {
                match backend.volume(disk.id).await {
                    Err(Error::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(200)).await,
                    found => break found,
                }
            }
        })
        .await
    });
    assert_eq!(shown.unwrap().unwrap().attachments[0].node, two);
    assert_eq!(runtime.block_on(backend.snapshot(taken.id)).unwrap().source, disk.id);
    drop(backend);
    drop(runtime);
    drop(cluster);
    check.finish().unwrap();
}
