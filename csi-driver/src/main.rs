//! The CSI driver. One process makes volumes and gives them to nodes (`controller`); the other half, devices and mounts,
//! runs on every node.

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use sheep_csi::{
    Backend, Cluster, Controller, Node, Registration, RemoteDevices, Services, liveness, register, serve,
};
use sheep_tls::{Certificates, Files, Role as TlsRole};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

/// How long the kubelet may take to find the driver before something is said.
const REGISTRATION_PATIENCE: Duration = Duration::from_secs(60);

/// Volumes of a Sheepdog cluster for pods, by the Container Storage Interface
#[derive(Debug, Parser)]
#[command(name = "sheep-csi", version)]
struct Cli {
    #[command(subcommand)]
    role: Role,
    /// Least important lines of the log: error, warn, info, debug, trace
    #[arg(long, global = true, default_value = "info", env = "SHEEP_LOG_LEVEL")]
    log_level: String,
    /// Form of the log
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, env = "SHEEP_LOG_FORMAT")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Makes, deletes, copies and expands volumes and snapshots, and gives volumes to nodes; one in the cluster
    Controller(Place),
    /// Makes devices and mounts of volumes; one on each node
    Node(NodeArgs),
}

/// The kubelet says the path of the socket as the authority of its requests, with a percent sign for each slash. Our HTTP takes these
/// only before an @, where a user's name would be.
fn registration_socket(path: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(path);
    match path.file_name() {
        Some(name) if name.to_string_lossy().split_once('@').is_some_and(|(_, host)| !host.is_empty()) => Ok(path),
        _ => Err("the name needs an @, such as kubelet@csi.sheepdog.io-reg.sock, or the kubelet's requests cannot be understood"
            .into()),
    }
}

#[derive(Debug, Args)]
struct NodeArgs {
    #[command(flatten)]
    place: Place,
    /// Socket of sheep-device on this node
    #[arg(long, env = "SHEEP_DEVICES", value_name = "SOCKET")]
    devices: PathBuf,
    /// Socket to make in the kubelet's directory of plugins, by which it learns of the driver; its name must have an @ in it
    #[arg(long, env = "SHEEP_REGISTRATION", value_name = "SOCKET", value_parser = registration_socket)]
    registration: Option<PathBuf>,
    /// The endpoint by the path that the kubelet sees, if that is another one
    #[arg(long, env = "SHEEP_KUBELET_ENDPOINT", value_name = "SOCKET")]
    kubelet_endpoint: Option<PathBuf>,
    /// Most volumes that the scheduler puts on this node; 0: as many as come
    #[arg(long, env = "SHEEP_MAX_VOLUMES", default_value_t = 0, value_name = "NUMBER")]
    max_volumes: u32,
}

#[derive(Debug, Args)]
struct Place {
    /// Unix socket to serve CSI on, with or without unix:// before it
    #[arg(long, env = "CSI_ENDPOINT", value_name = "SOCKET")]
    endpoint: String,
    /// Control address of a node, host:port or unix:/path; several, separated by commas: the first that serves is asked
    #[arg(long, env = "SHEEP_SERVER", value_name = "ADDRESS", value_delimiter = ',', required = true)]
    server: Vec<String>,
    /// Certificate of the cluster's CA, for nodes that speak TLS
    #[arg(long, env = "SHEEP_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Certificate to show them, of that CA; read again when it is renewed
    #[arg(long, env = "SHEEP_TLS_CERTIFICATE", value_name = "FILE")]
    tls_certificate: Option<PathBuf>,
    /// Private key of the certificate
    #[arg(long, env = "SHEEP_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Address for GET /livez (the process is alive) and /readyz (the cluster serves, and the kubelet has taken the driver)
    #[arg(long, env = "SHEEP_HTTP", value_name = "ADDRESS")]
    http: Option<SocketAddr>,
}

impl Place {
    fn certificates(&self) -> Result<Option<Arc<Certificates>>> {
        let files = Files::all_or_none(
            self.tls_ca.as_deref(),
            self.tls_certificate.as_deref(),
            self.tls_key.as_deref(),
            "--tls-ca, --tls-certificate and --tls-key",
        )?;
        let opened = files.map(|files| Certificates::open(files, TlsRole::Client)).transpose()?;
        Ok(opened.map(Arc::new))
    }
}

/// The path that an endpoint means.
fn socket(endpoint: &str) -> Result<PathBuf> {
    let path = endpoint.strip_prefix("unix:").unwrap_or(endpoint);
    let path = path.strip_prefix("//").unwrap_or(path);
    anyhow::ensure!(Path::new(path).is_absolute(), "{endpoint:?} is not the absolute path of a socket");
    Ok(PathBuf::from(path))
}

