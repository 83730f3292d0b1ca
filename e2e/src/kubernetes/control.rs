//! The control plane: etcd, the API server, the controllers and the scheduler, as processes of one host.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::certificates::Authority;
use super::images::image_of;
use super::programs::{part, program};
use super::{CLUSTER_DNS, DOMAIN, SERVICES};
use crate::process::{Proc, Spec};
use crate::wait_until;

/// A control plane. Dropping it ends it.
pub(super) struct Control {
    processes: Vec<Proc>,
    netns: u32,
    kubectl: PathBuf,
    /// What an administrator of the cluster is.
    pub(super) admin: PathBuf,
    /// Where the API is.
    pub(super) server: String,
}

/// First address of the services: the API itself.
const API_SERVICE: &str = "10.96.0.1";

impl Control {
    /// Starts it at `address`, in the network namespace of process `netns`; files go to `dir`.
    pub(super) fn start(authority: &Authority, address: Ipv4Addr, netns: u32, dir: &Path) -> Result<Control> {
        let server = format!("https://{address}:6443");
        let names = format!(
            "IP:{address},IP:{API_SERVICE},IP:127.0.0.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,\
             DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
        );
        authority.issue("apiserver", "/CN=kube-apiserver", &names)?;
        let admin = authority.user("admin", "/O=system:masters/CN=admin", &server)?;
        let kubectl = program("kubectl")?;
        let mut control = Control { processes: Vec::new(), netns, kubectl, admin, server };
        let file = |option: &str, path: PathBuf| format!("--{option}={}", path.display());
        control.launch(
            dir,
            "etcd",
            &[
                file("data-dir", dir.join("etcd-data")),
                "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
                "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
                "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
                // It lives no longer than the test.
                "--unsafe-no-fsync".to_owned(),
            ],
        )?;
        control.launch(
            dir,
            "kube-apiserver",
            &[
                "--etcd-servers=http://127.0.0.1:2379".to_owned(),
                format!("--advertise-address={address}"),
                format!("--service-cluster-ip-range={SERVICES}"),
                file("tls-cert-file", authority.certificate("apiserver")),
                file("tls-private-key-file", authority.key("apiserver")),
                file("client-ca-file", authority.certificate("ca")),
                file("service-account-key-file", authority.accounts()),
                file("service-account-signing-key-file", authority.key("accounts")),
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
                "--authorization-mode=Node,RBAC".to_owned(),
                "--allow-privileged=true".to_owned(),
                "--kubelet-preferred-address-types=InternalIP".to_owned(),
                file("kubelet-client-certificate", authority.certificate("admin")),
                file("kubelet-client-key", authority.key("admin")),
                file("kubelet-certificate-authority", authority.certificate("ca")),
            ],
        )?;
        control.wait_ready()?;
        control.launch_clients(authority, dir)?;
        Ok(control)
    }

    fn launch_clients(&mut self, authority: &Authority, dir: &Path) -> Result<()> {
        let file = |option: &str, path: PathBuf| format!("--{option}={}", path.display());
        let user = |name: &str| authority.user(name, &format!("/CN=system:{name}"), &self.server);
        let (controllers, scheduler) = (user("kube-controller-manager")?, user("kube-scheduler")?);
        self.launch(
            dir,
            "kube-controller-manager",
            &[
                file("kubeconfig", controllers),
                file("service-account-private-key-file", authority.key("accounts")),
                file("root-ca-file", authority.certificate("ca")),
                "--use-service-account-credentials=true".to_owned(),
                "--allocate-node-cidrs=false".to_owned(),
                "--leader-elect=false".to_owned(),
            ],
        )?;
        self.launch(
            dir,
            "kube-scheduler",
            &[file("kubeconfig", scheduler), "--leader-elect=false".to_owned()],
        )
    }

    fn launch(&mut self, dir: &Path, name: &str, args: &[String]) -> Result<()> {
        let spec = Spec::new(name, program(name)?).args(args).in_namespace_of(Some(self.netns));
        self.processes.push(spec.log(dir.join(format!("{name}.log"))).spawn()?);
        Ok(())
    }

    fn wait_ready(&mut self) -> Result<()> {
        wait_until("the API server", Duration::from_secs(180), Duration::from_millis(250), || {
            for process in &mut self.processes {
                ensure!(process.is_running(), "{} ended:\n{}", process.name(), process.log_tail(10));
            }
            let asked = Spec::new("kubectl", &self.kubectl).in_namespace_of(Some(self.netns));
            Ok(asked.arg("--kubeconfig").arg(&self.admin).args(["get", "--raw", "/readyz"]).output().is_ok())
        })
        .map(drop)
    }

    /// A program that talks to the API as the administrator.
    pub(super) fn client(&self, name: &str, program: &Path) -> Spec {
        let spec = Spec::new(name, program).in_namespace_of(Some(self.netns));
        spec.env("KUBECONFIG", &self.admin)
    }

    /// Fails if one of the processes has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        self.processes.iter_mut().try_for_each(|process| {
            ensure!(process.is_running(), "{} ended:\n{}", process.name(), process.log_tail(10));
            Ok(())
        })
    }
}

/// What makes names of services addresses, as objects of the API.
pub(super) fn dns_manifest() -> Result<String> {
    let text = std::fs::read_to_string(part("coredns.yaml")).context("coredns.yaml")?;
    let text = text.replace("CLUSTER_DNS", CLUSTER_DNS).replace("DOMAIN", DOMAIN);
    Ok(text.replace("IMAGE", &image_of("coredns")?))
}
