//! Automatic choice of voters.
