//! One operator at a time: a Lease that it holds and renews. Two at once would do no harm to data (what must happen once is decided by
//! one object of Kubernetes), but would disagree about which pod to replace next.

use anyhow::{Context, Result, bail};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

/// How long a holder counts that does not renew.
const LASTS: Duration = Duration::from_secs(30);
/// How often it is renewed, or tried for.
const EVERY: Duration = Duration::from_secs(5);

/// A Lease, from the point of view of one process.
pub struct Leadership {
    api: Api<Lease>,
    name: String,
    me: String,
    /// The version of the Lease that was seen last, and when it was seen first, by the clock of this process: clocks of machines differ.
    seen: Mutex<Option<(String, Instant)>>,
}

/// What to do with a Lease that was found.
#[derive(Debug, PartialEq, Eq)]
enum Claim {
    Mine,
    Free,
    Taken(String),
}

impl Leadership {
    /// The Lease `name`, for the process that is called `me`.
    pub fn new(client: Client, namespace: &str, name: &str, me: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.into(),
            me: me.into(),
            seen: Mutex::default(),
        }
    }

    /// Waits until this process has it.
    ///
    /// # Errors
    /// Never for what may pass.
    pub async fn acquire(&self) -> Result<()> {
        let mut told = None;
        loop {
            match self.attempt_in_time().await {
                Ok(Claim::Mine) => {
                    info!("this operator leads");
                    return Ok(());
                }
                Ok(Claim::Free) => continue,
                Ok(Claim::Taken(holder)) => {
                    if told.as_ref() != Some(&holder) {
                        info!("operator {holder} leads; waiting");
                        told = Some(holder);
                    }
                }
                Err(problem) => warn!("cannot get the lease {}: {problem:#}", self.name),
            }
            sleep(EVERY).await;
        }
    }

    /// Renews it, for ever.
    ///
    /// # Errors
    /// It is lost, or may be: the process must end.
    pub async fn keep(&self) -> Result<()> {
        let mut renewed = Instant::now();
        loop {
            sleep(EVERY).await;
            match self.attempt_in_time().await {
                Ok(Claim::Mine) => renewed = Instant::now(),
                Ok(Claim::Taken(holder)) => bail!("operator {holder} leads now"),
                Ok(Claim::Free) => {}
                Err(problem) if renewed.elapsed() + EVERY * 3 > LASTS => {
                    return Err(problem).context("the lease could not be renewed in time");
                }
                Err(problem) => warn!("the lease is not renewed: {problem:#}"),
            }
        }
    }

    /// Gives it back, so that a successor need not wait.
    pub async fn release(&self) {
        let Ok(Some(mut lease)) = self.api.get_opt(&self.name).await else { return };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_ref() == Some(&self.me) {
            spec.holder_identity = Some(String::new());
            // If that fails, it runs out.
            let _ = self.api.replace(&self.name, &PostParams::default(), &lease).await;
        }
    }

    /// An API server that is gone may never answer.
    async fn attempt_in_time(&self) -> Result<Claim> {
        timeout(EVERY, self.attempt()).await.context("Kubernetes does not answer")?
    }

    /// How long the Lease has been as it is, as far as this process has seen.
    fn unchanged(&self, lease: &Lease) -> Duration {
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match &*seen {
            Some((known, since)) if *known == version => since.elapsed(),
            _ => {
                *seen = Some((version, Instant::now()));
                Duration::ZERO
            }
        }
    }

    async fn attempt(&self) -> Result<Claim> {
        let now = Timestamp::now();
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                spec: Some(self.spec(now, 0)),
            };
            return self.written(self.api.create(&PostParams::default(), &lease).await);
        };
        let unchanged = self.unchanged(&lease);
        let spec = lease.spec.take().unwrap_or_default();
        let changes = spec.lease_transitions.unwrap_or_default();
        match claim(&spec, &self.me, unchanged) {
            Claim::Taken(holder) => return Ok(Claim::Taken(holder)),
            Claim::Mine => {
                lease.spec = Some(LeaseSpec { acquire_time: spec.acquire_time, ..self.spec(now, changes) })
            }
            Claim::Free => lease.spec = Some(self.spec(now, changes.saturating_add(1))),
        }
        // With the version that was read: if somebody was faster, this is refused.
        self.written(self.api.replace(&self.name, &PostParams::default(), &lease).await)
    }

    fn spec(&self, now: Timestamp, changes: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(LASTS.as_secs()).ok(),
            acquire_time: Some(MicroTime(now)),
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(changes),
            ..LeaseSpec::default()
        }
    }

    fn written(&self, result: kube::Result<Lease>) -> Result<Claim> {
        match result {
            Ok(_) => Ok(Claim::Mine),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Claim::Free),
            Err(error) => Err(error.into()),
        }
    }
}

/// `unchanged`: how long nobody has renewed it.
fn claim(spec: &LeaseSpec, me: &str, unchanged: Duration) -> Claim {
    let holder = spec.holder_identity.clone().unwrap_or_default();
    if holder == me {
        return Claim::Mine;
    }
    let lasts = u64::try_from(spec.lease_duration_seconds.unwrap_or_default()).unwrap_or_default();
    let runs = unchanged < Duration::from_secs(lasts);
    if holder.is_empty() || !runs { Claim::Free } else { Claim::Taken(holder) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_over_only_when_it_has_run_out() {
        let renewed = Timestamp::from_second(1_000_000).unwrap();
        let mut spec = LeaseSpec {
            holder_identity: Some("one".into()),
            lease_duration_seconds: Some(30),
            renew_time: Some(MicroTime(renewed)),
            ..LeaseSpec::default()
        };
        let after = Duration::from_secs;
        assert_eq!(claim(&spec, "one", after(29)), Claim::Mine);
        assert_eq!(claim(&spec, "two", after(29)), Claim::Taken("one".into()));
        assert_eq!(claim(&spec, "two", after(30)), Claim::Free);
        spec.holder_identity = Some(String::new());
        assert_eq!(claim(&spec, "two", after(1)), Claim::Free, "it was given back");
        assert_eq!(claim(&LeaseSpec::default(), "two", after(1)), Claim::Free);
    }
}
