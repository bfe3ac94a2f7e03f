//! Entries on their way to the device: encoded once, and split so that bulk can share batches with others.

use bytes::Bytes;

use crate::log::{
    codec::{self, Entry, Payload},
    queue::PIECE_BYTES,
};

/// An entry on its way: its message, encoded, and itself with a payload that is part of the same bytes.
pub struct Encoded {
    /// The entry.
    pub entry: Entry,
    /// Its message.
    pub bytes: Bytes,
}

impl Encoded {
    /// The proposal is the message's last field, so that the payload can be a slice of the encoded bytes: the tail
    /// then keeps neither a second copy nor the network buffer in which the proposal came.
    pub fn new(mut entry: Entry) -> Self {
        let bytes = codec::to_bytes(&codec::encode_entry(&entry));
        if let Payload::Normal(proposal) = &mut entry.payload {
            let own = bytes.slice(bytes.len() - proposal.0.len()..);
            debug_assert_eq!(own, proposal.0, "the proposal is the last field");
            proposal.0 = own;
        }
        Self { entry, bytes }
    }
}

/// Splits an append into pieces of at most [`PIECE_BYTES`], or one entry. An empty append is one empty piece.
pub fn split(entries: impl IntoIterator<Item = Entry>) -> Vec<Vec<Encoded>> {
    let (mut pieces, mut piece, mut bytes) = (Vec::new(), Vec::new(), 0);
    for encoded in entries.into_iter().map(Encoded::new) {
        if bytes > 0 && bytes + encoded.bytes.len() > PIECE_BYTES {
            pieces.push(std::mem::take(&mut piece));
            bytes = 0;
        }
        bytes += encoded.bytes.len();
        piece.push(encoded);
    }
    if pieces.is_empty() || !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}
