//! `dog vdi tree`: volumes, below each its snapshots from old to new, below each snapshot what was cloned from it.

use crate::cli::Format;
use crate::output;
use crate::vdi::vdi_json;
use anyhow::Result;
use serde_json::{Value, json};
use sheep_api::Size;
use sheep_api::v1::Vdi;
use std::collections::{BTreeMap, BTreeSet};

/// A volume, which may be deleted, with its snapshots.
struct Volume<'a> {
    vdi: Option<&'a Vdi>,
    snapshots: Vec<&'a Vdi>,
}

/// All volumes by id, and where each stands.
struct Forest<'a> {
    volumes: BTreeMap<u64, Volume<'a>>,
    /// Ids of clones by the name of the snapshot below which they stand; those that stand by themselves have none.
    below: BTreeMap<&'a str, Vec<u64>>,
}

impl<'a> Forest<'a> {
    fn new(vdis: &'a [Vdi]) -> Self {
        let mut volumes: BTreeMap<u64, Volume<'a>> = BTreeMap::new();
        let (snapshots, working): (Vec<&Vdi>, Vec<&Vdi>) =
            vdis.iter().partition(|vdi| vdi.kind == "snapshot");
        for vdi in working {
            volumes.insert(vdi.id, Volume { vdi: Some(vdi), snapshots: Vec::new() });
        }
        for snapshot in snapshots {
            let volume = volumes.entry(snapshot.source_id);
            volume.or_insert_with(|| Volume { vdi: None, snapshots: Vec::new() }).snapshots.push(snapshot);
        }
        let names: BTreeSet<&str> = vdis.iter().map(|vdi| vdi.name.as_str()).collect();
        let mut below: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for (id, volume) in &mut volumes {
            volume.snapshots.sort_by_key(|snapshot| snapshot.id);
            let one = volume.vdi.or_else(|| volume.snapshots.first().copied());
            let origin = one.map_or("", |vdi| vdi.origin.as_str());
            below.entry(if names.contains(origin) { origin } else { "" }).or_default().push(*id);
        }
        Self { volumes, below }
    }

    /// Volumes below a snapshot, or those that stand by themselves, by name.
    fn below(&self, snapshot: &str) -> Vec<&Volume<'a>> {
        let ids = self.below.get(snapshot).into_iter().flatten();
        let mut all: Vec<&Volume<'a>> = ids.filter_map(|id| self.volumes.get(id)).collect();
        all.sort_by(|one, other| one.name().cmp(other.name()));
        all
    }

    fn lines(&self, snapshot: &str, indent: &str, rows: &mut Vec<Vec<String>>) {
        let volumes = self.below(snapshot);
        let top = snapshot.is_empty();
        for (at, volume) in volumes.iter().enumerate() {
            let last = at + 1 == volumes.len();
            let (branch, inner) = branches(indent, last, top);
            let name = volume.name();
            rows.push(match volume.vdi {
                Some(vdi) => row(format!("{branch}{name}"), vdi, kind(vdi)),
                None => vec![format!("{branch}({name}, deleted)")],
            });
            for (at, taken) in volume.snapshots.iter().enumerate() {
                let last = at + 1 == volume.snapshots.len();
                let (branch, inner) = branches(&inner, last, false);
                rows.push(row(format!("{branch}{}", taken.name), taken, "snapshot"));
                self.lines(&taken.name, &inner, rows);
            }
        }
    }

    fn json(&self, snapshot: &str) -> Value {
        let volume = |volume: &&Volume<'a>| {
            let snapshots = volume.snapshots.iter().map(|taken| {
                let mut value = vdi_json(taken);
                value["clones"] = self.json(&taken.name);
                value
            });
            let snapshots: Vec<Value> = snapshots.collect();
            let mut value = volume.vdi.map_or_else(|| json!({"name": volume.name()}), vdi_json);
            value["deleted"] = volume.vdi.is_none().into();
            value["snapshots"] = snapshots.into();
            value
        };
        Value::Array(self.below(snapshot).iter().map(volume).collect())
    }
}

