//! Codec.
pub(crate) const MAX_FETCH_REPLY: usize = 32 << 10;
