//! What the lab tells its user while something takes long. It goes to standard
//! error directly: libtest keeps what `eprintln!` writes, and a user who waits
//! six minutes wants to know for what.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// What takes less is not worth a line, when it's done often.
const WORTH_TELLING: Duration = Duration::from_secs(2);

/// Writes one line.
pub fn say(text: &str) {
    // Nobody to tell is no reason to fail.
    let _ = io::stderr().write_all(format!("lab: {text}\n").as_bytes());
}

/// A line that changes while something runs: rewritten in place on a terminal,
/// written anew every 30 s elsewhere.
#[derive(Debug)]
pub struct Meter {
    what: String,
    begun: Instant,
    /// When it was shown last; never yet for one that is quiet at first.
    shown: Option<Instant>,
    /// Whether the line on the terminal is unfinished.
    open: bool,
    terminal: bool,
}

impl Meter {
    /// Begins with a first line that says what is being done.
    pub fn start(what: impl Into<String>) -> Self {
        let mut meter = Self::quiet_at_first(what);
        meter.open_with_a_line();
        meter
    }

    /// Says nothing of what ends soon.
    pub fn quiet_at_first(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            begun: Instant::now(),
            shown: None,
            open: false,
            terminal: io::stderr().is_terminal(),
        }
    }

    fn open_with_a_line(&mut self) {
        say(&format!("{} …", self.what));
        self.shown = Some(Instant::now());
    }

    /// Shows how far it is, if it's time to: only then `state` is asked.
    pub fn show_with(&mut self, state: impl FnOnce() -> String) {
        let Some(last) = self.shown else {
            if self.begun.elapsed() > WORTH_TELLING {
                self.open_with_a_line();
            }
            return;
        };
        let pause = Duration::from_secs(if self.terminal { 1 } else { 30 });
        if last.elapsed() < pause {
            return;
        }
        self.shown = Some(Instant::now());
        let state = state();
        let comma = if state.is_empty() { "" } else { ", " };
        let seconds = self.begun.elapsed().as_secs();
        let line = format!("{}: {state}{comma}{seconds} s", self.what);
        if self.terminal {
            let _ = io::stderr().write_all(format!("\r\x1b[Klab: {line}").as_bytes());
            self.open = true;
        } else {
            say(&line);
        }
    }

    /// Ends with a last line, if there was a first one.
    pub fn finish(mut self, state: &str) {
        self.close();
        if self.shown.is_some() {
            let seconds = self.begun.elapsed().as_secs_f64();
            say(&format!("{}: {state} after {seconds:.1} s", self.what));
        }
    }

    fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }
}

/// After a failure: the message that follows begins on a line of its own.
impl Drop for Meter {
    fn drop(&mut self) {
        self.close();
    }
}