fn kind(vdi: &Vdi) -> &'static str {
    match (vdi.flattening, vdi.cloned) {
        (true, _) => "clone, being flattened",
        (false, true) => "clone",
        (false, false) => "volume",
    }
}

impl Volume<'_> {
    /// Its name; of a deleted one that which its snapshots have.
    fn name(&self) -> &str {
        let taken = self.snapshots.first();
        let former = || taken.and_then(|taken| taken.name.split_once('@')).map_or("", |(name, _)| name);
        self.vdi.map_or_else(former, |vdi| &vdi.name)
    }
}

/// What stands before a name, and before everything below it.
fn branches(indent: &str, last: bool, top: bool) -> (String, String) {
    match (top, last) {
        (true, _) => (indent.to_owned(), indent.to_owned()),
        (false, true) => (format!("{indent}└─ "), format!("{indent}   ")),
        (false, false) => (format!("{indent}├─ "), format!("{indent}│  ")),
    }
}

fn row(name: String, vdi: &Vdi, kind: &str) -> Vec<String> {
    vec![name, kind.to_owned(), Size(vdi.size_bytes).to_string(), output::moment(vdi.created_unix_ms)]
}

fn text(vdis: &[Vdi]) -> String {
    let mut rows = Vec::new();
    Forest::new(vdis).lines("", "", &mut rows);
    output::table(&["NAME", "KIND", "SIZE", "CREATED"], rows)
}

pub(crate) fn show(vdis: &[Vdi], format: Format) -> Result<()> {
    match format {
        Format::Json => output::json(&Forest::new(vdis).json(""))?,
        Format::Table => output::line(&text(vdis))?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(id: u64, name: &str) -> Vdi {
        let kind = "volume".into();
        Vdi { id, name: name.into(), kind, size_bytes: 1 << 30, ..Vdi::default() }
    }

    fn snapshot(id: u64, of: (u64, &str), tag: &str) -> Vdi {
        let (source_id, source) = of;
        let (kind, tag) = ("snapshot".into(), tag.to_owned());
        Vdi {
            kind,
            source_id,
            source: source.into(),
            tag: tag.clone(),
            ..volume(id, &format!("{source}@{tag}"))
        }
    }

    fn clone(id: u64, name: &str, origin: &str) -> Vdi {
        Vdi { cloned: true, origin: origin.into(), ..volume(id, name) }
    }

    fn vdis() -> Vec<Vdi> {
        vec![
            clone(9, "copy", "disk@b"),
            volume(1, "disk"),
            snapshot(5, (1, "disk"), "a"),
            snapshot(4, (1, "disk"), "b"),
            Vdi { source: String::new(), ..snapshot(3, (2, "gone"), "x") },
            clone(10, "lost", ""),
            Vdi { cloned: true, origin: "disk@b".into(), ..snapshot(11, (9, "copy"), "y") },
            clone(12, "second", "copy@y"),
        ]
    }

    #[test]
    fn everything_stands_below_what_it_comes_from() {
        let expected = "\
NAME                KIND      SIZE   CREATED
disk                volume    1 GiB  1970-01-01 00:00:00Z
├─ disk@b           snapshot  1 GiB  1970-01-01 00:00:00Z
│  └─ copy          clone     1 GiB  1970-01-01 00:00:00Z
│     └─ copy@y     snapshot  1 GiB  1970-01-01 00:00:00Z
│        └─ second  clone     1 GiB  1970-01-01 00:00:00Z
└─ disk@a           snapshot  1 GiB  1970-01-01 00:00:00Z
(gone, deleted)
└─ gone@x           snapshot  1 GiB  1970-01-01 00:00:00Z
lost                clone     1 GiB  1970-01-01 00:00:00Z";
        let text = text(&vdis());
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn the_same_for_programs() {
        let vdis = vdis();
        let tree = Forest::new(&vdis).json("");
        assert_eq!(tree.as_array().map(Vec::len), Some(3));
        assert_eq!(tree[0]["snapshots"][0]["clones"][0]["snapshots"][0]["clones"][0]["name"], "second");
        assert_eq!((&tree[1]["deleted"], &tree[1]["name"]), (&json!(true), &json!("gone")));
        assert_eq!(tree[0]["deleted"], false);
    }
}
