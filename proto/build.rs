//! Compiles the protos with protox, so that no protoc is needed, and keeps the descriptors for reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

const PROTOS: [&str; 5] = [
    "kv/v1/kv.proto",
    "kv/v1/kv_text.proto",
    "admin/v1/admin.proto",
    "disk/v1/disk.proto",
    "peer/v1/peer.proto",
];

/// What clients may see by reflection: not the formats of disk and peers.
const PUBLIC: [&str; 3] = ["kv/v1/kv.proto", "kv/v1/kv_text.proto", "admin/v1/admin.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for proto in PROTOS {
        println!("cargo:rerun-if-changed={proto}");
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("public_descriptors.bin"), protox::compile(PUBLIC, ["."])?.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(protox::compile(PROTOS, ["."])?)?;
    Ok(())
}
