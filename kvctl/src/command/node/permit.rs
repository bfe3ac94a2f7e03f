//! `kvctl node permit`: leave to restart a node.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Result;
use clap::Args;
use kv_client::{
    Error,
    admin::{Objection, ReleasePermitRequest, RequestPermitRequest, RequestPermitResponse},
};
use serde_json::json;

use super::done;
use crate::{
    actor::{self, Because},
    advice,
    context::Context,
    exit::{self, Advised, Exit},
    named::{met, word},
    output::{self, Format},
    text, time,
};

/// Reasons by which the state of the cluster, and not the question, forbids a restart now.
const NOT_NOW: [&str; 6] =
    ["PERMIT_OPEN", "CHANGE_UNDER_WAY", "QUORUM_AT_RISK", "NO_LEADER", "NODE_IS_GONE", "EPOCH_MOVED_ON"];

/// Asks whether a node may be restarted now: whether each shard that it holds keeps its quorum without it.
///
/// Granted, it prints a token, alone on standard output, which hand-over and release must carry; the rest is told on standard
/// error. While a permit is open, no other one is granted and no voters change. It ends by itself when its time is over; from
/// then on the node counts as down until it says that it has caught up. Refused, it says which shards would suffer, and exits
/// with 7.
#[derive(Debug, Args)]
pub struct Permit {
    /// The node, by name or id; not needed with --release
    #[arg(required_unless_present = "release")]
    node: Option<String>,
    /// For how long: 1s to 1h
    #[arg(long = "for", default_value = "60s", value_parser = ttl, value_name = "TIME")]
    ttl: Duration,
    /// Only say what the answer would be
    #[arg(long)]
    dry_run: bool,
    /// Give this permit back: the node is up again
    #[arg(long, value_name = "TOKEN", conflicts_with_all = ["ttl", "dry_run", "reason"])]
    release: Option<String>,
    #[command(flatten)]
    because: Because,
}

/// No error: giving back may be tried again after an answer that was lost.
const NOT_OPEN: &str = "no permit with this token is open: it was given back before, its time is over, or the token is another one";

/// As long as the cluster grants one.
fn ttl(text: &str) -> Result<Duration, String> {
    time::parse_within(text, Duration::from_secs(1), Duration::from_secs(3600))
}

impl Permit {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        if let Some(token) = self.release {
            let request = ReleasePermitRequest { token, actor: actor::name() };
            let released = context.client.release_permit(request).await?.released;
            let text = if released { "the permit is given back" } else { NOT_OPEN };
            return done(context, text, &json!({ "released": released }));
        }
        let node = self.node.unwrap_or_default();
        let request = RequestPermitRequest {
            node: node.clone(),
            ttl_ms: time::ms(self.ttl),
            actor: actor::name(),
            reason: self.because.reason,
            dry_run: self.dry_run,
        };
        let answer = match context.client.request_permit(request).await {
            Ok(answer) => answer,
            Err(error) if error.reason().is_some_and(|reason| NOT_NOW.contains(&reason)) => {
                exit::report(&error.into());
                return Ok(Exit::NotPermitted);
            }
            Err(error) => return Err(in_doubt(error, self.ttl)),
        };
        if context.format == Format::Json {
            output::json(&document(&answer))?;
        }
        if !answer.granted {
            explain(&met(&node, answer.node_id), &answer.objections);
            return Ok(Exit::NotPermitted);
        }
        if context.format == Format::Table {
            granted(&node, &answer, self.dry_run)?;
        }
        Ok(Exit::Ok)
    }
}

/// Of an answer that was lost, the token is lost too.
fn in_doubt(error: Error, ttl: Duration) -> anyhow::Error {
    if !error.may_have_happened() {
        return error.into();
    }
    let advice = format!(
        "a permit may be open whose token nobody knows: `kvctl status` shows it, and it ends by itself {} after it was \
         granted. Until then no other one is granted",
        time::exact(time::ms(ttl))
    );
    Advised { error, advice }.into()
}

/// The token for scripts, the rest for people.
fn granted(node: &str, answer: &RequestPermitResponse, dry_run: bool) -> Result<()> {
    let (called, time) = (met(node, answer.node_id), time::exact(answer.ttl_ms));
    if dry_run {
        output::line(&format!("{called} may be restarted now"))?;
    } else {
        output::line(&answer.token)?;
        eprintln!(
            "{called} may be restarted within {time}. Give its leaderships away, restart it, give the permit back:\n  \
             kvctl node hand-over {node} --permit {token}\n  kvctl node permit {node} --release {token}",
            node = word(node),
            token = answer.token
        );
    }
    if !answer.outage_shard_ids.is_empty() {
        let shards: Vec<String> = answer.outage_shard_ids.iter().map(ToString::to_string).collect();
        eprintln!(
            "while it is away nobody can use the shards that have no other replica: {}",
            shards.join(", ")
        );
    }
    Ok(())
}

/// Each objection, and what to do about each kind.
fn explain(called: &str, objections: &[Objection]) {
    eprintln!("{called} is not to be restarted now:");
    for objection in objections {
        let subject = match objection.shard_id {
            Some(0) => "meta: ".to_owned(),
            Some(shard) => format!("shard {shard}: "),
            None => String::new(),
        };
        let message = text::show(objection.message.as_bytes());
        eprintln!("  {subject}{} {message}", objection.reason);
    }
    let reasons: BTreeSet<&str> = objections.iter().map(|objection| objection.reason.as_str()).collect();
    for advice in reasons.into_iter().filter_map(advice::of_reason) {
        eprintln!("hint: {advice}");
    }
}

fn document(answer: &RequestPermitResponse) -> serde_json::Value {
    let objections = answer.objections.iter().map(|objection| {
        json!({ "shard": objection.shard_id, "reason": objection.reason, "message": objection.message })
    });
    json!({
        "node": answer.node_id,
        "granted": answer.granted,
        "token": (!answer.token.is_empty()).then_some(&answer.token),
        "ttl_ms": answer.ttl_ms,
        "outage_shards": answer.outage_shard_ids,
        "objections": objections.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_is_for_a_second_to_an_hour() {
        assert_eq!(ttl("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(ttl("1h"), Ok(Duration::from_secs(3600)));
        assert!(ttl("999ms").is_err() && ttl("61m").is_err());
    }
}
