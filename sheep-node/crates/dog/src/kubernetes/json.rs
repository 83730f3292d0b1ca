//! Fields of JSON that may not be there.

use serde_json::Value;

/// A text; empty if there is none.
pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A number; 0 if there is none.
pub(super) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// A list; empty if there is none.
pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A text, or a dash.
pub(super) fn dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

/// `1 pod`, `2 pods`.
pub(super) fn count(number: usize, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

/// `NAMESPACE/NAME` of an object, or of a reference to one.
pub(super) fn full_name(reference: &Value) -> String {
    let (namespace, name) = (&reference["namespace"], &reference["name"]);
    match (namespace.as_str(), name.as_str()) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ => text(name),
    }
}
