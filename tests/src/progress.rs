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
        }
    }

    /// Shows how far it is, if it's time to.
    pub fn show(&mut self, state: &str) {
        let pause = Duration::from_secs(if self.terminal { 1 } else { 30 });
        let last = self.shown.unwrap_or(self.begun);
        if last.elapsed() < pause {
            return;
        }
        self.shown = Some(Instant::now());
        let line = format!(
            "{}: {state}, {} s",
            self.what,
            self.begun.elapsed().as_secs()
        );
        if self.terminal {
            let _ = io::stderr().write_all(format!("\r\x1b[Klab: {line}").as_bytes());
        } else {
            say(&line);
        }
    }

    /// Ends with a last line.
    pub fn finish(self, state: &str) {
        if self.terminal && self.shown.is_some() {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
        let seconds = self.begun.elapsed().as_secs_f64();
        say(&format!("{}: {state} after {seconds:.1} s", self.what));
    }
}
