use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What was done on the host, line by line, in order. Clones write into the
/// same journal.
#[derive(Clone, Debug, Default)]
pub struct Journal(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    lines: Vec<String>,
    /// How many lines more until what is to happen meanwhile.
    meanwhile: Option<(usize, Box<dyn FnOnce() + Send>)>,
    /// How many steps more until the one that fails.
    failure: Option<usize>,
    failed: Option<String>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Inner").field(&self.lines).finish()
    }
}

impl Journal {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lines since they were last taken.
    pub fn lines(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    /// Adds a line, before that is done of which it tells.
    pub fn note(&self, line: impl Into<String>) {
        let mut inner = self.lock();
        inner.lines.push(line.into());
        match inner.meanwhile.take() {
            Some((0, action)) => {
                drop(inner);
                action();
            }
            Some((lines, action)) => inner.meanwhile = Some((lines - 1, action)),
            None => {}
        }
    }

    /// Has `action` happen once, as if by another thread, before that is done
    /// of which the line after the next `lines` ones tells. It replaces the
    /// action before.
    pub fn meanwhile(&self, lines: usize, action: impl FnOnce() + Send + 'static) {
        self.lock().meanwhile = Some((lines, Box::new(action)));
    }

    /// Has one step fail, after so many more that work: of the device, the
    /// router, the mapper and the space, whichever write into this journal. A
    /// step is what can fail on a real host too.
    pub fn fail_after(&self, steps: usize) {
        let mut inner = self.lock();
        (inner.failure, inner.failed) = (Some(steps), None);
    }

    /// Which step it was that failed, if its time has come.
    pub fn failed(&self) -> Option<String> {
        self.lock().failed.clone()
    }

    /// A step of which `what` tells: it fails when its time has come.
    pub(super) fn step(&self, what: fmt::Arguments<'_>) -> io::Result<()> {
        let mut inner = self.lock();
        match inner.failure {
            Some(0) => {
                (inner.failure, inner.failed) = (None, Some(what.to_string()));
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
            Some(steps) => {
                inner.failure = Some(steps - 1);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Takes all lines out, and forgets what was to happen meanwhile.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.lock()).lines
    }

    /// As [`Self::take`], and answers the lines that begin with one of `heads`.
    pub fn take_only(&self, heads: &[&str]) -> Vec<String> {
        let wanted = |line: &String| heads.iter().any(|head| line.starts_with(head));
        self.take().into_iter().filter(wanted).collect()
    }
}
