//! The bytes of a value: its id and a filler made from it, so that a reply that differs anywhere is noticed.

use bytes::Bytes;
use kv_history::ValueId;

/// The bytes of a value: its id in hexadecimal, then a filler that differs from value to value.
pub(crate) fn encode(value: ValueId, length: usize) -> Bytes {
    let mut bytes = format!("{:016x}", value.0).into_bytes();
    bytes.extend((bytes.len()..length).map(|position| filler(value, position)));
    bytes.into()
}

fn filler(value: ValueId, position: usize) -> u8 {
    let mixed = (value.0 ^ position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_be_bytes()[0]
}

pub(crate) fn decode(bytes: &[u8]) -> Result<ValueId, String> {
    let value = bytes
        .get(..16)
        .and_then(|head| std::str::from_utf8(head).ok())
        .and_then(|head| u64::from_str_radix(head, 16).ok())
        .map(ValueId)
        .ok_or_else(|| format!("read {} bytes that no client wrote", bytes.len()))?;
    match (16..bytes.len()).find(|position| bytes[*position] != filler(value, *position)) {
        None => Ok(value),
        Some(position) => Err(format!("byte {position} of v{} differs from what was written", value.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_survives_its_encoding_and_a_flipped_byte_is_noticed() {
        for length in [0, 16, 17, 1_000] {
            let bytes = encode(ValueId(77), length);
            assert_eq!(bytes.len(), length.max(16));
            assert_eq!(decode(&bytes), Ok(ValueId(77)));
        }
        let mut bytes = encode(ValueId(77), 100).to_vec();
        bytes[60] ^= 1;
        assert!(decode(&bytes).is_err());
        assert!(decode(b"short").is_err());
    }
}
