//! Certificates of the cluster. Its CA is made once; what nodes and clients show is made of it, and anew in time.

use super::observed::Observed;
use k8s_openapi::jiff::Timestamp;
use sheep_tls::authority::{Authority, time_of};
use sheep_tls::{Certificates, Pem, Role};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(86_400);
/// Life of the CA.
pub(super) const CA_LIFE: Duration = Duration::from_secs(3_652 * 86_400);
/// Life of what it issues. A new one is made when a third of it is left.
pub(super) const LIFE: Duration = Duration::from_secs(365 * 86_400);
/// The CA's end is told of so long before.
const CA_END_TOLD: Duration = Duration::from_secs(2 * 365 * 86_400);
/// What the operator shows in one turn need not last.
const OWN_LIFE: Duration = DAY;

/// Roles that there is a Secret for.
const ROLES: [Role; 2] = [Role::Node, Role::Client];

/// Names of the Secrets with certificates of a cluster.
pub(crate) fn ca_secret(cluster: &str) -> String {
    format!("{cluster}-ca")
}

/// See [`ca_secret`].
pub(crate) fn secret_of(cluster: &str, role: Role) -> String {
    match role {
        Role::Node => format!("{cluster}-node-tls"),
        Role::Client => format!("{cluster}-client-tls"),
    }
}

/// What there is of certificates.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    /// The CA, or what is wrong with its Secret.
    pub(crate) authority: Option<Result<Arc<Authority>, String>>,
    /// What nodes show.
    pub(crate) node: Option<Pem>,
    /// What clients show.
    pub(crate) client: Option<Pem>,
}

impl Held {
    fn of(&self, role: Role) -> Option<&Pem> {
        match role {
            Role::Node => self.node.as_ref(),
            Role::Client => self.client.as_ref(),
        }
    }

    /// What the operator shows nodes: made of the CA, or, if there is none, that of other clients.
    pub(crate) fn own(&self) -> Option<Arc<Certificates>> {
        let made = match &self.authority {
            Some(Ok(authority)) => authority.issue(Role::Client, OWN_LIFE).ok(),
            _ => self.client.clone(),
        };
        Certificates::fixed(made?, Role::Client).ok().map(Arc::new)
    }
}

/// What to do next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Issuing {
    /// The CA has to be made, before everything else.
    pub(crate) make_authority: bool,
    /// Certificates of these roles have to be made.
    pub(crate) issue: Vec<Role>,
    /// What a person has to do something about: in one word, and in a sentence.
    pub(crate) trouble: Option<(&'static str, String)>,
    /// The same, while all is still well.
    pub(crate) warning: Option<String>,
}

impl Issuing {
    /// Whether nothing has to be made.
    pub(crate) fn is_done(&self) -> bool {
        !self.make_authority && self.issue.is_empty()
    }
}

/// Decides.
pub(crate) fn next(cluster: &str, namespace: &str, observed: &Observed) -> Issuing {
    let held = &observed.certificates;
    let now = SystemTime::from(observed.now);
    let ca = ca_secret(cluster);
    let authority = match &held.authority {
        None if held.node.is_none() && held.client.is_none() => {
            return Issuing { make_authority: true, issue: ROLES.to_vec(), ..Issuing::default() };
        }
        None => return lost(cluster, namespace),
        Some(Err(why)) => {
            return trouble(
                "CaDamaged",
                format!(
                    "Secret {ca} cannot be used as the cluster's CA ({why}): no certificate is renewed. Put back what it had, as \
                     tls.crt and tls.key."
                ),
            );
        }
        Some(Ok(authority)) => authority,
    };
    let end = day(authority.ends());
    if authority.ends() <= now {
        return trouble(
            "CaEnded",
            format!("The cluster's CA in Secret {ca} has ended on {end}: no new connection can be made."),
        );
    }
    let issue = ROLES.into_iter().filter(|role| {
        let good = held.of(*role).is_some_and(|pem| is_good(pem, *role, authority, now));
        !good
    });
    let warning = (authority.ends() < now + CA_END_TOLD).then(|| {
        format!(
            "The cluster's CA in Secret {ca} ends on {end}, and is not renewed by itself: plan a time in which no volume is \
             in use, and make another one then."
        )
    });
    Issuing { issue: issue.collect(), warning, ..Issuing::default() }
}

fn trouble(reason: &'static str, message: String) -> Issuing {
    Issuing { trouble: Some((reason, message)), ..Issuing::default() }
}

/// Another CA would cut off all nodes that have certificates of the former one, until each has a new one.
fn lost(cluster: &str, namespace: &str) -> Issuing {
    let (ca, node, client) =
        (ca_secret(cluster), secret_of(cluster, Role::Node), secret_of(cluster, Role::Client));
    trouble(
        "CaLost",
        format!(
            "Secret {ca} with the cluster's CA is lost. What has certificates goes on with them, and none is renewed. Put the Secret \
             back; or, if there is no copy, have another CA made, while which new connections fail for a minute or two: `kubectl -n \
             {namespace} delete secret {node} {client}`"
        ),
    )
}

