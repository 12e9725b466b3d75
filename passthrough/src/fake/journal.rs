use std::sync::{Arc, Mutex, PoisonError};

/// What was done on the host, line by line, in order. Clones write into the
/// same journal.
#[derive(Clone, Debug, Default)]
pub struct Journal(Arc<Mutex<Vec<String>>>);

impl Journal {
    /// Adds a line.
    pub fn note(&self, line: impl Into<String>) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push(line.into());
    }

    /// Takes all lines out.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes all lines out and answers those that begin with one of `heads`.
    pub fn take_only(&self, heads: &[&str]) -> Vec<String> {
        let wanted = |line: &String| heads.iter().any(|head| line.starts_with(head));
        self.take().into_iter().filter(wanted).collect()
    }
}
