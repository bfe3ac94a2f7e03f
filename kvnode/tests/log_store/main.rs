//! The log store from outside: openraft's own suite, its contracts under slow devices, crashes, and damaged files.

#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod contracts;
mod crash;
mod history;
mod recovery;
mod suite;
mod support;
