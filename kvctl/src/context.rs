//! What every command needs: the client, and how to print.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use kv_client::{Client, ClientBuilder, Routing, admin::NodeState};

use crate::{cli::Global, exit::usage, named::is_called, output::Format, text::KeyFormat};

/// What every command needs.
#[derive(Clone)]
pub struct Context {
    /// The client.
    pub client: Client,
    /// How to print.
    pub format: Format,
    /// How keys are written.
    pub keys: KeyFormat,
    /// Whether leaders are asked directly.
    pub direct: bool,
    /// Whether this is one of several commands that print to the same place.
    pub is_shell: bool,
    timeout: Duration,
}

impl Context {
    /// From the flags that every command has. Connects to nobody yet.
    pub fn new(global: &Global) -> Result<Self> {
        let addresses = global.addresses()?;
        let routing = if global.direct { Routing::Direct } else { Routing::ThroughOneNode };
        // A command makes few calls, and a refused call tells more than an operation on a stream. That nobody is there is told
        // at once; a node that has answered and goes away is waited for.
        let client = Client::builder(addresses)
            .timeout(global.timeout)
            .routing(routing)
            .fail_fast(true)
            .streams(false)
            .build()?;
        let keys = match (global.hex, global.base64) {
            (true, _) => KeyFormat::Hex,
            (_, true) => KeyFormat::Base64,
            (false, false) => KeyFormat::Text,
        };
        let Global { output: format, direct, timeout, .. } = *global;
        Ok(Self { client, format, keys, direct, is_shell: false, timeout })
    }

    /// The same for one of the commands of a shell, perhaps with another way to print.
    pub fn in_shell(&self, format: Option<Format>) -> Self {
        Self { is_shell: true, format: format.unwrap_or(self.format), ..self.clone() }
    }

    /// Settings of a client with connections of its own, which tries until the deadline.
    pub fn another_client(&self, number: usize) -> ClientBuilder {
        let mut addresses = self.client.addresses().to_vec();
        let first = number % addresses.len().max(1);
        addresses.rotate_left(first);
        Client::builder(addresses).timeout(self.timeout)
    }

    /// A key from the command line.
    pub fn key(&self, text: &str) -> Result<Bytes> {
        self.keys.parse(text)
    }

    /// The client, asking only this node when one is named, by name or id.
    pub async fn client_at(&self, node: Option<&str>) -> Result<Client> {
        let Some(wanted) = node else { return Ok(self.client.clone()) };
        let mut nodes = self.client.nodes().await?;
        // Another node may have the name now.
        nodes.retain(|node| node.state() != NodeState::Removed);
        let found = nodes.iter().find(|node| is_called(wanted, &node.name, node.node_id));
        let Some(node) = found else {
            let known: Vec<String> =
                nodes.iter().map(|node| format!("{} (#{})", node.name, node.node_id)).collect();
            return Err(usage(format!("no node is called `{wanted}`; there are {}", known.join(", "))));
        };
        let address = node.client_address.parse().map_err(kv_client::Error::from)?;
        Ok(self.client.at(address))
    }
}
