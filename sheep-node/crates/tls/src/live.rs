//! Certificates that are renewed while a program runs.

use crate::{Identity, Pem, Role, TlsError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// The files are looked at this often at most, when a connection is made.
const LOOK: Duration = Duration::from_secs(1);

/// Where the certificates of a program are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The CA's certificate.
    pub ca: PathBuf,
    /// The certificate to show.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Files {
    /// All three or none of them; `names`: how a person gives them.
    ///
    /// # Errors
    /// Some are given and others not.
    pub fn all_or_none(
        ca: Option<&Path>,
        certificate: Option<&Path>,
        key: Option<&Path>,
        names: &'static str,
    ) -> Result<Option<Self>, TlsError> {
        match (ca, certificate, key) {
            (Some(ca), Some(certificate), Some(key)) => {
                Ok(Some(Self { ca: ca.into(), certificate: certificate.into(), key: key.into() }))
            }
            (None, None, None) => Ok(None),
            _ => Err(TlsError::Incomplete(names)),
        }
    }

    fn read(&self) -> Result<Pem, TlsError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| TlsError::Read { path: path.to_path_buf(), error })
        };
        Ok(Pem { ca: read(&self.ca)?, certificate: read(&self.certificate)?, key: read(&self.key)? })
    }
}

/// What new connections are made with. Files are read again when they have changed; until what they have can be used, the
/// former contents are.
pub struct Certificates {
    files: Option<Files>,
    role: Role,
    state: Mutex<State>,
}

struct State {
    looked: Instant,
    /// What the files had when they were last read, good or not.
    seen: Pem,
    /// Files that could not be read are told of once.
    told: bool,
    identity: Arc<Identity>,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The rest has a private key.
        f.debug_struct("Certificates")
            .field("files", &self.files)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

impl Certificates {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// They cannot be used.
    pub fn open(files: Files, role: Role) -> Result<Self, TlsError> {
        let pem = files.read()?;
        Self::with(Some(files), pem, role)
    }

    /// From memory: they stay as they are.
    ///
    /// # Errors
    /// They cannot be used.
    pub fn fixed(pem: Pem, role: Role) -> Result<Self, TlsError> {
        Self::with(None, pem, role)
    }

    fn with(files: Option<Files>, seen: Pem, role: Role) -> Result<Self, TlsError> {
        let identity = Arc::new(Identity::new(&seen, role)?);
        let state = State { looked: Instant::now(), seen, told: false, identity };
        Ok(Self { files, role, state: Mutex::new(state) })
    }

    /// For a connection that is made now.
    pub fn current(&self) -> Arc<Identity> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = self.files.as_ref().filter(|_| state.looked.elapsed() >= LOOK) {
            state.looked = Instant::now();
            self.look(files, &mut state);
        }
        Arc::clone(&state.identity)
    }

    /// Nobody writes three files at once: what does not fit together yet may in a moment.
    fn look(&self, files: &Files, state: &mut State) {
        let problem = match files.read() {
            Ok(pem) if pem == state.seen => return,
            Ok(pem) => {
                let made = Identity::new(&pem, self.role);
                state.seen = pem;
                state.told = false;
                made
            }
            Err(problem) => Err(problem),
        };
        match problem {
            Ok(identity) => {
                state.identity = Arc::new(identity);
                info!("new connections use the new certificate in {}", files.certificate.display());
            }
            Err(problem) => {
                if !std::mem::replace(&mut state.told, true) {
                    warn!("the new certificate is not used, the former one stays: {problem}");
                }
            }
        }
    }
}
