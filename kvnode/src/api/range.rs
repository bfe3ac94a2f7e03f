//! A range of keys as the store wants it: start inclusive, end exclusive, an empty end unbounded.

use bytes::Bytes;
use kv_proto::kv::v1::KeyRange;

/// Keys from `start` up to but not including `end`; an empty `end` is unbounded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Included.
    pub start: Bytes,
    /// Excluded; empty: unbounded.
    pub end: Bytes,
}

impl Range {
    /// The range of a request that passed the checks; none means all keys.
    pub fn of(range: Option<KeyRange>) -> Self {
        let KeyRange { start, end, prefix } = range.unwrap_or_default();
        if prefix.is_empty() {
            Self { start, end }
        } else {
            Self { end: after_prefix(&prefix), start: prefix }
        }
    }

    /// Whether no key can be inside.
    pub fn is_empty(&self) -> bool {
        !self.end.is_empty() && self.start >= self.end
    }

    /// Whether `key` is inside.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && (self.end.is_empty() || key < &self.end[..])
    }
}

/// The least key behind all keys that begin with `prefix`; empty when there is none.
fn after_prefix(prefix: &[u8]) -> Bytes {
    let kept = prefix.iter().rposition(|byte| *byte != u8::MAX).map_or(0, |position| position + 1);
    let mut end = prefix[..kept].to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

/// The least key behind `key`.
pub fn successor(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(254), Just(255)], 0..4)
    }

    proptest! {
        #[test]
        fn a_prefix_range_holds_exactly_the_keys_with_that_prefix(prefix in keys(), key in keys()) {
            let range = KeyRange { prefix: prefix.clone().into(), ..KeyRange::default() };
            prop_assert_eq!(Range::of(Some(range)).contains(&key), key.starts_with(&prefix));
        }

        #[test]
        fn nothing_lies_between_a_key_and_its_successor(key in keys(), other in keys()) {
            prop_assert_eq!(other > key, other[..] >= successor(&key)[..]);
        }
    }
}
