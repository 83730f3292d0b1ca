//! Generates the API's types and services without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proto = "proto/sheepdog/v1/control.proto";
    println!("cargo:rerun-if-changed={proto}");
    let descriptors = protox::compile([proto], ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
