//! Requests of a load through the client library: on streams, in sessions, sent again until their deadline.

use std::{net::SocketAddr, time::Duration};

use kv_client::{Address, Client, Error as ClientError, KeyValue, Precondition, Value};
use kv_history::{Call, Observed, Reply, Revision};

use crate::{
    api::Fate,
    load::{Error, Shared},
    value::decode,
};

/// Longer than any fault of the tests, so that outcomes are rarely unknown.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A client of its own for each client of a load.
pub(crate) struct Once(Client);

impl Once {
    /// Asks the nodes in turn, beginning with another one for each `number`. Every other one makes calls instead of using a
    /// stream.
    pub(crate) fn new(nodes: &[SocketAddr], number: usize) -> Self {
        let mut addresses: Vec<Address> =
            nodes.iter().map(|node| node.to_string().parse().expect("a socket address is one")).collect();
        let first = number % addresses.len();
        addresses.rotate_left(first);
        let builder = Client::builder(addresses).timeout(TIMEOUT).streams(number.is_multiple_of(2));
        Self(builder.build().expect("there are addresses"))
    }

    pub(crate) async fn perform(&self, shared: &Shared, key: &str, call: Call) -> Result<Reply, Error> {
        match call {
            Call::Get => {
                observed(shared, self.0.get(key).await.map_err(|error| ended(&error))?.kv).map(Reply::Got)
            }
            Call::Delete => {
                Ok(Reply::Deleted(self.0.delete(key).await.map_err(|error| ended(&error))?.applied))
            }
            Call::Put { value } => {
                let reply = self.0.put(key, shared.encode(value)).await.map_err(|error| ended(&error))?;
                if !reply.applied {
                    return Err(Error::Complaint("an unconditional put was not applied".to_owned()));
                }
                Ok(Reply::Put(Some(Revision(reply.mod_revision))))
            }
            Call::Cas { expected, value } => {
                let precondition = match expected {
                    Revision::ABSENT => Precondition::Absent,
                    Revision(revision) => Precondition::ModRevision(revision),
                };
                let put = self.0.put_with(key, shared.encode(value), precondition.into());
                let reply = put.await.map_err(|error| ended(&error))?;
                if reply.applied {
                    return Ok(Reply::Swapped(Some(Revision(reply.mod_revision))));
                }
                // An outcome that was kept does not tell what was there instead.
                Ok(Reply::NotSwapped(reply.previous.map(|kv| Revision(kv.mod_revision))))
            }
        }
    }
}

fn observed(shared: &Shared, kv: Option<KeyValue>) -> Result<Option<Observed>, Error> {
    let Some(KeyValue { mod_revision, value, .. }) = kv else { return Ok(None) };
    let value = match value {
        Value::Inline(bytes) => decode(&bytes).map_err(Error::Complaint)?,
        Value::Blob(blob) => {
            let known = shared.book().uploaded.get(&blob.sha256[..]).copied();
            known.ok_or_else(|| Error::Complaint(format!("nobody uploaded {blob:?}")))?
        }
        Value::Omitted => return Err(Error::Complaint("a key without a value".to_owned())),
    };
    Ok(Some(Observed { value, revision: Some(Revision(mod_revision)) }))
}

fn ended(error: &ClientError) -> Error {
    let name = error.reason().map_or_else(|| format!("client: {error}"), str::to_owned);
    // The texts name ports, of which there are many.
    let name = name.split(" at ").next().unwrap_or_default().to_owned();
    let fate = if error.may_have_happened() { Fate::Unknown } else { Fate::NotApplied };
    Error::Ended { name, fate }
}
