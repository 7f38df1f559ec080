//! Ctrl-C. Where work can be ended in good order, the first one only ends the running answer and is noted; everywhere
//! else, and from the second one on, it ends the program at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use ocelli_engine::Cancel;

use crate::exit::Exit;

static PRESSED: AtomicUsize = AtomicUsize::new(0);
/// How many parts of the program, one inside the other, can end in good order.
static GRACEFUL: AtomicUsize = AtomicUsize::new(0);
static RUNNING: Mutex<Option<Cancel>> = Mutex::new(None);

/// Takes over Ctrl-C. Where the system does not allow that, Ctrl-C simply ends the program.
pub(crate) fn install() {
    drop(ctrlc::set_handler(on_press));
}

/// Runs on a thread of its own, not inside the signal.
fn on_press() {
    let before = PRESSED.fetch_add(1, Ordering::SeqCst);
    if before > 0 || GRACEFUL.load(Ordering::SeqCst) == 0 {
        std::process::exit(Exit::Interrupted as i32);
    }
    if let Some(cancel) = RUNNING.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
        cancel.cancel();
    }
}

/// While this is alive, the first Ctrl-C is only noted.
pub(crate) struct Graceful(());

impl Graceful {
    pub(crate) fn begin() -> Self {
        PRESSED.store(0, Ordering::SeqCst);
        GRACEFUL.fetch_add(1, Ordering::SeqCst);
        Self(())
    }

    /// The request that Ctrl-C ends from now on; at once if it has been pressed already.
    pub(crate) fn watch(&self, cancel: Cancel) {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        if self.interrupted() {
            cancel.cancel();
        }
        *running = Some(cancel);
    }

    /// Whether Ctrl-C was pressed since the beginning.
    pub(crate) fn interrupted(&self) -> bool {
        PRESSED.load(Ordering::SeqCst) > 0
    }
}

impl Drop for Graceful {
    fn drop(&mut self) {
        GRACEFUL.fetch_sub(1, Ordering::SeqCst);
        PRESSED.store(0, Ordering::SeqCst);
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
