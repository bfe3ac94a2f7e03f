//! `kvctl node label`.

use anyhow::Result;
use clap::Args;
use kv_client::admin::SetNodeLabelsRequest;
use serde_json::json;

use super::done;
use crate::{
    actor,
    context::Context,
    exit::{Exit, usage},
    named::met,
};

/// The one label that there is.
const ZONE: &str = "zone";

/// Says what a person knows of a node: its zone. Replicas of a shard spread over zones, and move for it.
#[derive(Debug, Args)]
pub struct Label {
    /// The node, by name or id
    node: String,
    /// zone=ZONE sets it, zone= says that it has none, zone- takes the label away: what the node was started with counts again
    #[arg(value_name = "LABEL")]
    label: String,
}

impl Label {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        let zone = parse(&self.label)?;
        let request =
            SetNodeLabelsRequest { node: self.node.clone(), zone: zone.clone(), actor: actor::name() };
        let reply = context.client.set_node_labels(request).await?;
        let node = met(&self.node, reply.node_id);
        let text = match &zone {
            Some(zone) if zone.is_empty() => format!("{node} has no zone"),
            Some(zone) => format!("{node} is in zone {zone}"),
            None => format!("{node} has no label any more: the zone that it was started with counts"),
        };
        done(context, &text, &json!({ "node": reply.node_id, "zone_label": zone }))
    }
}

/// The zone that is set; `None`: the label is taken away.
fn parse(label: &str) -> Result<Option<String>> {
    let (name, zone) = match (label.split_once('='), label.strip_suffix('-')) {
        (Some((name, zone)), _) => (name, Some(zone.to_owned())),
        (None, Some(name)) => (name, None),
        (None, None) => return Err(usage(format!("`{label}` is neither NAME=VALUE nor NAME-"))),
    };
    if name != ZONE {
        return Err(usage(format!("there is no label `{name}`, only `{ZONE}`")));
    }
    Ok(zone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_written_as_for_kubectl() {
        assert_eq!(parse("zone=b").unwrap(), Some("b".to_owned()));
        assert_eq!(parse("zone=eu-west-1-").unwrap(), Some("eu-west-1-".to_owned()));
        assert_eq!(parse("zone=").unwrap(), Some(String::new()));
        assert_eq!(parse("zone-").unwrap(), None);
        for label in ["zone", "", "rack=7", "rack-", "=b", "-"] {
            assert!(parse(label).is_err(), "{label}");
        }
    }
}
