//! Comparison benchmarks.
