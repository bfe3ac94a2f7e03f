//! Re-cuts a stream of bytes into chunks, and hashes it on the way. Pure.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};

use super::limits::CHUNK_BYTES;

/// A piece of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// From 0 on, without gaps.
    pub number: u32,
    /// [`CHUNK_BYTES`] of them, except in the last chunk.
    pub data: Bytes,
    /// Of `data`.
    pub crc32c: u32,
}

/// What is known of a whole value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    /// All bytes.
    pub size_bytes: u64,
    /// All chunks.
    pub chunks: u32,
    /// Of all bytes.
    pub sha256: Bytes,
}

/// No chunk can follow.
#[derive(Debug, thiserror::Error)]
pub enum TooLong {
    /// More chunks than there are numbers for.
    #[error("the value has too many chunks")]
    Numbers,
    /// An upload that was resumed behind its last, short chunk.
    #[error("the upload that is resumed ended with a short chunk: it takes no more")]
    Closed,
}

/// Takes bytes of any cut, gives chunks.
#[derive(Default)]
pub struct Chunker {
    sha256: Sha256,
    size_bytes: u64,
    next_number: u32,
    /// Less than a chunk.
    rest: BytesMut,
    /// The last stored chunk was a short one: nothing can follow it.
    is_closed: bool,
}

impl Chunker {
    /// Takes the next bytes of the value; the chunks that they complete go to `ready`.
    ///
    /// # Errors
    /// When no chunk can follow.
    pub fn push(&mut self, mut data: Bytes, ready: &mut VecDeque<Chunk>) -> Result<(), TooLong> {
        if self.is_closed && !data.is_empty() {
            return Err(TooLong::Closed);
        }
        self.sha256.update(&data);
        self.size_bytes += data.len() as u64;
        if !self.rest.is_empty() {
            let missing = (CHUNK_BYTES - self.rest.len()).min(data.len());
            self.rest.extend_from_slice(&data.split_to(missing));
            if self.rest.len() < CHUNK_BYTES {
                return Ok(());
            }
            let whole = std::mem::take(&mut self.rest).freeze();
            ready.push_back(self.chunk(whole)?);
        }
        while data.len() >= CHUNK_BYTES {
            let whole = data.split_to(CHUNK_BYTES);
            ready.push_back(self.chunk(whole)?);
        }
        // A copy, so that a small rest does not keep a large message in memory.
        self.rest.extend_from_slice(&data);
        Ok(())
    }

    /// Counts a chunk that is stored already.
    ///
    /// # Errors
    /// When no chunk can follow.
    pub fn skip(&mut self, stored: &[u8]) -> Result<(), TooLong> {
        self.is_closed = stored.len() < CHUNK_BYTES;
        self.sha256.update(stored);
        self.size_bytes += stored.len() as u64;
        self.next_number = self.next_number.checked_add(1).ok_or(TooLong::Numbers)?;
        Ok(())
    }

    /// Bytes so far.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The last, short chunk, unless the value ended with a whole one, and the sum of all.
    ///
    /// # Errors
    /// When no chunk can follow.
    pub fn finish(mut self) -> Result<(Option<Chunk>, Sum), TooLong> {
        let rest = std::mem::take(&mut self.rest).freeze();
        let last = if rest.is_empty() { None } else { Some(self.chunk(rest)?) };
        let sha256 = Bytes::copy_from_slice(&self.sha256.finalize());
        Ok((last, Sum { size_bytes: self.size_bytes, chunks: self.next_number, sha256 }))
    }

    fn chunk(&mut self, data: Bytes) -> Result<Chunk, TooLong> {
        let number = self.next_number;
        self.next_number = number.checked_add(1).ok_or(TooLong::Numbers)?;
        let crc32c = crc32c::crc32c(&data);
        Ok(Chunk { number, data, crc32c })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_cut_of_messages_leaves_no_trace(
            size in prop_oneof![0usize..4, CHUNK_BYTES - 2..CHUNK_BYTES + 3, 0..4 * CHUNK_BYTES],
            cuts in prop::collection::vec(0..5 * CHUNK_BYTES / 2, 0..8),
        ) {
            let value: Bytes = (0..size).map(|at| u8::try_from(at % 251).expect("below 251")).collect::<Vec<_>>().into();
            let (mut chunker, mut ready, mut rest) = (Chunker::default(), VecDeque::new(), value.clone());
            for cut in cuts {
                let message = rest.split_to(cut.min(rest.len()));
                chunker.push(message, &mut ready)?;
            }
            chunker.push(rest, &mut ready)?;
            prop_assert_eq!(chunker.size_bytes(), size as u64);
            let (last, sum) = chunker.finish()?;
            ready.extend(last);
            for (number, chunk) in ready.iter().enumerate() {
                prop_assert_eq!(chunk.number as usize, number);
                prop_assert_eq!(chunk.crc32c, crc32c::crc32c(&chunk.data));
                prop_assert!(chunk.data.len() == CHUNK_BYTES || number + 1 == ready.len());
                prop_assert!(!chunk.data.is_empty());
            }
            let joined: Vec<u8> = ready.iter().flat_map(|chunk| chunk.data.to_vec()).collect();
            prop_assert_eq!(&joined[..], &value[..]);
            prop_assert_eq!(sum.size_bytes, size as u64);
            prop_assert_eq!(sum.chunks as usize, ready.len());
            prop_assert_eq!(&sum.sha256[..], &Sha256::digest(&value)[..]);
        }
    }
}
