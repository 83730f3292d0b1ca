//! Secrets with certificates: reading, making and renewing them. Client required.

use super::apply::{MANAGER, said};
use super::certificates::{CA_LIFE, Held, Issuing, LIFE, ca_secret, secret_of};
use super::observed::Observed;
use super::validate::Valid;
use anyhow::{Context, Result, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use sheep_tls::authority::Authority;
use sheep_tls::{Pem, Role};
use std::sync::Arc;

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const CA: &str = "ca.crt";

/// Looks.
pub(super) async fn look(client: &Client, namespace: &str, cluster: &str) -> Result<Held> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let authority = secrets.get_opt(&ca_secret(cluster)).await?;
    let leaf = async |role| anyhow::Ok(secrets.get_opt(&secret_of(cluster, role)).await?.map(pem));
    Ok(Held {
        authority: authority.map(|secret| {
            let pem = pem(secret);
            Authority::read(&pem.certificate, &pem.key).map(Arc::new).map_err(|problem| problem.to_string())
        }),
        node: leaf(Role::Node).await?,
        client: leaf(Role::Client).await?,
    })
}

/// What is missing is empty, and so as bad as what is damaged.
fn pem(secret: Secret) -> Pem {
    let mut data = secret.data.unwrap_or_default();
    let mut take = |key: &str| data.remove(key).unwrap_or_default().0;
    Pem { ca: take(CA), certificate: take(CERTIFICATE), key: take(KEY) }
}

/// Makes what is missing.
pub(super) async fn make(
    client: &Client,
    cluster: &Valid,
    observed: &Observed,
    issuing: &Issuing,
) -> Result<()> {
    let authority = if issuing.make_authority {
        make_authority(client, cluster).await?;
        // It may be that of somebody who was faster.
        look(client, &cluster.namespace, &cluster.name).await?.authority
    } else {
        observed.certificates.authority.clone()
    };
    if let Some(Ok(authority)) = authority {
        for role in &issuing.issue {
            let name = secret_of(&cluster.name, *role);
            let pem = authority.issue(*role, LIFE).with_context(|| format!("Secret {name} is not made"))?;
            write(client, cluster, &name, &pem).await?;
            tracing::info!("a new certificate is in Secret {name}");
        }
    }
    Ok(())
}

fn secret(cluster: &Valid, name: &str, data: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "labels": {
                "app.kubernetes.io/name": "sheepdog",
                "app.kubernetes.io/instance": cluster.name,
                "app.kubernetes.io/managed-by": MANAGER,
            },
        },
        "type": "kubernetes.io/tls",
        "data": data,
    })
}

fn bytes(bytes: &[u8]) -> ByteString {
    ByteString(bytes.to_vec())
}

/// Only if there is none. It has no owner: whatever has a certificate of it believes in no other.
async fn make_authority(client: &Client, cluster: &Valid) -> Result<()> {
    let name = ca_secret(&cluster.name);
    let authority = Authority::make(&format!("Sheepdog {}/{}", cluster.namespace, cluster.name), CA_LIFE)?;
    let data = json!({
        CERTIFICATE: bytes(authority.certificate().as_bytes()),
        KEY: bytes(authority.key().as_bytes()),
    });
    let object: Secret = serde_json::from_value(secret(cluster, &name, data))?;
    let api: Api<Secret> = Api::namespaced(client.clone(), &cluster.namespace);
    match api.create(&PostParams::default(), &object).await {
        Ok(_) => Ok(()),
        // Somebody was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => bail!("Secret {name} with the cluster's CA is not made: {}", said(&error)),
    }
}

/// All of a certificate at once. It goes with the cluster; another one can always be made.
async fn write(client: &Client, cluster: &Valid, name: &str, pem: &Pem) -> Result<()> {
    let data = json!({CA: bytes(&pem.ca), CERTIFICATE: bytes(&pem.certificate), KEY: bytes(&pem.key)});
    let mut object = secret(cluster, name, data);
    object["metadata"]["ownerReferences"] = super::build::owner_references(cluster);
    let api: Api<Secret> = Api::namespaced(client.clone(), &cluster.namespace);
    match api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&object)).await {
        Ok(_) => Ok(()),
        Err(error) => bail!("Secret {name} is not written: {}", said(&error)),
    }
}
