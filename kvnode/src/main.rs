//! The kvnode process.

fn main() {}
