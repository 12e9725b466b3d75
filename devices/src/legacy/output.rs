use std::fmt;
use std::io::{self, Write};

/// Bytes that are kept back at most.
const LIMIT: usize = 256;

/// The serial port's way out: gathers bytes, so that a line costs one write(2)
/// and not one a byte.
///
/// Written out when a line ends, when [`LIMIT`] is reached, and when told to
/// ([`Self::drain`]). A failing output loses the bytes and is reported once:
/// the guest goes on.
pub(super) struct Output {
    to: Box<dyn Write + Send>,
    pending: Vec<u8>,
    failed: bool,
}

impl Output {
    pub(super) fn new(to: Box<dyn Write + Send>) -> Self {
        Self {
            to,
            pending: Vec::with_capacity(LIMIT),
            failed: false,
        }
    }

    pub(super) fn drain(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let result = self
            .to
            .write_all(&self.pending)
            .and_then(|()| self.to.flush());
        self.pending.clear();
        match result {
            Ok(()) => self.failed = false,
            Err(_) if self.failed => {}
            Err(error) => {
                self.failed = true;
                log::warn!(
                    "serial port: output is being lost: {error}; the guest goes on without it"
                );
            }
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.pending.push(*byte);
            if *byte == b'\n' || self.pending.len() >= LIMIT {
                self.drain();
            }
        }
        Ok(bytes.len())
    }

    /// Does nothing: the serial port asks for it after each byte.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.drain();
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("pending", &self.pending.len())
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}
