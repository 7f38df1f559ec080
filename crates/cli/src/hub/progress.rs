//! The progress bar of a pull: bytes, speed and time left over all files. Draws on a terminal only.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::layout::Layout;
use super::select::RemoteFile;

/// Progress over all files of a model.
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar that already counts what earlier pulls left.
    pub(super) fn start(layout: &Layout, files: &[RemoteFile], commit: &str, show: bool) -> Self {
        let total = files.iter().map(|file| file.size).sum();
        // indicatif hides the bar by itself when the standard error is not a terminal.
        let target = if show { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let template =
            "{msg:32!} {bar:24} {decimal_bytes:>10} of {decimal_total_bytes} {decimal_bytes_per_sec:>12} {eta:>4}";
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_position(files.iter().map(|file| layout.bytes_present(file, commit)).sum());
        // Speed and time left are those of this run.
        bar.reset_eta();
        bar.enable_steady_tick(Duration::from_millis(250));
        Self { bar }
    }

    /// Says which file is next.
    pub(super) fn file(&self, name: &str) {
        self.bar.set_message(name.to_string());
    }

    /// Says that a file's checksum is being computed.
    pub(super) fn verifying(&self, name: &str) {
        self.bar.set_message(format!("verifying {name}"));
    }

    /// Counts new bytes.
    pub(super) fn add(&self, n_bytes: u64) {
        self.bar.inc(n_bytes);
    }

    /// Takes back bytes that have to be fetched again.
    pub(super) fn take_back(&self, n_bytes: u64) {
        self.bar.set_position(self.bar.position().saturating_sub(n_bytes));
    }

    /// Removes the bar.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