fn start_log(level: &str, format: LogFormat) -> Result<()> {
    let filter = EnvFilter::try_new(level).with_context(|| format!("{level:?} is no level of the log"))?;
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// Until somebody wants the process to end.
async fn end() -> Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => info!("stopping (SIGTERM)"),
        _ = int.recv() => info!("stopping (SIGINT)"),
    }
    Ok(())
}

/// Until somebody wants the process to end, or waiting for that fails.
async fn stop() {
    if let Err(problem) = end().await {
        error!("cannot wait for signals: {problem}");
    }
}

/// The cluster, and whether it serves. Calls are refused until it does; they come again by themselves.
async fn cluster(place: &Place, socket: &Path, registration: Option<Registration>) -> Result<Arc<Cluster>> {
    let backend = Arc::new(Cluster::with(&place.server, place.certificates()?)?);
    if let Some(address) = place.http {
        let asked = backend.clone();
        tokio::spawn(async move {
            if let Err(problem) = liveness(address, asked, registration, stop()).await {
                error!("{problem}");
            }
        });
    }
    match backend.serves().await {
        Ok(()) => info!("on {}: the cluster serves", socket.display()),
        Err(problem) => warn!("on {}: the cluster does not serve yet: {problem}", socket.display()),
    }
    Ok(backend)
}

async fn controller(place: &Place) -> Result<()> {
    let socket = socket(&place.endpoint)?;
    let backend = cluster(place, &socket, None).await?;
    let controller = Some(Controller::new(backend.clone()));
    serve(Services { backend, controller, node: None }, &socket, stop()).await?;
    Ok(())
}

async fn node(args: &NodeArgs) -> Result<()> {
    let socket = socket(&args.place.endpoint)?;
    let registration = Registration::new(args.kubelet_endpoint.as_deref().unwrap_or(&socket));
    let wanted = args.registration.as_ref().map(|_| registration.clone());
    let backend = cluster(&args.place, &socket, wanted).await?;
    let devices = Arc::new(RemoteDevices::new(&args.devices));
    let node = Node::new(backend.clone(), devices, args.max_volumes);
    tokio::spawn({
        let node = node.clone();
        async move {
            if let Err(problem) = node.clear().await {
                warn!("devices that serve nobody may be left: {problem}");
            }
        }
    });
    let serving = serve(Services { backend, controller: None, node: Some(node) }, &socket, stop());
    let Some(place) = &args.registration else {
        serving.await?;
        return Ok(());
    };
    tokio::spawn({
        let registration = registration.clone();
        async move {
            if tokio::time::timeout(REGISTRATION_PATIENCE, registration.heard()).await.is_err() {
                warn!(
                    "the kubelet has not asked within {} s: is its directory of plugins mounted, and the right one?",
                    REGISTRATION_PATIENCE.as_secs()
                );
            }
        }
    });
    let (served, registered) = tokio::join!(serving, register(registration, place, stop()));
    served?;
    registered?;
    Ok(())
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let run = || {
        start_log(&cli.log_level, cli.log_format)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        match &cli.role {
            Role::Controller(place) => runtime.block_on(controller(place)),
            Role::Node(args) => runtime.block_on(node(args)),
        }
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("sheep-csi: {problem:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_paths_of_sockets() {
        for text in ["/csi/csi.sock", "unix:/csi/csi.sock", "unix:///csi/csi.sock"] {
            assert_eq!(socket(text).unwrap(), Path::new("/csi/csi.sock"), "{text}");
        }
        assert!(socket("csi.sock").is_err() && socket("tcp://1.2.3.4:5").is_err());
        let line = "sheep-csi controller --endpoint /s --server a:7002,b:7002 --server unix:/c";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Role::Controller(place) = cli.role else { panic!() };
        assert_eq!(place.server, ["a:7002", "b:7002", "unix:/c"]);
        assert!(Cli::try_parse_from(["sheep-csi", "controller", "--endpoint", "/s"]).is_err());
        let line = "sheep-csi node --endpoint /s --server unix:/c --devices /d --registration /r@s";
        let Role::Node(node) = Cli::try_parse_from(line.split(' ')).unwrap().role else { panic!() };
        assert_eq!((node.devices.as_path(), node.max_volumes), (Path::new("/d"), 0));
    }

    /// What the kubelet makes of a path.
    fn authority(path: &str) -> String {
        path.replace('/', "%2F")
    }

    #[test]
    fn only_a_socket_is_taken_whose_path_can_be_an_authority() {
        let directory = "/var/lib/kubelet/plugins_registry";
        for (name, fits) in [
            ("kubelet@csi.sheepdog.io-reg.sock", true),
            ("csi.sheepdog.io-reg.sock", false),
            ("kubelet@", false),
        ] {
            let path = format!("{directory}/{name}");
            assert_eq!(registration_socket(&path).is_ok(), fits, "{path}");
            let uri = tonic::transport::Uri::builder()
                .scheme("http")
                .authority(authority(&path))
                .path_and_query("/");
            assert_eq!(uri.build().is_ok(), fits, "{path}");
        }
    }
}
