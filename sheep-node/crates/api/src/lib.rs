//! The control API of a node: generated types, client and server of `sheepdog.v1`.

/// Package `sheepdog.v1`, as in `proto/sheepdog/v1/control.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("sheepdog.v1");
}