/// Whether a certificate may stay for now.
fn is_good(pem: &Pem, role: Role, authority: &Authority, now: SystemTime) -> bool {
    let young = time_of(&pem.certificate).is_some_and(|time| {
        let life = time.end.duration_since(time.start).unwrap_or_default();
        now < time.end - life / 3
    });
    young && pem.ca == authority.certificate().as_bytes() && pem.check(role, now).is_ok()
}

fn day(time: SystemTime) -> String {
    Timestamp::try_from(time)
        .map_or_else(|_| "a day far off".into(), |time| time.strftime("%Y-%m-%d").to_string())
}

#[cfg(test)]
mod tests {
    use super::super::testing::serving;
    use super::*;

    fn observed(held: Held) -> Observed {
        Observed { now: Timestamp::now(), certificates: held, ..serving(&["a"]) }
    }

    fn authority(life: Duration) -> Arc<Authority> {
        Arc::new(Authority::make("test", life).unwrap())
    }

    fn held(authority: &Arc<Authority>) -> Held {
        Held {
            authority: Some(Ok(Arc::clone(authority))),
            node: Some(authority.issue(Role::Node, LIFE).unwrap()),
            client: Some(authority.issue(Role::Client, LIFE).unwrap()),
        }
    }

    fn decide(held: Held) -> Issuing {
        next("sheepdog", "storage", &observed(held))
    }

    #[test]
    fn a_ca_is_made_where_there_has_been_none() {
        assert!(decide(Held::default()).make_authority);
        let ca = authority(CA_LIFE);
        let new = Held { authority: Some(Ok(ca.clone())), ..Held::default() };
        assert!(new.own().is_some(), "the operator needs no Secret for itself");
        assert_eq!(decide(new).issue, [Role::Node, Role::Client]);
        assert_eq!(decide(held(&ca)), Issuing::default(), "nothing to do");
    }

    #[test]
    fn a_ca_that_is_lost_or_damaged_is_not_replaced() {
        let ca = authority(CA_LIFE);
        let without = Held { authority: None, ..held(&ca) };
        assert!(without.own().is_some(), "it goes on with what clients have");
        let lost = decide(without);
        let (reason, message) = lost.trouble.clone().unwrap();
        assert_eq!((reason, lost.make_authority, lost.issue.len()), ("CaLost", false, 0));
        assert!(message.contains("delete secret sheepdog-node-tls sheepdog-client-tls"), "{message}");
        let damaged = decide(Held { authority: Some(Err("torn".into())), ..held(&ca) });
        assert_eq!(damaged.trouble.unwrap().0, "CaDamaged");
        assert!(damaged.issue.is_empty());
    }

    #[test]
    fn certificates_are_made_anew_in_time_and_when_they_are_wrong() {
        let ca = authority(CA_LIFE);
        let now = SystemTime::now();
        let with = |node: Pem| decide(Held { node: Some(node), ..held(&ca) }).issue;
        let day = DAY;
        for (past, left, again) in [(60, 40, false), (70, 30, true), (200, 0, true)] {
            let node = ca.issue_for(Role::Node, now - past * day..now + left * day + day / 2).unwrap();
            assert_eq!(!with(node).is_empty(), again, "{left} of {} days are left", past + left);
        }
        let good = ca.issue(Role::Node, LIFE).unwrap();
        let other = authority(CA_LIFE);
        assert_eq!(with(other.issue(Role::Node, LIFE).unwrap()), [Role::Node], "of another CA");
        assert_eq!(with(ca.issue(Role::Client, LIFE).unwrap()), [Role::Node], "of another role");
        assert_eq!(with(Pem { certificate: b"x".to_vec(), ..good.clone() }), [Role::Node], "damaged");
        let key = ca.issue(Role::Node, LIFE).unwrap().key;
        assert_eq!(with(Pem { key, ..good.clone() }), [Role::Node], "with the key of another");
        assert!(with(good).is_empty());
    }

    #[test]
    fn the_end_of_the_ca_is_told_of_in_time() {
        assert_eq!(decide(held(&authority(800 * DAY))).warning, None);
        let near = decide(held(&authority(700 * DAY)));
        assert!(near.warning.unwrap().contains("sheepdog-ca ends on 20"));
        assert_eq!((near.issue, near.trouble), (vec![], None));
        let ca = authority(Duration::from_secs(60));
        let mut late = observed(held(&ca));
        late.now = Timestamp::try_from(SystemTime::now() + DAY).unwrap();
        assert_eq!(next("sheepdog", "storage", &late).trouble.unwrap().0, "CaEnded");
    }
}
