//! Generates the types and services of CSI without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = ["proto/csi/v1/csi.proto", "proto/pluginregistration/v1/registration.proto"];
    for proto in protos {
        println!("cargo:rerun-if-changed={proto}");
    }
    let descriptors = protox::compile(protos, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
