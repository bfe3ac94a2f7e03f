//! The codec of all services: protobuf, with a bound on what a message becomes.
//!
//! A message inside another one takes two bytes on the wire and hundreds in memory: 4 MiB of empty operations would take half a
//! gigabyte before anybody could refuse them. So the messages inside are counted first, by walking over the bytes; what
//! each field holds is known from the descriptors (`build.rs` writes them down as [`SHAPES`]).

use std::{cmp::Ordering, fmt, marker::PhantomData};

use bytes::Buf;
use prost::{
    DecodeError, Message, Name,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstDecoder, ProstEncoder};

include!(concat!(env!("OUT_DIR"), "/shapes.rs"));

/// Messages inside of one, at all depths: what 1 MiB of the smallest transactions that do something has.
pub const INNER_MESSAGES_MAX: usize = 1 << 18;

/// Shorter ones are not looked at: they cannot become much.
const SMALL_BYTES: usize = 4 * 1024;

/// As deep as prost goes.
const DEPTH_MAX: usize = 100;

/// Which fields of a message are messages.
struct Shape {
    package: &'static str,
    name: &'static str,
    /// Number of the field and index of its message in [`SHAPES`].
    inner: &'static [(u32, usize)],
}

/// Protobuf whose messages are bounded when they are decoded.
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> fmt::Debug for BoundedCodec<T, U> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("BoundedCodec")
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Name + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(ProstDecoder::default())
    }
}

/// Refuses what would become too much, and decodes the rest.
#[derive(Debug)]
pub struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Name + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // A message lies in one piece, since tonic collects it before it is decoded.
        let bytes = buffer.chunk();
        if bytes.len() > SMALL_BYTES && !is_bounded::<U>(bytes) {
            let name = U::NAME;
            return Err(Status::invalid_argument(format!(
                "{name}: more than {INNER_MESSAGES_MAX} messages in one message"
            )));
        }
        self.0.decode(buffer)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Whether a message of this type has no more inside than it may. What is not well-formed is left to the decoder.
fn is_bounded<U: Name>(bytes: &[u8]) -> bool {
    let of = |shape: &Shape| -> Ordering { (shape.package, shape.name).cmp(&(U::PACKAGE, U::NAME)) };
    let Ok(index) = SHAPES.binary_search_by(of) else { return true };
    let mut walk = Walk { left: INNER_MESSAGES_MAX, is_over: false };
    let _malformed = walk.through(bytes, &SHAPES[index], DEPTH_MAX);
    !walk.is_over
}

struct Walk {
    left: usize,
    is_over: bool,
}

impl Walk {
    fn through(&mut self, mut bytes: &[u8], shape: &Shape, depth: usize) -> Result<(), DecodeError> {
        while !bytes.is_empty() && !self.is_over {
            let (number, wire_type) = decode_key(&mut bytes)?;
            let inner = shape.inner.iter().find(|(field, _)| *field == number);
            let (Some((_, inner)), WireType::LengthDelimited, Some(depth)) =
                (inner, wire_type, depth.checked_sub(1))
            else {
                skip_field(wire_type, number, &mut bytes, DecodeContext::default())?;
                continue;
            };
            let length = usize::try_from(decode_varint(&mut bytes)?).unwrap_or(usize::MAX);
            let Some((message, rest)) = bytes.split_at_checked(length) else { return Ok(()) };
            match self.left.checked_sub(1) {
                Some(left) => self.left = left,
                None => self.is_over = true,
            }
            self.through(message, &SHAPES[*inner], depth)?;
            bytes = rest;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::v1::{
        BatchOperation, BatchRequest, GetRequest, PutRequest, TxnOperation, TxnRequest, batch_operation,
        txn_operation,
    };

    fn batch(operations: Vec<BatchOperation>) -> Vec<u8> {
        BatchRequest { operations }.encode_to_vec()
    }

    fn operation(operation: batch_operation::Operation) -> BatchOperation {
        BatchOperation { operation: Some(operation), ..BatchOperation::default() }
    }

    #[test]
    fn empty_operations_are_counted_up_to_the_bound() {
        let full = batch(vec![BatchOperation::default(); INNER_MESSAGES_MAX]);
        assert!(is_bounded::<BatchRequest>(&full));
        let more = batch(vec![BatchOperation::default(); INNER_MESSAGES_MAX + 1]);
        assert!(!is_bounded::<BatchRequest>(&more));
    }

    #[test]
    fn messages_deep_inside_are_counted() {
        let get = txn_operation::Operation::Get(GetRequest::default());
        let get = TxnOperation { operation: Some(get) };
        // The operation, the transaction, and two messages for each of its own operations.
        let transaction = |operations| {
            let txn = TxnRequest { then: vec![get.clone(); operations], ..TxnRequest::default() };
            batch(vec![operation(batch_operation::Operation::Txn(txn))])
        };
        assert!(is_bounded::<BatchRequest>(&transaction((INNER_MESSAGES_MAX - 2) / 2)));
        assert!(!is_bounded::<BatchRequest>(&transaction(INNER_MESSAGES_MAX / 2)));
    }

    #[test]
    fn values_that_look_like_messages_are_not_counted() {
        let value = [0x0a, 0x00].repeat(INNER_MESSAGES_MAX * 4);
        let put = PutRequest { value: value.into(), ..PutRequest::default() };
        assert!(is_bounded::<PutRequest>(&put.encode_to_vec()));
        let put = operation(batch_operation::Operation::Put(put));
        assert!(is_bounded::<BatchRequest>(&batch(vec![put])));
    }

    #[test]
    fn what_is_not_well_formed_is_left_to_the_decoder() {
        let cut = batch(vec![BatchOperation { id: 7, ..BatchOperation::default() }; 10]);
        for length in 0..cut.len() {
            assert!(is_bounded::<BatchRequest>(&cut[..length]));
        }
        assert!(is_bounded::<BatchRequest>(&[0xff; 64]));
    }
}
