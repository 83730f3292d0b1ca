//! The services over a real connection, with a fake node behind.

mod attachments;
mod ranges;
mod snapshots;

use super::*;
use crate::config::{Config, Layer};
use crate::testing::{FakeNode, OTHER};
use sheep_api::ASK_NODE;
use sheep_api::v1::cluster_client::ClusterClient;
use sheep_api::v1::nodes_client::NodesClient;
use sheep_api::v1::vdis_client::VdisClient;
use sheep_api::v1::*;
use sheep_state::{AccessMode, Command, Outcome};
use std::sync::atomic::{AtomicU32, Ordering};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

struct Api {
    fake: FakeNode,
    vdis: VdisClient<Channel>,
    nodes: NodesClient<Channel>,
    cluster: ClusterClient<Channel>,
    socket: PathBuf,
}

impl Drop for Api {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

async fn serve_fake(fake: FakeNode) -> Api {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let socket = std::env::temp_dir().join(format!("sheep-grpc-{}-{number}", std::process::id()));
    let flags = Layer { dir: Some("/d".into()), ..Layer::default() };
    let first = Config::build(flags, Layer::default(), Layer::default()).unwrap().first;
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    tokio::spawn(serve(fake.handle.clone(), Some(first), (tcp, None), socket.clone()));
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let local = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap().connect().await.unwrap();
    Api {
        fake,
        vdis: VdisClient::new(channel.clone()),
        nodes: NodesClient::new(channel),
        cluster: ClusterClient::new(local),
        socket,
    }
}

async fn api() -> Api {
    serve_fake(FakeNode::start()).await
}

impl Api {
    async fn create(&mut self, name: &str, size: u64) -> Result<Vdi, Status> {
        let request = CreateVdiRequest { name: name.into(), size_bytes: size, ..CreateVdiRequest::default() };
        Ok(self.vdis.create(request).await?.into_inner().vdi.unwrap())
    }

    async fn write(&mut self, name: &str, offset: u64, pieces: &[&[u8]]) -> Result<u64, Status> {
        let messages: Vec<WriteVdiRequest> = pieces
            .iter()
            .map(|data| WriteVdiRequest {
                name: name.into(),
                offset,
                data: data.to_vec(),
                ..Default::default()
            })
            .collect();
        Ok(self.vdis.write(tokio_stream::iter(messages)).await?.into_inner().bytes)
    }

    async fn read(&mut self, name: &str, offset: u64, length: u64) -> Result<Vec<u8>, Status> {
        let mut stream =
            self.vdis.read(ReadVdiRequest { name: name.into(), offset, length }).await?.into_inner();
        let mut all = Vec::new();
        while let Some(piece) = stream.message().await? {
            assert!(piece.data.len() <= sheep_api::PIECE);
            all.extend(piece.data);
        }
        Ok(all)
    }

    async fn resize(&mut self, name: &str, size_bytes: u64, allow_shrink: bool) -> Result<Vdi, Status> {
        let request = ResizeVdiRequest { name: name.into(), size_bytes, allow_shrink, id: 0 };
        Ok(self.vdis.resize(request).await?.into_inner().vdi.unwrap())
    }

    async fn delete(&mut self, name: &str) -> Result<(), Status> {
        self.vdis.delete(DeleteVdiRequest { name: name.into(), id: 0 }).await.map(drop)
    }

    /// Lets the other node open a VDI; gives the generation.
    fn lock_elsewhere(&self, vdi: &Vdi) {
        let vdi = sheep_types::VdiId(vdi.id);
        let lock = Command::Lock { vdi, attachment: None, mode: AccessMode::Write, take_from: None };
        self.fake.order(OTHER, lock).unwrap();
    }
}

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn volumes_are_made_listed_resized_and_deleted() {
    let mut api = api().await;
    let vdi = api.create("disk", 8 * MIB).await.unwrap();
    assert_eq!((vdi.size_bytes, vdi.copies, vdi.effective_copies, vdi.clean), (8 * MIB, 1, 1, true));
    assert!(vdi.created_unix_ms > 1_600_000_000_000);
    let codes = [
        (api.create("disk", 8 * MIB).await, Code::AlreadyExists),
        (api.create("", 8 * MIB).await, Code::InvalidArgument),
        (api.create("small", 512).await, Code::InvalidArgument),
        (api.create("odd", 8 * MIB + 1).await, Code::InvalidArgument),
        (api.resize("none", 8 * MIB, false).await, Code::NotFound),
        (api.resize("disk", 4 * MIB, false).await, Code::FailedPrecondition),
        (api.resize("disk", 3, true).await, Code::InvalidArgument),
    ];
    for (result, code) in codes {
        assert_eq!(result.unwrap_err().code(), code);
    }
    assert_eq!(api.resize("disk", 16 * MIB, false).await.unwrap().size_bytes, 16 * MIB);
    let all = api.vdis.list(ListVdisRequest::default()).await.unwrap().into_inner().vdis;
    assert_eq!(all.iter().map(|vdi| vdi.name.as_str()).collect::<Vec<_>>(), ["disk"]);
    api.delete("disk").await.unwrap();
    let error = api.delete("disk").await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::NotFound, "no VDI \"disk\""));
}

