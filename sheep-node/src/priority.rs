//! Real-time priority for the thread that passes the token on: a busy machine must not look like a dead one.
#![allow(unsafe_code)]

use std::io;

/// Lowest real-time priority: before all normal threads, behind all others that somebody found more urgent.
const LOWEST: libc::c_int = 1;

/// Puts the calling thread, and no other, under SCHED_FIFO. Threads that it starts are normal ones.
///
/// # Errors
/// It is not allowed (CAP_SYS_NICE), or its control group has no real-time budget. Nothing is changed then.
pub(crate) fn before_normal_threads() -> io::Result<()> {
    // SAFETY: the structure is plain numbers, of which zero is a valid value, and outlives the call.
    let result = unsafe {
        let mut parameters: libc::sched_param = std::mem::zeroed();
        parameters.sched_priority = LOWEST;
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameters)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_had_or_refused_and_never_inherited() {
        let policy = |of: &str| {
            let stat = std::fs::read_to_string(of).unwrap();
            let fields = stat.rsplit_once(')').unwrap().1;
            // Field 41 of the whole line: the policy; the state is field 3.
            fields.split_whitespace().nth(38).unwrap().to_owned()
        };
        std::thread::spawn(move || {
            let expected = if before_normal_threads().is_ok() { "1" } else { "0" };
            assert_eq!(policy("/proc/thread-self/stat"), expected);
            std::thread::spawn(move || assert_eq!(policy("/proc/thread-self/stat"), "0")).join().unwrap();
        })
        .join()
        .unwrap();
    }
}
