//! [`Cancel`]: how somebody who no longer wants a result tells the computation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Tells a running computation to end; clones belong together. Models look at it between layers and between the tiles
/// of a picture; what they return afterwards is worth nothing.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Nobody has cancelled yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for the end, from any thread.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
