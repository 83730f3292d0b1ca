//! csi-sanity, the conformance test of CSI, against the driver: on a cluster in memory, with block devices on files, and on a
//! real one with real devices.

use crate::machine::on_a_machine;
use serde_json::Value;
use sheep_csi::{Backend, Controller, Devices, FileDevices, Memory, Node, Services, serve};
use sheep_e2e::kubernetes::program;
use sheep_e2e::process::run;
use sheep_e2e::{LeakCheck, Scratch, serial, wait_until};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const SKIPS: &str = include_str!("sanity-skips.txt");
const NODE: &str = "00000000000000aa";

/// Lines of the list: names of tests, and reasons.
fn listed() -> Vec<(&'static str, &'static str)> {
    let lines = SKIPS.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines.map(|line| line.split_once(": ").expect("a name, a colon, a reason")).collect()
}

fn covers(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start))
}

/// Every test of a report with how it ended.
fn outcomes(report: &Value) -> Vec<(String, String)> {
    let specs = report[0]["SpecReports"].as_array().unwrap();
    let tests = specs.iter().filter(|spec| spec["LeafNodeType"] == "It");
    let name = |spec: &Value| {
        let above = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
        let mut words: Vec<&str> = above.filter_map(Value::as_str).collect();
        words.push(spec["LeafNodeText"].as_str().unwrap_or_default());
        words.join(" / ")
    };
    tests.map(|spec| (name(spec), spec["State"].as_str().unwrap_or_default().to_owned())).collect()
}

/// Runs csi-sanity with one kind of volume, and gives the tests with how they ended. Its files are in a directory.
fn sanity(
    program: &Path,
    access: &str,
    directory: &Path,
    backend: Arc<dyn Backend>,
    devices: Arc<dyn Devices>,
) -> Vec<(String, String)> {
    let path = |name: &str| directory.join(name);
    let (socket, report) = (path("csi.sock"), path("report.json"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let services = Services {
        backend: backend.clone(),
        controller: Some(Controller::new(backend.clone())),
        node: Some(Node::new(backend, devices, 64)),
    };
    let server = runtime.spawn({
        let socket = socket.clone();
        async move { serve(services, &socket, async { stopped.await.unwrap_or_default() }).await }
    });
    wait_until("the driver's socket", Duration::from_secs(30), Duration::from_millis(20), || {
        Ok(socket.exists())
    })
    .unwrap();
    let ran = run(
        program,
        [
            format!("--csi.endpoint={}", socket.display()),
            format!("--csi.mountdir={}", path("mount").display()),
            format!("--csi.stagingdir={}", path("staging").display()),
            format!("--csi.testvolumeaccesstype={access}"),
            "--csi.testvolumesize=134217728".to_owned(),
            "--csi.testvolumeexpandsize=268435456".to_owned(),
            format!("--ginkgo.json-report={}", report.display()),
            "--ginkgo.no-color".to_owned(),
        ],
    );
    let _ = stop.send(());
    runtime.block_on(server).unwrap().unwrap();
    let left = run("losetup", ["--list", "--noheadings", "--output", "NAME,BACK-FILE"]).unwrap();
    let left: Vec<&str> =
        left.lines().filter(|line| line.contains(&directory.display().to_string())).collect();
    assert!(left.is_empty(), "devices are left: {left:?}");
    ran.unwrap_or_else(|error| panic!("csi-sanity with {access} volumes: {error:#}"));
    outcomes(&serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap())
}

/// Everything passed but what is listed, and everything listed was skipped.
fn judge(outcomes: &[(String, String)]) {
    let count = |state: &str| outcomes.iter().filter(|(_, ended)| ended == state).count();
    assert!(count("passed") >= 60, "{outcomes:?}");
    assert_eq!(count("passed") + count("skipped") + count("pending"), outcomes.len(), "{outcomes:?}");
    let skipped: Vec<&String> =
        outcomes.iter().filter(|(_, ended)| ended != "passed").map(|(name, _)| name).collect();
    let unlisted: Vec<_> =
        skipped.iter().filter(|name| !listed().iter().any(|(pattern, _)| covers(pattern, name))).collect();
    assert!(unlisted.is_empty(), "skipped, and not in sanity-skips.txt: {unlisted:#?}");
    let stale: Vec<_> = listed()
        .into_iter()
        .filter(|(pattern, _)| !skipped.iter().any(|name| covers(pattern, name)))
        .collect();
    assert!(stale.is_empty(), "in sanity-skips.txt, and not skipped: {stale:#?}");
}

#[test]
fn csi_sanity_passes() {
    let _one = serial();
    let program = program("csi-sanity").unwrap();
    let check = LeakCheck::start();
    for access in ["mount", "block"] {
        let scratch = Scratch::new("csi").unwrap();
        let files = scratch.path().join("files");
        std::fs::create_dir(&files).unwrap();
        let (backend, devices) = (Arc::new(Memory::new(&[NODE])), Arc::new(FileDevices::new(&files)));
        judge(&sanity(&program, access, scratch.path(), backend, devices));
    }
    check.finish().unwrap();
}

#[test]
fn csi_sanity_passes_on_a_real_cluster_with_real_devices() {
    let program = program("csi-sanity").unwrap();
    on_a_machine(|machine| {
        for access in ["mount", "block"] {
            let (backend, devices) = (machine.backend.clone(), machine.devices.clone());
            judge(&sanity(&program, access, machine.scratch.path(), backend, devices));
        }
    });
}
