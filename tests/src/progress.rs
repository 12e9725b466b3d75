//! What the lab tells its user while something takes long. It goes to standard
//! error directly: libtest keeps what `eprintln!` writes, and a user who waits
//! six minutes wants to know for what.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

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
    shown: Option<Instant>,
    terminal: bool,
    silent: bool,
}

impl Meter {
    /// Begins with a first line that says what is being done.
    pub fn start(what: impl Into<String>) -> Self {
        let what = what.into();
        say(&format!("{what} …"));
        Self {
            what,
            begun: Instant::now(),
            shown: None,
            terminal: io::stderr().is_terminal(),
            silent: false,
        }
    }

    /// One that shows nothing, for what takes no time worth telling.
    pub fn silent(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            begun: Instant::now(),
            shown: None,
            terminal: false,
            silent: true,
        }
    }

    /// Shows how far it is, if it's time to: only then `state` is asked.
    pub fn show_with(&mut self, state: impl FnOnce() -> String) {
        if self.silent {
            return;
        }
        let pause = Duration::from_secs(if self.terminal { 1 } else { 30 });
        let last = self.shown.unwrap_or(self.begun);
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
        } else {
            say(&line);
        }
    }

    /// Ends with a last line.
    pub fn finish(self, state: &str) {
        if self.silent {
            return;
        }
        if self.terminal && self.shown.is_some() {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
        let seconds = self.begun.elapsed().as_secs_f64();
        say(&format!("{}: {state} after {seconds:.1} s", self.what));
    }
}
