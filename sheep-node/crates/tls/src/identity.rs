//! What a program shows others, and whom it believes.

use crate::TlsError;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::{
    Resumption, WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor, verify_server_name,
};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    ClientConfig, ClientConnection, Connection, DigitallySignedStruct, DistinguishedName, Error,
    RootCertStore, ServerConfig, ServerConnection, SignatureScheme,
};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Versions of TLS that are spoken.
const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Nodes: they serve the control API, and exchange data with each other.
    Node,
    /// Those who use the control API.
    Client,
}

impl Role {
    /// The DNS name that certificates of this role have.
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "node.sheepdog.internal",
            Self::Client => "client.sheepdog.internal",
        }
    }

    fn server_name(self) -> ServerName<'static> {
        // Both names are fixed and good; an address that nobody has can only be refused.
        ServerName::try_from(self.name())
            .unwrap_or(ServerName::IpAddress(std::net::Ipv6Addr::UNSPECIFIED.into()))
    }
}

/// The contents of the three files. The CA's may be several certificates, each of which is believed.
#[derive(Clone, PartialEq, Eq)]
pub struct Pem {
    /// The CA's certificate.
    pub ca: Vec<u8>,
    /// The certificate, and after it those between it and the CA, if there are any.
    pub certificate: Vec<u8>,
    /// Its private key.
    pub key: Vec<u8>,
}

impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the key, and the rest means nothing to a reader.
        f.debug_struct("Pem").finish_non_exhaustive()
    }
}

impl Pem {
    /// Whether these are good at some time for a role: what [`Identity::new`] asks for, and the name of the role.
    ///
    /// # Errors
    /// They are not.
    pub fn check(&self, role: Role, at: SystemTime) -> Result<(), TlsError> {
        let parts = Parts::read(self)?;
        parts.check(Some(role), at)?;
        Identity::of(&parts).map(drop)
    }
}

struct Parts {
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Parts {
    fn read(pem: &Pem) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for ca in certificates(&pem.ca, "the certificate of the CA")? {
            roots.add(ca).map_err(|_| TlsError::Damaged { part: "the certificate of the CA" })?;
        }
        let chain = certificates(&pem.certificate, "the certificate")?;
        let key = PrivateKeyDer::from_pem_slice(&pem.key);
        let key = key.map_err(|_| TlsError::Damaged { part: "the private key" })?;
        Ok(Self { roots: Arc::new(roots), chain, key })
    }

    /// Whether those who believe in the CA will believe this certificate, as one of a role; `None`: as any client.
    fn check(&self, role: Option<Role>, at: SystemTime) -> Result<(), TlsError> {
        let check = || {
            let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
            let now = UnixTime::since_unix_epoch(since);
            let (leaf, between) = self.chain.split_first().ok_or(Error::NoCertificatesPresented)?;
            clients(&self.roots)?.verify_client_cert(leaf, between, now)?;
            let parsed = ParsedCertificate::try_from(leaf)?;
            if role == Some(Role::Node) {
                let algorithms = provider().signature_verification_algorithms.all;
                verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, between, now, algorithms)?;
            }
            role.map_or(Ok(()), |role| verify_server_name(&parsed, &role.server_name()))
        };
        check().map_err(|error| TlsError::of_ours(&error))
    }
}

fn certificates(pem: &[u8], part: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or(TlsError::Damaged { part })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn clients(roots: &Arc<RootCertStore>) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider()).build();
    verifier.map_err(|error| Error::General(error.to_string()))
}

/// Certificates, ready to be used.
#[derive(Debug)]
pub struct Identity {
    client: Arc<ClientConfig>,
    /// For any client of the CA.
    control: Arc<ServerConfig>,
    /// For other nodes.
    data: Arc<ServerConfig>,
}

impl Identity {
    /// For a node, which needs the role's name in its certificate, or for a client, which needs any of the CA.
    ///
    /// # Errors
    /// Something is damaged, does not fit together, has expired, or is of another role.
    pub fn new(pem: &Pem, role: Role) -> Result<Self, TlsError> {
        let parts = Parts::read(pem)?;
        parts.check((role == Role::Node).then_some(role), SystemTime::now())?;
        Self::of(&parts)
    }

    fn of(parts: &Parts) -> Result<Self, TlsError> {
        let build = || {
            let any = clients(&parts.roots)?;
            let nodes = Arc::new(OnlyNodes(Arc::clone(&any)));
            Ok(Self { client: calls(parts)?, control: answers(parts, any)?, data: answers(parts, nodes)? })
        };
        build().map_err(|error| TlsError::of_ours(&error))
    }

    /// For a connection that is made to a node.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }

    /// For the control API.
    pub(crate) fn control(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.control)
    }

    /// The calling side of a data connection.
    ///
    /// # Errors
    /// Only a bug.
    pub fn call(&self) -> Result<Connection, Error> {
        Ok(ClientConnection::new(self.client(), Role::Node.server_name())?.into())
    }

    /// The other side of a data connection.
    ///
    /// # Errors
    /// Only a bug.
    pub fn answer(&self) -> Result<Connection, Error> {
        Ok(ServerConnection::new(Arc::clone(&self.data))?.into())
    }
}

/// The name by which a node is called, whatever its address is.
pub(crate) fn node_name() -> ServerName<'static> {
    Role::Node.server_name()
}

fn calls(parts: &Parts) -> Result<Arc<ClientConfig>, Error> {
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(&parts.roots), provider()).build();
    let verifier = verifier.map_err(|error| Error::General(error.to_string()))?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(parts.chain.clone(), parts.key.clone_key())?;
    config.resumption = Resumption::disabled();
    // The role is no secret, and no server chooses by it.
    config.enable_sni = false;
    Ok(Arc::new(config))
}

fn answers(parts: &Parts, verifier: Arc<dyn ClientCertVerifier>) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(parts.chain.clone(), parts.key.clone_key())?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Believes what another verifier believes, if it is the certificate of a node.
#[derive(Debug)]
struct OnlyNodes(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for OnlyNodes {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.0.verify_client_cert(leaf, between, now)?;
        verify_server_name(&ParsedCertificate::try_from(leaf)?, &node_name())?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
