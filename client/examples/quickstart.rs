//! Puts, gets, scans and deletes. Needs a running cluster: `kvctl dev`.

use futures::TryStreamExt;
use kv_client::{Client, KeyRange, Precondition};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let client =
        Client::connect(&std::env::var("KVCTL_ADDR").unwrap_or_else(|_| "127.0.0.1:50051".to_owned()))?;

    let put = client.put("greeting", "hello").await?;
    println!("written at revision {} of shard {}", put.mod_revision, put.header.shard);

    // Only if nobody else wrote meanwhile.
    let swap = client.put_with("greeting", "hi", Precondition::ModRevision(put.mod_revision).into()).await?;
    println!("swapped: {}", swap.applied);

    let mut keys = std::pin::pin!(client.scan(KeyRange::prefix("gre")).into_stream());
    while let Some(kv) = keys.try_next().await? {
        println!("{:?} = {:?}", kv.key, kv.value);
    }

    match client.delete("greeting").await {
        Ok(reply) => println!("deleted: {}", reply.applied),
        Err(error) if error.may_have_happened() => println!("perhaps deleted: {error}"),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
