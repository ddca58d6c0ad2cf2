//! Progress: a bar on a terminal, plain lines elsewhere.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Stages that run at the same time have a line each.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Who waits longer wants to hear of a step.
const LONG: Duration = Duration::from_secs(10);

/// One stage of work that is being shown.
pub(crate) struct Stage {
    bar: ProgressBar,
    name: String,
    start: Instant,
    tty: bool,
}

impl Stage {
    /// Starts a stage; `len` is the number of steps if it is known.
    pub(crate) fn new(name: impl Into<String>, len: Option<u64>) -> Self {
        let name = name.into();
        let tty = std::io::stderr().is_terminal();
        let bar = match len {
            Some(len) => ProgressBar::new(len),
            None => ProgressBar::new_spinner(),
        };
        let bar = if tty { BARS.add(bar) } else { bar };
        if tty {
            let template = if len.is_some() {
                "{prefix} [{bar:30}] {percent:>3}% {elapsed} {wide_msg}"
            } else {
                "{spinner} {prefix} {elapsed} {wide_msg}"
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(name.clone());
            bar.enable_steady_tick(Duration::from_millis(200));
        } else {
            bar.set_draw_target(ProgressDrawTarget::hidden());
            eprintln!("{name} ...");
        }
        Self { bar, name, start: Instant::now(), tty }
    }

    /// One step done.
    pub(crate) fn inc(&self) {
        // An estimate that was too low stays just below full.
        if self.bar.length().is_none_or(|len| self.bar.position() + 1 < len) {
            self.bar.inc(1);
        }
    }

    /// Shows what is going on.
    pub(crate) fn message(&self, text: impl Into<String>) {
        self.bar.set_message(text.into());
    }

    /// A step that took long is over. A bar shows that by itself.
    pub(crate) fn step(&self, name: &str, took: Duration) {
        if !self.tty && took >= LONG {
            eprintln!("  {name} ({:.1} s)", took.as_secs_f64());
        }
    }

    /// A line that stays, above the bar.
    pub(crate) fn line(&self, text: &str) {
        if self.tty {
            self.bar.println(text);
        } else {
            eprintln!("{text}");
        }
    }

    /// The stage is over; says how long it took.
    pub(crate) fn done(self, text: &str) {
        self.bar.finish_and_clear();
        let seconds = self.start.elapsed().as_secs_f64();
        let sep = if text.is_empty() { "" } else { ": " };
        eprintln!("{}{sep}{text} ({seconds:.1} s)", self.name);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
