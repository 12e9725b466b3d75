use std::fmt;
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
