//! What is being worked on. A second call for the same thing is answered ABORTED instead of being kept waiting: its caller
//! asks again by itself, and nothing queues up.

use crate::Error;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The set of what is being worked on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Busy {
    keys: Arc<Mutex<BTreeSet<String>>>,
}

/// Something is being worked on for as long as this lives.
#[derive(Debug)]
pub(crate) struct Claim {
    busy: Busy,
    keys: Vec<String>,
}

impl Busy {
    /// Claims all of these, or none.
    pub(crate) fn claim<const N: usize>(&self, keys: [String; N]) -> Result<Claim, Error> {
        let mut taken = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = keys.iter().find(|key| taken.contains(*key)) {
            return Err(Error::Busy(format!("another call for {key} is under way")));
        }
        let keys: Vec<String> = keys.into_iter().collect();
        taken.extend(keys.iter().cloned());
        Ok(Claim { busy: self.clone(), keys })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut taken = self.busy.keys.lock().unwrap_or_else(PoisonError::into_inner);
        for key in &self.keys {
            taken.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_or_none_and_free_again() {
        let busy = Busy::default();
        let keys = |names: [&str; 2]| names.map(str::to_owned);
        let first = busy.claim(keys(["a", "b"])).unwrap();
        assert!(matches!(busy.claim(keys(["c", "b"])), Err(Error::Busy(text)) if text.contains("b")));
        let second = busy.claim(["c".to_owned()]).unwrap();
        drop(first);
        busy.claim(keys(["a", "b"])).unwrap();
        assert!(busy.claim(["c".to_owned()]).is_err());
        drop(second);
        busy.claim(["c".to_owned()]).unwrap();
    }
}