#[tokio::test]
async fn contents_of_any_length_come_back() {
    let mut api = api().await;
    let vdi = api.create("disk", 4 * MIB).await.unwrap();
    let id = sheep_types::VdiId(vdi.id);
    let big: Vec<u8> = (0..2_500_000u32).map(|n| (n % 251) as u8 + 1).collect();
    let (one, two) = big.split_at(777_777);
    assert_eq!(api.write("disk", 1000, &[one, two]).await.unwrap(), big.len() as u64);
    assert_eq!(api.read("disk", 1000, big.len() as u64).await.unwrap(), big);
    // What stands before and behind in the same sectors is kept.
    let contents = api.fake.contents(id);
    assert!(contents[..1000].iter().all(|byte| *byte == 0xee));
    assert!(contents[1000 + big.len()..].iter().all(|byte| *byte == 0xee));
    assert_eq!(api.write("disk", 3, &[b"abc"]).await.unwrap(), 3);
    assert_eq!(api.read("disk", 2, 5).await.unwrap(), b"\xeeabc\xee");
    assert_eq!(api.write("disk", 4 * MIB, &[]).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(api.write("disk", 4 * MIB - 2, &[b"xyz"]).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(api.write("disk", 0, &[&[0; 4096]]).await.unwrap(), 4096);
    assert_eq!(api.read("disk", 0, 0).await.unwrap().len() as u64, 4 * MIB);
    assert_eq!(api.read("disk", 1, 4 * MIB).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(api.read("disk", 5 * MIB, 0).await.unwrap_err().code(), Code::InvalidArgument);
    // No call leaves a lock behind.
    let state = api.fake.state();
    let record = state.vdi(id).unwrap();
    assert!(record.lock.is_none() && record.readers.is_empty() && record.is_clean());
}

#[tokio::test]
async fn a_smaller_volume_forgets_what_it_loses() {
    let mut api = api().await;
    let vdi = api.create("disk", 4 * MIB).await.unwrap();
    api.write("disk", 0, &[&vec![7; 4 * MIB as usize - 1]]).await.unwrap_err();
    let pieces = vec![vec![7u8; MIB as usize]; 4];
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    api.write("disk", 0, &pieces).await.unwrap();
    // What is refused has cost nothing.
    for bad in [0, MIB - 512, 2 * MIB + 1] {
        assert_eq!(api.resize("disk", bad, true).await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert!(api.read("disk", 0, 0).await.unwrap().iter().all(|byte| *byte == 7));
    assert_eq!(api.resize("disk", 2 * MIB, true).await.unwrap().size_bytes, 2 * MIB);
    let contents = api.fake.contents(sheep_types::VdiId(vdi.id));
    assert!(contents[..2 * MIB as usize].iter().all(|byte| *byte == 7));
    assert!(contents[2 * MIB as usize..].iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn an_open_volume_is_left_to_its_holder() {
    let mut api = api().await;
    api.fake.add_other();
    let vdi = api.create("disk", 4 * MIB).await.unwrap();
    api.lock_elsewhere(&vdi);
    for error in [
        api.delete("disk").await.unwrap_err(),
        api.resize("disk", 8 * MIB, false).await.map(drop).unwrap_err(),
        api.write("disk", 0, &[b"x"]).await.map(drop).unwrap_err(),
        api.read("disk", 0, 1).await.map(drop).unwrap_err(),
    ] {
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().contains("in use by node second"), "{}", error.message());
        assert_eq!(error.metadata().get(ASK_NODE).unwrap(), OTHER.node.to_string().as_str());
    }
    let request = RevokeRequest { name: "disk".into(), generation: 0 };
    assert_eq!(api.vdis.revoke(request.clone()).await.unwrap().into_inner().revoked, 1);
    assert_eq!(api.vdis.revoke(request).await.unwrap_err().code(), Code::NotFound);
    // Not closed cleanly: growing opens and settles it, deleting needs neither.
    assert!(!api.fake.state().vdi_by_name("disk").unwrap().is_clean());
    assert_eq!(api.resize("disk", 8 * MIB, false).await.unwrap().size_bytes, 8 * MIB);
    assert!(api.fake.state().vdi_by_name("disk").unwrap().is_clean());
    api.lock_elsewhere(&vdi);
    api.vdis.revoke(RevokeRequest { name: "disk".into(), generation: 0 }).await.unwrap();
    api.delete("disk").await.unwrap();
}

#[tokio::test]
async fn the_holder_itself_grows_an_open_volume() {
    let mut api = api().await;
    let vdi = api.create("disk", 4 * MIB).await.unwrap();
    let id = sheep_types::VdiId(vdi.id);
    let open =
        |answer| crate::handle::VolumeRequest::Open { vdi: id, read_only: false, alone: false, answer };
    let opened = api.fake.handle.volume(open).await.unwrap();
    assert_eq!(api.resize("disk", 8 * MIB, false).await.unwrap().size_bytes, 8 * MIB);
    assert_eq!(api.resize("disk", 4 * MIB, true).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(api.write("disk", 0, &[b"x"]).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(api.read("disk", 0, 512).await.unwrap().len(), 512, "reading shares the open volume");
    assert!(api.fake.state().vdi(id).unwrap().lock.is_some(), "and does not close it for others");
    let (answer, _) = tokio::sync::oneshot::channel();
    let close = crate::handle::VolumeRequest::Close { handle: opened.handle, answer };
    api.fake.handle.volumes.send(crate::data::DataMessage::Volume(close)).unwrap();
    // A user that is just leaving is waited for.
    api.delete("disk").await.unwrap();
}

/// The caller goes just when the volume is open, and the answer on its way.
#[tokio::test]
async fn a_volume_that_nobody_waits_for_any_more_is_closed() {
    let mut api = api().await;
    let vdi = api.create("disk", 4 * MIB).await.unwrap();
    let id = sheep_types::VdiId(vdi.id);
    let record = api.fake.state().vdi(id).cloned().unwrap();
    {
        let node = api.fake.handle.clone();
        let opening = volume::Volume::open_alone(&node, &record);
        tokio::pin!(opening);
        tokio::select! {
            biased;
            _ = &mut opening => {}
            () = tokio::task::yield_now() => {}
        }
        // The answer comes, and nobody has a turn to take it.
        let is_open = || api.fake.state().vdi(id).unwrap().lock.is_some();
        let _ = (0..200).find(|_| {
            std::thread::sleep(Duration::from_millis(10));
            is_open()
        });
        std::thread::sleep(Duration::from_millis(50));
    }
    for _ in 0..500 {
        if api.fake.state().vdi(id).unwrap().lock.is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nobody has closed it");
}

#[tokio::test]
async fn nodes_are_listed_and_removed() {
    let mut api = api().await;
    api.fake.add_other();
    let list = api.nodes.list(ListNodesRequest {}).await.unwrap().into_inner().nodes;
    assert_eq!(list.len(), 2);
    assert_eq!((list[0].name.as_str(), list[0].state.as_str(), list[0].voter), ("first", "up", true));
    assert_eq!(list[0].grpc_addresses, ["127.0.0.1:7002"]);
    let remove = |node: String, force| RemoveNodeRequest { node, force };
    let other = OTHER.node.to_string();
    let code = |result: Result<_, Status>| result.map(drop).unwrap_err().code();
    assert_eq!(code(api.nodes.remove(remove("xyz".into(), false)).await), Code::InvalidArgument);
    assert_eq!(code(api.nodes.remove(remove("77".into(), false)).await), Code::NotFound);
    assert_eq!(code(api.nodes.remove(remove(other.clone(), true)).await), Code::FailedPrecondition);
    api.fake.lose_other();
    let info = api.cluster.info(ClusterInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.health.as_str(), info.storage_nodes, info.storage_nodes_up), ("degraded", 2, 1));
    assert!(info.message.contains("start second"), "{}", info.message);
    assert_eq!(code(api.nodes.remove(remove(other.clone(), false)).await), Code::FailedPrecondition);
    api.nodes.remove(remove(other, true)).await.unwrap();
    assert_eq!(api.nodes.list(ListNodesRequest {}).await.unwrap().into_inner().nodes.len(), 1);

    let info = api.nodes.info(NodeInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.node.unwrap().name.as_str(), info.primary, info.health.as_str()), ("first", true, "ok"));
    api.nodes.stop(StopRequest { all_nodes: false }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(api.fake.stopped());
}

#[tokio::test]
async fn when_all_stop_nobody_leaves_before_all_volumes_are_closed() {
    let mut api = api().await;
    api.fake.add_other();
    api.create("v", 1 << 20).await.unwrap();
    let vdi = api.fake.state().vdi_by_name("v").unwrap().id;
    let lock = Command::Lock { vdi, attachment: None, mode: AccessMode::Write, take_from: None };
    let Outcome::Locked { generation, .. } = api.fake.order(OTHER, lock).unwrap() else { panic!() };
    api.nodes.stop(StopRequest { all_nodes: true }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert!(api.fake.closed() && !api.fake.stopped());
    api.fake.order(OTHER, Command::Unlock { vdi, generation, clean: true }).unwrap();
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert!(api.fake.stopped());
}

#[tokio::test]
async fn settings_change_one_by_one() {
    let mut api = api().await;
    let change = |settings| ChangeSettingsRequest { settings: Some(settings) };
    let delay = Settings { out_delay_ms: Some(5_000), ..Settings::default() };
    api.cluster.change_settings(change(delay)).await.unwrap();
    let wait = Settings { unavailable_error_after_ms: Some(700), ..Settings::default() };
    api.cluster.change_settings(change(wait)).await.unwrap();
    for bad in [
        Settings { copies: Some(17), ..Settings::default() },
        Settings { copies: Some(300), ..Settings::default() },
        Settings { max_voters: Some(2), ..Settings::default() },
    ] {
        assert_eq!(api.cluster.change_settings(change(bad)).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let settings = api.cluster.info(ClusterInfoRequest {}).await.unwrap().into_inner().settings.unwrap();
    assert_eq!((settings.out_delay_ms, settings.unavailable_error_after_ms), (Some(5_000), Some(700)));
    assert_eq!(settings.copies, Some(1), "what was not named stays");
}

#[tokio::test]
async fn check_gives_the_hash_at_an_index() {
    let mut api = api().await;
    let check = api.cluster.check(CheckRequest { at_least_index: 3 }).await.unwrap().into_inner();
    let state = api.fake.state();
    assert!(check.ok, "{:?}", check.findings);
    assert_eq!((check.applied_index, check.state_hash), (state.applied().0, state.hash()));
    let request =
        CreateVdiRequest { name: "wide".into(), size_bytes: MIB, copies: 3, ..CreateVdiRequest::default() };
    assert_eq!(api.vdis.create(request).await.unwrap().into_inner().vdi.unwrap().effective_copies, 1);
    let check = api.cluster.check(CheckRequest::default()).await.unwrap().into_inner();
    assert!(!check.ok);
    assert!(
        check.findings.iter().any(|finding| finding.contains("wide has at most 1 of 3")),
        "{:?}",
        check.findings
    );
}

#[tokio::test]
async fn a_node_without_cluster_takes_only_format() {
    let mut api = serve_fake(FakeNode::without_cluster()).await;
    let error = api.create("disk", MIB).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("dog cluster format"));
    assert_eq!(api.cluster.info(ClusterInfoRequest {}).await.unwrap().into_inner().health, "no cluster");
    let bad = api.cluster.format(FormatRequest { copies: 17, min_copies: 0 }).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    let made = api.cluster.format(FormatRequest { copies: 1, min_copies: 0 }).await.unwrap().into_inner();
    let genesis = api.fake.formatted().unwrap();
    assert_eq!(made.cluster_id, genesis.cluster.to_string());
    assert_eq!((genesis.settings.copies, genesis.settings.min_copies), (1, 1));
    assert_eq!(genesis.voters, [crate::testing::ME.node]);
}

#[tokio::test]
async fn a_minority_orders_nothing() {
    let mut api = api().await;
    let before = api.fake.state().applied();
    api.fake.set_status(|status| {
        status.primary = false;
        status.voters = vec![crate::testing::ME.node, OTHER.node, sheep_types::NodeId(0xcc)];
    });
    let info = api.cluster.info(ClusterInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.health, "no quorum");
    assert!(info.message.contains("only 1 of 3 voters"), "{}", info.message);
    let error = api.create("disk", MIB).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert_eq!(api.fake.state().applied(), before);
    // It is refused late enough that a change of the ring passes unnoticed.
    let fake = &api.fake;
    let back = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        fake.set_status(|status| status.primary = true);
    };
    let mut vdis = api.vdis.clone();
    let request = CreateVdiRequest { name: "disk".into(), size_bytes: MIB, ..CreateVdiRequest::default() };
    let (made, ()) = tokio::join!(vdis.create(request), back);
    assert!(made.is_ok());
}

#[tokio::test]
async fn the_socket_is_for_its_owner_only() {
    let api = api().await;
    let mode = std::fs::metadata(&api.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
