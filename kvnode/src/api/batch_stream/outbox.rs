//! Answers that wait to be sent, and how they are packed into messages. Pure.
//!
//! A message holds all that waits, up to a bound; an answer that is larger goes alone.

use kv_proto::kv::v1::BatchResult;

use super::answer::Answer;

/// Answers that wait, oldest first.
#[derive(Debug, Default)]
pub struct Outbox {
    results: Vec<BatchResult>,
    /// What each weighs.
    weights: Vec<usize>,
    bytes: usize,
}

impl Outbox {
    /// Adds an answer.
    pub fn push(&mut self, answer: Answer) {
        self.bytes += answer.weight;
        self.weights.push(answer.weight);
        self.results.push(answer.result);
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.results.is_empty()
    }

    /// What waits.
    pub fn len(&self) -> usize {
        self.results.len()
    }

    /// What waits, bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The answers of the next message: of so many bytes, or a single one that is larger.
    pub fn message(&mut self, bytes_max: usize) -> Vec<BatchResult> {
        if self.bytes <= bytes_max {
            self.bytes = 0;
            let room = self.weights.len();
            self.weights.clear();
            return std::mem::replace(&mut self.results, Vec::with_capacity(room));
        }
        let (mut count, mut bytes) = (0, 0);
        for weight in &self.weights {
            if count > 0 && bytes + weight > bytes_max {
                break;
            }
            (count, bytes) = (count + 1, bytes + weight);
        }
        self.bytes -= bytes;
        self.weights.drain(..count);
        self.results.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tonic::Code;

    use super::*;

    fn answer(id: u64, weight: usize) -> Answer {
        Answer { result: BatchResult { id, result: None }, code: Code::Ok, weight }
    }

    proptest! {
        #[test]
        fn all_answers_go_out_once_in_order_and_in_messages_of_bounded_size(
            weights in prop::collection::vec(prop_oneof![1usize..500, 100_000usize..3_000_000], 0..60),
            bytes_max in prop_oneof![Just(16 * 1024), Just(1024 * 1024)],
        ) {
            let mut outbox = Outbox::default();
            weights.iter().zip(0..).for_each(|(weight, id)| outbox.push(answer(id, *weight)));
            let mut sent = Vec::new();
            while !outbox.is_empty() {
                let ids: Vec<_> = outbox.message(bytes_max).iter().map(|result| result.id).collect();
                let bytes: usize = ids.iter().filter_map(|id| weights.get(usize::try_from(*id).ok()?)).sum();
                prop_assert!(!ids.is_empty() && (ids.len() == 1 || bytes <= bytes_max));
                sent.extend(ids);
            }
            prop_assert_eq!(sent, (0..).take(weights.len()).collect::<Vec<u64>>());
            prop_assert_eq!(outbox.bytes(), 0);
        }
    }
}
