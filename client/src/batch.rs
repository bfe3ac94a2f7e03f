//! Many keys in few messages: BatchGet, and how much fits into a message.

use bytes::Bytes;
use kv_proto::kv::v1 as proto;

use crate::{
    client::Client,
    error::{Error, Result},
    options::GetOptions,
    retry::Kind,
    routing::Route,
    value::GetReply,
};

/// Keys or operations in one message.
const MAX_ITEMS: usize = 1000;
/// Bytes of operations in one message; below 4 MiB, with room for the framing.
const MAX_MESSAGE_BYTES: usize = 3 * 1024 * 1024;

impl Client {
    /// Reads many keys, linearizably. One reply for each, in order.
    ///
    /// # Errors
    /// See [`Error`]; absent keys are none.
    pub async fn batch_get<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
        options: GetOptions,
    ) -> Result<Vec<GetReply>> {
        let mut keys: Vec<Bytes> = keys.into_iter().map(|key| Bytes::copy_from_slice(key.as_ref())).collect();
        let mut replies = Vec::with_capacity(keys.len());
        while !keys.is_empty() {
            let request = proto::BatchGetRequest {
                keys: keys.iter().take(fitting(keys.iter().map(Bytes::len))).cloned().collect(),
                options: Some(options.read.into()),
                metadata_only: options.metadata_only,
            };
            let asked = request.keys.len();
            let call = self.call("BatchGet", Kind::Read, Route::Any);
            let send = |node: crate::pool::Node, request| async move { node.kv().batch_get(request).await };
            let (reply, _) = call.unary(request, send).await?;
            let got = reply.results.len();
            if got == 0 || got > asked {
                return Err(Error::protocol("BatchGet", format!("{got} results for {asked} keys")));
            }
            keys.drain(..got);
            replies.extend(reply.results.into_iter().map(GetReply::from));
        }
        Ok(replies)
    }
}

/// How many items from the front fit into a message; at least one.
pub(crate) fn fitting(sizes: impl Iterator<Item = usize>) -> usize {
    let mut bytes = 0;
    let mut items = 0;
    for size in sizes.take(MAX_ITEMS) {
        bytes += size + 8;
        if items > 0 && bytes > MAX_MESSAGE_BYTES {
            break;
        }
        items += 1;
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_hold_at_most_a_thousand_items_and_the_byte_limit() {
        assert_eq!(fitting([1; 1500].into_iter()), MAX_ITEMS);
        assert_eq!(fitting([1024 * 1024; 10].into_iter()), 2);
        assert_eq!(fitting([MAX_MESSAGE_BYTES * 2].into_iter()), 1, "at least one, to be refused by name");
        assert_eq!(fitting([].into_iter()), 0);
    }
}
