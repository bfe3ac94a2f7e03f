//! Where a scan or a deletion goes on: opaque to clients, versioned, checksummed, bound to its request.
//!
//! ```text
//! version 1 B · kind 1 B · fingerprint of the request 4 B · shard 4 B · position · CRC32C of all that 4 B
//! ```
//! A token that was garbled, or belongs to another request, is refused: going on at a wrong place would lose keys
//! silently. Numbers are big endian. The token protects against accidents, not against forgers: a forged one reads
//! what its owner may read anyway.

use bytes::{BufMut, Bytes, BytesMut};

use super::{range::Range, validate::Violation};

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 10;
const CRC_BYTES: usize = 4;

/// What goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// A scan upwards: the position is the first key to come.
    Forward,
    /// A scan downwards: all keys to come lie before the position.
    Reverse,
    /// A deletion: the position is the first key to delete in the shard; all shards before are done.
    Delete,
}

impl Walk {
    const fn code(self) -> u8 {
        match self {
            Self::Forward => 1,
            Self::Reverse => 2,
            Self::Delete => 3,
        }
    }
}

/// A place to go on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageToken {
    /// The shard of a deletion; 0 for scans.
    pub shard: u32,
    /// See [`Walk`].
    pub position: Bytes,
}

impl PageToken {
    /// The token for a client.
    pub fn encode(&self, walk: Walk, range: &Range) -> Bytes {
        let mut token = BytesMut::with_capacity(HEAD_BYTES + self.position.len() + CRC_BYTES);
        token.put_u8(VERSION);
        token.put_u8(walk.code());
        token.put_u32(fingerprint(range));
        token.put_u32(self.shard);
        token.put_slice(&self.position);
        token.put_u32(crc32c::crc32c(&token));
        token.freeze()
    }

    /// Reads the token of a request for `range`.
    ///
    /// # Errors
    /// When it is not one of ours for this request.
    pub fn decode(token: &Bytes, walk: Walk, range: &Range) -> Result<Self, Violation> {
        let wrong = |description| Err(Violation::new("page_token", description));
        let Some(body_bytes) = token.len().checked_sub(CRC_BYTES).filter(|length| *length >= HEAD_BYTES)
        else {
            return wrong("not one of ours");
        };
        let (body, crc) = token.split_at(body_bytes);
        if crc32c::crc32c(body).to_be_bytes() != crc {
            return wrong("not one of ours, or garbled");
        }
        if body[0] != VERSION {
            return wrong("made by another version");
        }
        if body[1] != walk.code() {
            return wrong("belongs to another kind of request");
        }
        if body[2..6] != fingerprint(range).to_be_bytes() {
            return wrong("belongs to another range");
        }
        let shard = u32::from_be_bytes([body[6], body[7], body[8], body[9]]);
        Ok(Self { shard, position: token.slice(HEAD_BYTES..body_bytes) })
    }
}

fn fingerprint(range: &Range) -> u32 {
    let length = u64::try_from(range.start.len()).unwrap_or(u64::MAX);
    let crc = crc32c::crc32c(&length.to_be_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &range.start), &range.end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(position: &[u8]) -> PageToken {
        PageToken { shard: 3, position: Bytes::copy_from_slice(position) }
    }

    fn range(start: &'static str, end: &'static str) -> Range {
        Range { start: start.into(), end: end.into() }
    }

    proptest! {
        #[test]
        fn a_token_comes_back_as_it_was(position: Vec<u8>, shard: u32) {
            let token = PageToken { shard, position: position.into() };
            for walk in [Walk::Forward, Walk::Reverse, Walk::Delete] {
                let encoded = token.encode(walk, &range("a", "b"));
                prop_assert_eq!(PageToken::decode(&encoded, walk, &range("a", "b")), Ok(token.clone()));
            }
        }

        #[test]
        fn a_garbled_token_is_refused(position: Vec<u8>, at: prop::sample::Index, flip in 1u8.., cut in 1usize..20) {
            let whole = token(&position).encode(Walk::Forward, &range("a", "b"));
            let mut garbled = whole.to_vec();
            let at = at.index(garbled.len());
            garbled[at] ^= flip;
            prop_assert!(PageToken::decode(&garbled.into(), Walk::Forward, &range("a", "b")).is_err());
            let short = whole.slice(..whole.len().saturating_sub(cut));
            prop_assert!(PageToken::decode(&short, Walk::Forward, &range("a", "b")).is_err());
        }

        #[test]
        fn random_bytes_are_no_token(bytes: Vec<u8>) {
            prop_assert!(PageToken::decode(&bytes.into(), Walk::Forward, &range("", "")).is_err());
        }
    }

    #[test]
    fn a_token_of_another_request_is_refused() {
        let encoded = token(b"m").encode(Walk::Forward, &range("a", "z"));
        for (walk, range) in [
            (Walk::Reverse, range("a", "z")),
            (Walk::Delete, range("a", "z")),
            (Walk::Forward, range("a", "")),
            (Walk::Forward, range("az", "")),
            (Walk::Forward, range("", "az")),
        ] {
            let refused = PageToken::decode(&encoded, walk, &range).expect_err("another request");
            assert_eq!(refused.field, "page_token");
        }
    }
}
