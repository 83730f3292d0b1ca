//! The SheepdogCluster that an installation asks for. It cannot be an object of the chart, which also brings its definition, so it is a
//! file, and the operator makes the object. It belongs to the ConfigMap with that file, and goes with it.

use crate::crd::{SheepdogCluster, SheepdogClusterSpec};
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use tokio::time::sleep;
use tracing::{info, warn};

/// Owner of the fields that the installation sets. Others may set others.
const MANAGER: &str = "sheep-operator-installation";
/// How often it is looked whether the object is there.
const EVERY: Duration = Duration::from_secs(15);

/// What the installation asks for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// Name of the SheepdogCluster.
    name: String,
    /// Its specification, as it was written.
    spec: Value,
}

impl Wish {
    /// From the file that the chart has written; none if there is none.
    ///
    /// # Errors
    /// It is no specification of a SheepdogCluster.
    pub fn load(file: &Path) -> Result<Option<Self>> {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        Self::parse(&text).with_context(|| format!("{} cannot be used", file.display())).map(Some)
    }

    fn parse(text: &str) -> Result<Self> {
        let wish: Self = serde_json::from_str(text)?;
        let _: SheepdogClusterSpec =
            serde_json::from_value(wish.spec.clone()).context("the cluster's spec is wrong")?;
        Ok(wish)
    }

    /// Keeps the object there as long as the ConfigMap is, for ever.
    pub async fn keep(&self, client: Client, namespace: &str, config_map: &str) {
        let mut made: Option<String> = None;
        loop {
            match self.make(&client, namespace, config_map, made.is_none()).await {
                Ok(uid) if uid != made => {
                    if uid.is_some() {
                        info!("SheepdogCluster {} is what the installation asks for", self.name);
                    }
                    made = uid;
                }
                Ok(_) => {}
                Err(problem) => warn!("SheepdogCluster {}: {problem:#}", self.name),
            }
            sleep(EVERY).await;
        }
    }

    /// Its uid. It is written when the operator starts, and when it is missing; in between it is other people's too.
    async fn make(
        &self,
        client: &Client,
        namespace: &str,
        config_map: &str,
        write: bool,
    ) -> Result<Option<String>> {
        let owners: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let Some(owner) =
            owners.get_opt(config_map).await?.filter(|it| it.metadata.deletion_timestamp.is_none())
        else {
            // The installation is being removed.
            return Ok(None);
        };
        let api: Api<SheepdogCluster> = Api::namespaced(client.clone(), namespace);
        let there = api.get_opt(&self.name).await?;
        if !write && let Some(there) = &there {
            return Ok(there.uid());
        }
        let object = json!({
            "apiVersion": "sheepdog.io/v1alpha1",
            "kind": "SheepdogCluster",
            "metadata": {
                "name": self.name,
                "ownerReferences": [{
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "name": owner.name_any(),
                    "uid": owner.uid(),
                }],
            },
            "spec": self.spec,
        });
        let params = PatchParams::apply(MANAGER).force();
        Ok(api.patch(&self.name, &params, &Patch::Apply(&object)).await?.uid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_checked_before_anything_is_made_of_it() {
        let wish = Wish::parse(r#"{"name": "sheepdog", "spec": {"redundancy": {"copies": 2}}}"#).unwrap();
        assert_eq!(wish.spec["redundancy"]["copies"], 2);
        assert!(Wish::parse(r#"{"name": "sheepdog", "spec": {"redundancy": {"copies": "many"}}}"#).is_err());
        assert!(Wish::parse(r#"{"name": "sheepdog"}"#).is_err());
    }
}
