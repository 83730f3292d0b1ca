//! A CA: making it, and certificates of it.

use crate::{Pem, Role, TlsError};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::parse_x509_certificate;
use x509_parser::prelude::X509Certificate;

/// Clocks differ: what is made now is good for those who are a little behind.
const BACK: Duration = Duration::from_secs(3_600);

/// A CA with its private key.
pub struct Authority {
    certificate: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
    valid: Range<SystemTime>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without its key.
        f.debug_struct("Authority").field("valid", &self.valid).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes one.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn make(name: &str, life: Duration) -> Result<Self, TlsError> {
        let now = SystemTime::now();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        // Certificates of roles, and no further CAs.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - BACK).into();
        params.not_after = (now + life).into();
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?.pem();
        let key = key.serialize_pem();
        Self::read(certificate.as_bytes(), key.as_bytes())
    }

    /// From what was made before, or by somebody else. If there are several certificates, the first is that of the key.
    ///
    /// # Errors
    /// It is damaged, is no CA, or the key is that of another one.
    pub fn read(certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        const CA: &str = "the certificate of the CA";
        const KEY: &str = "the private key of the CA";
        let (own, der) = text(certificate).zip(first(certificate)).ok_or(TlsError::Damaged { part: CA })?;
        let (_, parsed) = parse_x509_certificate(&der).map_err(|_| TlsError::Damaged { part: CA })?;
        if !parsed.is_ca() {
            return Err(TlsError::Refused("it is to be that of a CA, and is none".into()));
        }
        let key = text(key).ok_or(TlsError::Damaged { part: KEY })?;
        let pair = KeyPair::from_pem(&key).map_err(|_| TlsError::Damaged { part: KEY })?;
        if pair.public_key_raw() != &*parsed.public_key().subject_public_key.data {
            return Err(TlsError::Refused("the CA's key is that of another one".into()));
        }
        let valid = validity(&parsed);
        let issuer = Issuer::from_ca_cert_der(&der, pair).map_err(failed)?;
        Ok(Self { certificate: own, key, issuer, valid })
    }

    /// Its certificate.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its private key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// When it ends.
    pub fn ends(&self) -> SystemTime {
        self.valid.end
    }

    /// A certificate from now on, that does not outlive the CA.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn issue(&self, role: Role, life: Duration) -> Result<Pem, TlsError> {
        let now = SystemTime::now();
        self.issue_for(role, now - BACK..(now + life).min(self.valid.end))
    }

    /// A certificate for a time.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn issue_for(&self, role: Role, time: Range<SystemTime>) -> Result<Pem, TlsError> {
        let mut params = CertificateParams::new([role.name().to_owned()]).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, role.name());
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match role {
            Role::Node => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            Role::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.not_before = time.start.into();
        params.not_after = time.end.into();
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Pem {
            ca: self.certificate.clone().into_bytes(),
            certificate: certificate.pem().into_bytes(),
            key: key.serialize_pem().into_bytes(),
        })
    }
}

/// From when until when the first certificate of a PEM file is good; `None`: it is damaged.
pub fn time_of(certificate: &[u8]) -> Option<Range<SystemTime>> {
    let der = first(certificate)?;
    let (_, parsed) = parse_x509_certificate(&der).ok()?;
    Some(validity(&parsed))
}

fn validity(certificate: &X509Certificate<'_>) -> Range<SystemTime> {
    let moment = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let validity = certificate.validity();
    moment(validity.not_before.timestamp())..moment(validity.not_after.timestamp())
}

fn first(pem: &[u8]) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem).ok()
}

fn text(pem: &[u8]) -> Option<String> {
    String::from_utf8(pem.to_vec()).ok()
}

fn failed(error: rcgen::Error) -> TlsError {
    TlsError::Refused(error.to_string())
}
