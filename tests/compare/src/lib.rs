//! What all measurements of whole clusters share: of what and where they were made, and what processes take.

pub mod machine;
pub mod usage;
