//! Compiles the protos with protox, so that no protoc is needed, and keeps the descriptors for reflection and for the codec.

use std::{collections::BTreeMap, env, error::Error, fmt::Write as _, fs, path::PathBuf};

use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorSet, field_descriptor_proto::Type};

const PROTOS: [&str; 6] = [
    "kv/v1/kv.proto",
    "kv/v1/kv_text.proto",
    "admin/v1/admin.proto",
    "admin/v1/recovery.proto",
    "disk/v1/disk.proto",
    "peer/v1/peer.proto",
];

/// What clients may see by reflection: not the formats of disk and peers.
const PUBLIC: [&str; 4] =
    ["kv/v1/kv.proto", "kv/v1/kv_text.proto", "admin/v1/admin.proto", "admin/v1/recovery.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for proto in PROTOS {
        println!("cargo:rerun-if-changed={proto}");
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("public_descriptors.bin"), protox::compile(PUBLIC, ["."])?.encode_to_vec())?;
    let descriptors = protox::compile(PROTOS, ["."])?;
    fs::write(out.join("shapes.rs"), shapes(&descriptors)?)?;
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::codec::BoundedCodec")
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}

/// Package and name of each message, in this order, and which of its fields are messages.
type Messages<'d> = BTreeMap<(String, String), Vec<(i32, &'d str)>>;

/// `SHAPES` of `src/codec.rs`.
fn shapes(descriptors: &FileDescriptorSet) -> Result<String, Box<dyn Error>> {
    let mut messages = Messages::new();
    for file in &descriptors.file {
        for message in &file.message_type {
            collect(file.package(), message.name(), message, &mut messages);
        }
    }
    let full_names = messages.keys().map(|(package, name)| format!(".{package}.{name}"));
    let indexes: BTreeMap<String, usize> = full_names.zip(0..).collect();
    let mut text = "/// Every message, by package and name.\nstatic SHAPES: &[Shape] = &[\n".to_owned();
    for ((package, name), fields) in &messages {
        let inner: Vec<String> = fields
            .iter()
            .filter_map(|(number, inner)| Some(format!("({number}, {})", indexes.get(*inner)?)))
            .collect();
        let inner = inner.join(", ");
        writeln!(text, "    Shape {{ package: {package:?}, name: {name:?}, inner: &[{inner}] }},")?;
    }
    Ok(text + "];\n")
}

/// A message and those that are declared in it.
fn collect<'d>(package: &str, name: &str, message: &'d DescriptorProto, messages: &mut Messages<'d>) {
    let inner = message.field.iter().filter(|field| field.r#type() == Type::Message);
    let inner = inner.map(|field| (field.number(), field.type_name())).collect();
    messages.insert((package.to_owned(), name.to_owned()), inner);
    for nested in &message.nested_type {
        collect(package, &format!("{name}.{}", nested.name()), nested, messages);
    }
}
