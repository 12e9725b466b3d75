use std::fmt;
use std::io;
use std::os::fd::AsFd;

use crate::sys::TerminalSettings;

/// Standard input's terminal in raw mode; as it was again once dropped, also
/// when a panic unwinds.
pub struct RawTerminal {
    before: TerminalSettings,
}

impl RawTerminal {
    /// Puts the terminal of standard input into raw mode; nothing when
    /// standard input is no terminal.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        let before = match TerminalSettings::of(stdin.as_fd()) {
            Ok(before) => before,
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => return Ok(None),
            // Closed: no terminal either.
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => return Ok(None),
            Err(error) => return Err(error),
        };
        before.raw().apply(stdin.as_fd())?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = self.before.apply(io::stdin().as_fd()) {
            log::warn!("cannot restore the terminal: {error}; `reset` does");
        }
    }
}

impl fmt::Debug for RawTerminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RawTerminal")
    }
}
