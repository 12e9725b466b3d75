//! Where the lab keeps what it makes, and the locks that keep two processes
//! from making it at the same time.

use std::env;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::progress;

/// Why the cache cannot be used.
#[derive(Debug, Error)]
pub enum CacheError {
    /// Neither variable that tells its place is set.
    #[error("no place for the lab's cache: set XDG_CACHE_HOME or HOME")]
    NoPlace,
    /// A file or directory in it cannot be used.
    #[error("cannot use {path} in the lab's cache: {source}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl CacheError {
    /// For `map_err` on an operation with `path`.
    pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// The lab's directory below the user's cache directory.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$XDG_CACHE_HOME/airlock/lab`, or `~/.cache/airlock/lab`; made if absent.
    ///
    /// # Errors
    /// [`CacheError`] when there is no place or it cannot be written.
    pub fn open() -> Result<Self, CacheError> {
        let base = place(env::var_os("XDG_CACHE_HOME"), env::var_os("HOME"));
        Self::at(base.ok_or(CacheError::NoPlace)?.join("airlock/lab"))
    }

    /// A cache at another place; made if absent.
    ///
    /// # Errors
    /// [`CacheError`] when it cannot be made.
    pub fn at(root: PathBuf) -> Result<Self, CacheError> {
        fs::create_dir_all(&root).map_err(CacheError::at(&root))?;
        Ok(Self { root })
    }

    /// The path of an entry.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The names of what begins with `prefix`, in no order.
    ///
    /// # Errors
    /// [`CacheError`] when the cache cannot be read.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>, CacheError> {
        let entries = fs::read_dir(&self.root).map_err(CacheError::at(&self.root))?;
        let names = entries.flatten().map(|entry| entry.file_name());
        let names = names.filter_map(|name| name.into_string().ok());
        Ok(names.filter(|name| name.starts_with(prefix)).collect())
    }

    /// The entry `name`: as it is if it's there, else made by `make`, which
    /// writes it at the path that it is given. Two processes that ask at the
    /// same time make it once; `what` tells the second one's user what it waits
    /// for. An entry appears whole or not at all.
    ///
    /// # Errors
    /// What `make` fails with, and [`CacheError`].
    pub fn entry<E: From<CacheError>>(
        &self,
        name: &str,
        what: &str,
        make: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        let path = self.path(name);
        if path.exists() {
            return Ok(path);
        }
        let _lock = self.lock(&format!("{name}.lock"), what)?;
        // The other process may have made it while this one waited.
        if path.exists() {
            return Ok(path);
        }
        let partial = self.path(&format!("{name}.partial"));
        make(&partial)?;
        fs::rename(&partial, &path).map_err(CacheError::at(&path))?;
        Ok(path)
    }

    /// The entry `name` with `content`.
    ///
    /// # Errors
    /// [`CacheError`] when it cannot be written.
    pub fn file(&self, name: &str, content: &[u8]) -> Result<PathBuf, CacheError> {
        self.entry(name, name, |path| {
            fs::write(path, content).map_err(CacheError::at(path))
        })
    }

    /// Takes a lock, and says on standard error that it waits if it must. The
    /// lock ends with the value, at the latest with the process.
    ///
    /// # Errors
    /// [`CacheError`] when the lock file cannot be used.
    pub fn lock(&self, name: &str, what: &str) -> Result<Lock, CacheError> {
        let path = self.path(name);
        let at = || CacheError::at(&path);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(at())?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                progress::say(&format!("waiting for another process: {what}"));
                file.lock().map_err(at())?;
            }
            Err(TryLockError::Error(error)) => return Err(at()(error)),
        }
        Ok(Lock { _file: file })
    }
}

/// A lock that is held.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

fn place(xdg: Option<std::ffi::OsString>, home: Option<std::ffi::OsString>) -> Option<PathBuf> {
    // The XDG specification has relative paths ignored.
    let absolute =
        |value: std::ffi::OsString| Some(PathBuf::from(value)).filter(|p| p.is_absolute());
    xdg.and_then(absolute)
        .or_else(|| home.and_then(absolute).map(|home| home.join(".cache")))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_place_follows_the_xdg_specification() {
        let place = |xdg: &str, home: &str| {
            let some = |text: &str| (!text.is_empty()).then(|| text.into());
            super::place(some(xdg), some(home))
        };
        assert_eq!(place("/x", "/h"), Some("/x".into()));
        assert_eq!(place("", "/h"), Some("/h/.cache".into()));
        assert_eq!(place("relative", "/h"), Some("/h/.cache".into()));
        assert_eq!(place("", ""), None);
    }

    #[test]
    fn an_entry_is_made_once_by_many_who_ask() {
        let directory = tempfile::tempdir().unwrap();
        let made = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let cache = Cache::at(directory.path().join("cache")).unwrap();
                    let path = cache
                        .entry::<CacheError>("thing", "a thing", |path| {
                            made.fetch_add(1, Ordering::SeqCst);
                            thread::sleep(Duration::from_millis(50));
                            fs::write(path, "content").map_err(CacheError::at(path))
                        })
                        .unwrap();
                    assert_eq!(fs::read_to_string(path).unwrap(), "content");
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }

    #[test]
    fn an_entry_whose_making_failed_is_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path().to_owned()).unwrap();
        let failed = cache.entry::<CacheError>("thing", "a thing", |path| {
            fs::write(path, "half").unwrap();
            Err(CacheError::NoPlace)
        });
        assert!(failed.is_err());
        assert!(!cache.path("thing").exists());
        let whole = cache.file("thing", b"whole").unwrap();
        assert_eq!(fs::read(whole).unwrap(), b"whole");
    }
}
