//! What can go wrong, and what it is called in gRPC. All codes are chosen here.

use tonic::{Code, Status};

/// Why a call cannot be carried out. The text is a sentence for the person who reads the events of a claim.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A request that can never work.
    #[error("{0}")]
    Invalid(String),
    /// A size that no volume, or not this one, can have.
    #[error("{0}")]
    OutOfRange(String),
    /// As named.
    #[error("{0}")]
    NotFound(String),
    /// There is something of this name that is not what is asked for; with its id, if that is known.
    #[error("{message}")]
    Exists {
        /// The sentence.
        message: String,
        /// What has the name.
        id: Option<u64>,
    },
    /// Something else has to be done first.
    #[error("{0}")]
    Precondition(String),
    /// Somebody else is at it: ask again.
    #[error("{0}")]
    Busy(String),
    /// A limit is reached.
    #[error("{0}")]
    Exhausted(String),
    /// The cluster cannot be reached, or may not act now: ask again.
    #[error("{0}")]
    Unavailable(String),
    /// Not within the time; it may still be carried out: ask again.
    #[error("{0}")]
    Late(String),
    /// A program of the system failed, or the cluster said something that makes no sense.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::OutOfRange(_) => Code::OutOfRange,
            Self::NotFound(_) => Code::NotFound,
            Self::Exists { .. } => Code::AlreadyExists,
            Self::Precondition(_) => Code::FailedPrecondition,
            Self::Busy(_) => Code::Aborted,
            Self::Exhausted(_) => Code::ResourceExhausted,
            Self::Unavailable(_) => Code::Unavailable,
            Self::Late(_) => Code::DeadlineExceeded,
            Self::Internal(_) => Code::Internal,
        }
    }

    pub(crate) fn exists(message: impl Into<String>) -> Self {
        Self::Exists { message: message.into(), id: None }
    }

    pub(crate) fn missing(what: &str) -> Self {
        Self::Invalid(format!("the request has no {what}"))
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
