//! What commands print: tables for people, JSON for programs.

use std::io::{self, IsTerminal, Write};

use anyhow::Result;
use comfy_table::{Table, presets};
use kv_client::{Blob, Header, KeyValue, ServedBy, Value};
use serde_json::{Map, Value as Json, json};

use crate::text;

/// Which of the two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Prints a line.
pub fn line(line: &str) -> Result<()> {
    writeln!(io::stdout().lock(), "{line}")?;
    Ok(())
}

/// Prints bytes as they are, and a line end only where a person reads or other values follow.
pub fn raw(bytes: &[u8], others_follow: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    if others_follow || out.is_terminal() {
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(())
}

/// Prints a JSON document.
pub fn json(document: &Json) -> Result<()> {
    line(&serde_json::to_string_pretty(document)?)
}

/// Prints a table without lines around it.
pub fn table<const COLUMNS: usize>(header: [&str; COLUMNS], rows: Vec<[String; COLUMNS]>) -> Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row.to_vec());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    line(&table.trim_fmt())
}

/// A key in JSON.
pub fn key_value(kv: &KeyValue) -> Json {
    let mut object = Map::new();
    text::set(&mut object, "key", &kv.key);
    match &kv.value {
        Value::Inline(bytes) => text::set(&mut object, "value", bytes),
        Value::Blob(description) => {
            object.insert("blob".to_owned(), blob(description));
        }
        Value::Omitted => {}
    }
    object.insert("create_revision".to_owned(), kv.create_revision.into());
    object.insert("mod_revision".to_owned(), kv.mod_revision.into());
    object.insert("version".to_owned(), kv.version.into());
    Json::Object(object)
}

/// The description of an uploaded value in JSON.
pub fn blob(blob: &Blob) -> Json {
    json!({ "size_bytes": blob.size_bytes, "sha256": text::hex(&blob.sha256) })
}

/// The header of a reply in JSON.
pub fn header(header: &Header) -> Json {
    let served_by = match header.served_by {
        ServedBy::Unspecified => "unspecified",
        ServedBy::Leader => "leader",
        ServedBy::Follower => "follower",
    };
    json!({
        "node": header.node.get(),
        "shard": header.shard.get(),
        "revision": header.revision,
        "term": header.term,
        "map_epoch": header.map_epoch,
        "served_by": served_by,
    })
}

/// The value for a table's cell.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Inline(bytes) => text::show(bytes),
        Value::Blob(blob) => format!("<uploaded, {}>", text::size(blob.size_bytes)),
        Value::Omitted => String::new(),
    }
}
