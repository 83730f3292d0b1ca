//! Messages into a thread that sleeps in `poll(2)`.

use mio::Waker;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, TrySendError};

/// Most messages that wait; a sender that finds more is told so.
const LIMIT: usize = 1 << 16;

/// The receiving end, owned by the thread.
pub(crate) struct Inbox<T> {
    receiver: mpsc::Receiver<T>,
    woken: Arc<AtomicBool>,
}

/// A sending end. Cheap to clone.
pub(crate) struct Sender<T> {
    sender: mpsc::SyncSender<T>,
    woken: Arc<AtomicBool>,
    waker: Arc<Waker>,
}

/// The thread is gone, or too many messages wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SendError {
    /// The thread has ended.
    #[error("the node is stopping")]
    Stopping,
    /// It is overloaded.
    #[error("too many requests wait")]
    Full,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), woken: Arc::clone(&self.woken), waker: Arc::clone(&self.waker) }
    }
}

/// An inbox whose messages wake the poll that `waker` belongs to.
pub(crate) fn inbox<T>(waker: Arc<Waker>) -> (Sender<T>, Inbox<T>) {
    let (sender, receiver) = mpsc::sync_channel(LIMIT);
    let woken = Arc::new(AtomicBool::new(false));
    (Sender { sender, woken: Arc::clone(&woken), waker }, Inbox { receiver, woken })
}

impl<T> Sender<T> {
    /// Sends and wakes the thread, with one system call for many messages if it has not looked yet.
    ///
    /// # Errors
    /// See [`SendError`].
    pub(crate) fn send(&self, message: T) -> Result<(), SendError> {
        self.sender.try_send(message).map_err(|error| match error {
            TrySendError::Full(_) => SendError::Full,
            TrySendError::Disconnected(_) => SendError::Stopping,
        })?;
        if !self.woken.swap(true, Ordering::AcqRel) {
            // Fails only when the poll is gone, and then nobody listens.
            let _ = self.waker.wake();
        }
        Ok(())
    }
}

impl<T> Inbox<T> {
    /// To be called before draining, so that a message sent from now on wakes again.
    pub(crate) fn begin(&self) {
        self.woken.store(false, Ordering::Release);
    }

    /// Next message that has come.
    pub(crate) fn next(&self) -> Option<T> {
        self.receiver.try_recv().ok()
    }
}
