//! A frame that cannot be what a replica of ours sent.

use crate::log::codec;

/// What is wrong with the frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// A field that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field contradicts another, or itself.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A part that is encoded as on disk.
    #[error(transparent)]
    Part(#[from] codec::CodecError),
}

impl CodecError {
    pub(super) fn invalid(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Invalid { field, problem: problem.into() }
    }
}
