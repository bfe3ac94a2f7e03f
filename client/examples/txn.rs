//! Moves an amount between two accounts, atomically. Needs a running cluster: `kvctl dev`.

use anyhow::{Context, bail};
use kv_client::{Client, Compare, Txn};

/// The shared tag puts both keys into one shard.
const FROM: &str = "{bank}/alice";
const TO: &str = "{bank}/bob";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let client = Client::connect("127.0.0.1:50051")?;
    client.txn(Txn::new().when(Compare::absent(FROM)).then_put(FROM, "100").then_put(TO, "0")).await?;

    for _ in 0..10 {
        let (from, from_revision) = balance(&client, FROM).await?;
        let (to, to_revision) = balance(&client, TO).await?;
        let transfer = Txn::new()
            .when(Compare::mod_revision(FROM, from_revision))
            .when(Compare::mod_revision(TO, to_revision))
            .then_put(FROM, (from - 10).to_string())
            .then_put(TO, (to + 10).to_string());
        if client.txn(transfer).await?.succeeded {
            println!("alice {}, bob {}", from - 10, to + 10);
            return Ok(());
        }
        // Somebody else was faster: read again.
    }
    bail!("too many others")
}

async fn balance(client: &Client, key: &str) -> anyhow::Result<(i64, u64)> {
    let kv = client.get(key).await?.kv.context("no such account")?;
    let text = std::str::from_utf8(kv.inline().context("not an amount")?)?;
    Ok((text.parse()?, kv.mod_revision))
}
