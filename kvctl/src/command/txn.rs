//! `kvctl txn`.

use std::{io::Read as _, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use kv_client::{Compare, Relation, Txn as ClientTxn, TxnOperation, TxnReply, TxnResult, WriteOptions};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use crate::{
    command::bulk::bytes,
    context::Context,
    exit::{Exit, usage},
    output::{self, Format},
    text,
};

/// Compare, then do one thing or the other, atomically in one shard.
///
/// The transaction is a JSON document:
///
/// {
///   "compare": [
///     {"key": "{order-7}/state", "value": "paid"},
///     {"key": "{order-7}/parcel", "present": false},
///     {"key": "{order-7}/state", "mod_revision": 12, "is": "less"}
///   ],
///   "then": [
///     {"put": "{order-7}/state", "value": "shipped"},
///     {"delete": "{order-7}/cart"},
///     {"get": "{order-7}/address"}
///   ],
///   "else": [{"get": "{order-7}/state"}]
/// }
///
/// A comparison has one of present, value, mod_revision, create_revision, version; "is" is equal (default), not_equal,
/// less or greater. Every key and value may be given as NAME_base64 instead.
/// Exits with 4 when a comparison did not hold and the else branch ran.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct Txn {
    /// File with the transaction
    #[arg(required_unless_present = "stdin", conflicts_with = "stdin")]
    file: Option<PathBuf>,
    /// Read it from standard input
    #[arg(long)]
    stdin: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    compare: Vec<Comparison>,
    #[serde(default)]
    then: Vec<Operation>,
    #[serde(default, rename = "else")]
    otherwise: Vec<Operation>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Comparison {
    key: Option<String>,
    key_base64: Option<String>,
    present: Option<bool>,
    value: Option<String>,
    value_base64: Option<String>,
    mod_revision: Option<u64>,
    create_revision: Option<u64>,
    version: Option<u64>,
    #[serde(default)]
    is: Is,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Is {
    #[default]
    Equal,
    NotEqual,
    Less,
    Greater,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Operation {
    get: Option<String>,
    get_base64: Option<String>,
    put: Option<String>,
    put_base64: Option<String>,
    delete: Option<String>,
    delete_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
}

impl Comparison {
    fn parse(self) -> Result<Compare> {
        let key = bytes(self.key, self.key_base64)?.ok_or_else(|| usage("a comparison has no key"))?;
        let value = bytes(self.value, self.value_base64)?;
        let compare = match (self.present, value, self.mod_revision, self.create_revision, self.version) {
            (Some(true), None, None, None, None) => Compare::present(key),
            (Some(false), None, None, None, None) => Compare::absent(key),
            (None, Some(value), None, None, None) => Compare::value(key, value),
            (None, None, Some(revision), None, None) => Compare::mod_revision(key, revision),
            (None, None, None, Some(revision), None) => Compare::create_revision(key, revision),
            (None, None, None, None, Some(version)) => Compare::version(key, version),
            _ => {
                return Err(usage(
                    "a comparison has exactly one of present, value, mod_revision, create_revision, version",
                ));
            }
        };
        Ok(compare.is(match self.is {
            Is::Equal => Relation::Equal,
            Is::NotEqual => Relation::NotEqual,
            Is::Less => Relation::Less,
            Is::Greater => Relation::Greater,
        }))
    }
}

impl Operation {
    fn parse(self) -> Result<TxnOperation> {
        let get = bytes(self.get, self.get_base64)?;
        let put = bytes(self.put, self.put_base64)?;
        let delete = bytes(self.delete, self.delete_base64)?;
        let value = bytes(self.value, self.value_base64)?;
        match (get, put, delete, value) {
            (Some(key), None, None, None) => Ok(TxnOperation::get(key)),
            (None, Some(key), None, Some(value)) => {
                Ok(TxnOperation::put(key, value, WriteOptions::default()))
            }
            (None, None, Some(key), None) => Ok(TxnOperation::delete(key, WriteOptions::default())),
            _ => Err(usage("an operation is a get, a put with a value, or a delete")),
        }
    }
}

impl Document {
    fn parse(document: &str) -> Result<ClientTxn> {
        // The decoder would take a list for the fields in order.
        if !document.trim_start().starts_with('{') {
            return Err(usage("malformed transaction: expected a JSON object"));
        }
        let document: Self = serde_json::from_str(document)
            .map_err(|error| usage(format!("malformed transaction: {error}")))?;
        let mut txn = ClientTxn::new();
        for comparison in document.compare {
            txn = txn.when(comparison.parse()?);
        }
        for operation in document.then {
            txn = txn.then(operation.parse()?);
        }
        for operation in document.otherwise {
            txn = txn.otherwise(operation.parse()?);
        }
        Ok(txn)
    }
}

impl Txn {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        let document = match &self.file {
            Some(path) => {
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
            }
            None => {
                let mut document = String::new();
                std::io::stdin()
                    .lock()
                    .read_to_string(&mut document)
                    .context("cannot read standard input")?;
                document
            }
        };
        let reply = context.client.txn(Document::parse(&document)?).await?;
        match context.format {
            Format::Json => output::json(&json_of(&reply))?,
            Format::Table => {
                let branch = if reply.succeeded { "then" } else { "else" };
                output::line(&format!("{branch} branch, revision {}", reply.header.revision))?;
                for result in &reply.results {
                    output::line(&line_of(result))?;
                }
            }
        }
        Ok(if reply.succeeded { Exit::Ok } else { Exit::Precondition })
    }
}

fn line_of(result: &TxnResult) -> String {
    match result {
        TxnResult::Get(get) => match &get.kv {
            Some(kv) => format!("get     {}\t{}", text::show(&kv.key), output::cell(&kv.value)),
            None => "get     absent".to_owned(),
        },
        TxnResult::Put(put) if put.applied => format!("put     version {}", put.version),
        TxnResult::Put(_) => "put     precondition failed".to_owned(),
        TxnResult::Delete(delete) if delete.applied => "delete  ok".to_owned(),
        TxnResult::Delete(_) => "delete  not applied".to_owned(),
    }
}

fn json_of(reply: &TxnReply) -> Json {
    let results = reply.results.iter().map(|result| match result {
        TxnResult::Get(get) => json!({ "get": get.kv.as_ref().map_or(Json::Null, output::key_value) }),
        TxnResult::Put(put) => {
            json!({ "put": { "applied": put.applied, "mod_revision": put.mod_revision, "version": put.version } })
        }
        TxnResult::Delete(delete) => json!({ "delete": { "applied": delete.applied } }),
    });
    json!({
        "succeeded": reply.succeeded,
        "replayed": reply.replayed,
        "results": results.collect::<Vec<_>>(),
        "header": output::header(&reply.header),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_form_is_read() {
        let txn = Document::parse(
            r#"{"compare": [{"key": "a", "value": "paid"}, {"key": "b", "present": false},
                            {"key": "a", "mod_revision": 12, "is": "less"}],
                "then": [{"put": "a", "value": "x"}, {"delete": "b"}, {"get_base64": "/w=="}],
                "else": [{"get": "a"}]}"#,
        );
        let expected = ClientTxn::new()
            .when(Compare::value("a", "paid"))
            .when(Compare::absent("b"))
            .when(Compare::mod_revision("a", 12).is(Relation::Less))
            .then_put("a", "x")
            .then_delete("b")
            .then_get([0xff])
            .otherwise_get("a");
        assert_eq!(txn.unwrap(), expected);
    }

    #[test]
    fn malformed_documents_are_refused() {
        for document in [
            "",
            "[]",
            r#"{"than": []}"#,
            r#"{"compare": [{"key": "a"}]}"#,
            r#"{"compare": [{"present": true}]}"#,
            r#"{"compare": [{"key": "a", "present": true, "version": 1}]}"#,
            r#"{"then": [{"put": "a"}]}"#,
            r#"{"then": [{"get": "a", "delete": "a"}]}"#,
            r#"{"then": [{"get": "a", "get_base64": "YQ=="}]}"#,
        ] {
            assert!(Document::parse(document).is_err(), "{document}");
        }
    }
}
