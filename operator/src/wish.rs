//! The SheepdogCluster that an installation asks for. It cannot be an object of the chart, which also brings its definition, so it is a
//! file, and the operator makes the object. It belongs to the ConfigMap with that file, and goes with it. What a person changed in the
//! object stays until the installation asks for something else there than it did.

use crate::crd::{SheepdogCluster, SheepdogClusterSpec};
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client, ResourceExt};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::Duration;
use tokio::time::sleep;
use tracing::{info, warn};

/// Owner of the fields that the installation sets. Others may set others.
const MANAGER: &str = "sheep-operator-installation";
/// Annotation of the SheepdogCluster: the specification that an installation asked for last, as JSON.
const ASKED: &str = "sheepdog.io/installed-spec";
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

    /// Its uid. It is written when the operator starts, and when it is missing; it is other people's too.
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
        // As it is written there, without what this version would put in for what is missing.
        let resource = ApiResource::erase::<SheepdogCluster>(&());
        let written: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
        let there = written.get_opt(&self.name).await?;
        if !write && let Some(there) = &there {
            return Ok(there.uid());
        }
        let object = self.object(&owner, there.as_ref());
        let params = PatchParams::apply(MANAGER).force();
        Ok(api.patch(&self.name, &params, &Patch::Apply(&object)).await?.uid())
    }

    /// What is to be applied to what is there.
    fn object(&self, owner: &ConfigMap, there: Option<&DynamicObject>) -> Value {
        let asked: Option<Value> =
            there.and_then(|there| serde_json::from_str(there.annotations().get(ASKED)?).ok());
        let spec = match (asked, there) {
            (Some(asked), Some(there)) => changes(&self.spec, &asked, &there.data["spec"]),
            _ => Some(self.spec.clone()),
        };
        json!({
            "apiVersion": "sheepdog.io/v1alpha1",
            "kind": "SheepdogCluster",
            "metadata": {
                "name": self.name,
                "annotations": {ASKED: self.spec.to_string()},
                "ownerReferences": [{
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "name": owner.name_any(),
                    "uid": owner.uid(),
                }],
            },
            "spec": spec.unwrap_or_else(|| json!({})),
        })
    }
}

/// What of a wish is to be applied: all but what somebody changed since it was asked for, if the same is asked for again. What is left
/// out is not the installation's any more, and so stays as it is.
fn changes(wish: &Value, asked: &Value, there: &Value) -> Option<Value> {
    if let (Value::Object(wish), Value::Object(there)) = (wish, there) {
        let part = |(key, wish): (&String, &Value)| {
            let (asked, there) =
                (asked.get(key).unwrap_or(&Value::Null), there.get(key).unwrap_or(&Value::Null));
            Some((key.clone(), changes(wish, asked, there)?))
        };
        let parts: Map<String, Value> = wish.iter().filter_map(part).collect();
        return (wish.is_empty() || !parts.is_empty()).then_some(Value::Object(parts));
    }
    (wish != asked || is_there(wish, there)).then(|| wish.clone())
}

/// Whether what there is has what is wished for. Entries of a list are found by their names, and may have got more fields: Kubernetes puts in
/// what has a default.
fn is_there(wish: &Value, there: &Value) -> bool {
    match (wish, there) {
        (Value::Array(wish), Value::Array(there)) => {
            let pair = |(wish, there): (&Value, &Value)| match (wish, there) {
                (Value::Object(wish), Value::Object(other)) if wish.contains_key("name") => {
                    wish.iter().all(|(key, value)| other.get(key) == Some(value))
                }
                _ => wish == there,
            };
            wish.len() == there.len() && wish.iter().zip(there).all(pair)
        }
        _ => wish == there,
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

    fn cluster(spec: Value, asked: Option<&Value>) -> DynamicObject {
        let mut cluster = DynamicObject::new("sheepdog", &ApiResource::erase::<SheepdogCluster>(&()));
        cluster.data = json!({ "spec": spec });
        cluster.metadata.annotations = asked.map(|asked| [(ASKED.to_owned(), asked.to_string())].into());
        cluster
    }

    /// The operator starts often, and a chart is upgraded for other reasons.
    #[test]
    fn what_a_person_changed_stays_until_the_installation_asks_for_something_else() {
        let asked = json!({"redundancy": {"copies": 2}, "recovery": {"delay": "5m", "paused": false}});
        let edited = json!({
            "redundancy": {"copies": 3, "minCopies": 2},
            "recovery": {"delay": "5m", "paused": true, "scrubInterval": "7d"},
        });
        let applied = |wish: &Value, there: Option<&DynamicObject>| {
            let wish = Wish { name: "sheepdog".into(), spec: wish.clone() };
            let object = wish.object(&ConfigMap::default(), there);
            assert_eq!(object["metadata"]["annotations"][ASKED], wish.spec.to_string());
            object["spec"].clone()
        };
        let there = cluster(edited.clone(), Some(&asked));
        assert_eq!(applied(&asked, Some(&there)), json!({"recovery": {"delay": "5m"}}));
        let mut other = asked.clone();
        other["redundancy"]["copies"] = 4.into();
        let expected = json!({"redundancy": {"copies": 4}, "recovery": {"delay": "5m"}});
        assert_eq!(applied(&other, Some(&there)), expected);
        // It is new, or of a version that did not remember.
        assert_eq!(applied(&asked, None), asked);
        assert_eq!(applied(&asked, Some(&cluster(edited, None))), asked);
        // Entries of lists have got what has a default.
        let rings = json!({"rings": {"named": [{"name": "a"}, {"name": "b", "transport": "Multicast"}]}});
        let filled = json!({"rings": {"named": [
            {"name": "a", "nodeSelector": {}, "transport": "Unicast"},
            {"name": "b", "nodeSelector": {}, "transport": "Multicast"},
        ]}});
        assert_eq!(applied(&rings, Some(&cluster(filled.clone(), Some(&rings)))), rings);
        let mut edited = filled;
        edited["rings"]["named"][1]["transport"] = "Unicast".into();
        assert_eq!(applied(&rings, Some(&cluster(edited, Some(&rings)))), json!({}));
        // An empty map that is asked for is one.
        let empty = json!({"storage": {"nodeSelector": {}}});
        assert_eq!(applied(&empty, Some(&cluster(json!({}), Some(&asked)))), empty);
    }
}
