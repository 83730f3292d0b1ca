//! What can be wrong with certificates, as sentences.

use rustls::{AlertDescription, CertificateError, Error, InconsistentKeys};
use std::io;
use std::path::PathBuf;
use thiserror::Error as ThisError;

/// Why certificates cannot be used.
#[derive(Debug, ThisError)]
pub enum TlsError {
    /// A file is not there, or may not be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A part is not what it should be.
    #[error("{part} is not in PEM form, or damaged")]
    Damaged {
        /// Which part: the CA, the certificate or its key.
        part: &'static str,
    },
    /// The parts are what they should be, and do not fit together, or not what they are to be used for.
    #[error("the certificate cannot be used: {0}")]
    Refused(String),
    /// Only some of the three files are named.
    #[error("a CA, a certificate and its key belong together: give all three of {0}, or none")]
    Incomplete(&'static str),
}

impl TlsError {
    pub(crate) fn of_ours(error: &Error) -> Self {
        Self::Refused(match error {
            Error::InvalidCertificate(problem) => format!("it {}", certificate(problem)),
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => "the key is that of another one".into(),
            other => other.to_string(),
        })
    }
}

/// What an error says of the other side, to be put behind "the other side" or an address.
pub fn sentence(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(problem) => format!("shows a certificate that {}", certificate(problem)),
        Error::NoCertificatesPresented => "shows no certificate".into(),
        Error::InvalidMessage(_) => "does not speak TLS, or what it sent was damaged".into(),
        Error::DecryptError => "sent what cannot be decrypted: it was damaged on its way".into(),
        Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => "wants a certificate, and none is given".into(),
            AlertDescription::CertificateExpired => "refuses our certificate: it has expired".into(),
            AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                "refuses our certificate: it is of another CA".into()
            }
            AlertDescription::BadCertificate | AlertDescription::AccessDenied => {
                "refuses our certificate: it is not valid now, or of another role".into()
            }
            other => format!("broke TLS off ({other:?})"),
        },
        other => format!("does not speak TLS as it should ({other})"),
    }
}

fn certificate(problem: &CertificateError) -> String {
    match problem {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "has expired".into(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is not valid yet (are the clocks right?)".into()
        }
        // Two CAs of one name differ only in their keys.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => "is of another CA".into(),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "is of another role".into()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "may not be used for this side of a connection".into()
        }
        other => format!("is refused ({other})"),
    }
}
