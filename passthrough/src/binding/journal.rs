//! What was changed and how it was before, in files that outlive the process.
//!
//! ```text
//! /run/airlock/lock                 one transaction at a time, and who has it
//! /run/airlock/bindings/ID.json     one transaction: its devices, how they were, who did it
//! ```
//!
//! A journal is complete and on disk before the first write to sysfs, and is
//! only ever replaced as a whole. Its owner is alive as long as the file is
//! locked (flock(2)): the kernel lets go of the lock when the process ends, in
//! whatever way, and process numbers come again.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::Keep;
use super::device::{DeviceName, is_folder};
use super::error::BindError;
use super::held::{Found, HeldState, Owner};
use super::kernel::same;
use crate::host::{GroupId, clean};

/// The layout of the files. Another one is left alone.
const VERSION: u32 = 1;
/// More than a transaction of a thousand devices takes.
const SIZE_LIMIT: u64 = 1 << 20;
/// As much of a command line as is kept.
const COMMAND_LIMIT: usize = 200;
/// How often it is looked whether the lock is free.
const PAUSE: Duration = Duration::from_millis(10);

/// One transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Journal {
    version: u32,
    pub(super) keep: Keep,
    /// Everything is bound. One that is not, and has no owner, was cut short.
    pub(super) complete: bool,
    /// The boot that it belongs to (random(4)). After another one, nothing of
    /// what it says is true.
    boot_id: String,
    pub(super) owner: Owner,
    /// In the order in which they are bound.
    pub(super) devices: Vec<Entry>,
}

/// One device of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) device: DeviceName,
    pub(super) group: Option<GroupId>,
    /// The drivers that it may be on because of this transaction, the one that
    /// it is on first, once that is known.
    pub(super) drivers: Vec<String>,
    pub(super) found: Found,
    /// It came into a held group. Its override was set, and nothing else. To
    /// be given back it may have been removed, and is to be found anew then.
    pub(super) hot_added: bool,
}

impl Entry {
    /// Whether `driver` is one that this transaction puts the device on.
    pub(super) fn is_ours(&self, driver: &str) -> bool {
        self.found.driver.as_deref() != Some(driver)
            && self.drivers.iter().any(|ours| same(ours, driver))
    }
}

impl Journal {
    pub(super) fn new(keep: Keep, boot_id: String, devices: Vec<Entry>) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            version: VERSION,
            keep,
            complete: false,
            boot_id,
            owner: Owner {
                pid: process::id(),
                start_time: start_time().unwrap_or(0),
                command: command(),
                since: since.map_or(0, |since| since.as_secs()),
            },
            devices,
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let senseless = |error: serde_json::Error| error.to_string();
        let Versioned { version } = serde_json::from_slice(bytes).map_err(senseless)?;
        if version != VERSION {
            return Err(format!(
                "it is of version {version}, and this airlock knows {VERSION}"
            ));
        }
        let journal: Self = serde_json::from_slice(bytes).map_err(senseless)?;
        let mut names = journal.devices.iter().flat_map(|entry| {
            let found = [&entry.found.driver, &entry.found.driver_module];
            entry.drivers.iter().chain(found.into_iter().flatten())
        });
        // They become parts of paths.
        if let Some(name) = names.find(|name| !is_folder(name)) {
            return Err(format!("'{}' is no name of a driver", name.escape_debug()));
        }
        drop(names);
        Ok(journal)
    }
}

/// When this process started, in ticks since the boot.
fn start_time() -> Option<u64> {
    let stat = fs::read("/proc/self/stat").ok()?;
    let stat = clean(&stat);
    // The name, in parentheses, may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// How this process was called.
fn command() -> String {
    let mut command = Vec::new();
    if let Ok(file) = File::open("/proc/self/cmdline") {
        let _ = file.take(COMMAND_LIMIT as u64).read_to_end(&mut command);
    }
    for byte in &mut command {
        if *byte == 0 || *byte == b'\n' || *byte == b'\t' {
            *byte = b' ';
        }
    }
    clean(&command).trim().to_owned()
}

/// Where the journals are.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
}

/// The right to change journals and devices, for as long as it lives.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// A journal of this process, locked as long as it lives.
#[derive(Debug)]
pub(super) struct OpenJournal {
    path: PathBuf,
    file: File,
    pub(super) journal: Journal,
}

/// A journal as it was found.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) path: PathBuf,
    /// Or why it makes no sense.
    pub(super) journal: Result<Journal, String>,
    /// Its owner is alive.
    pub(super) live: bool,
}

impl Stored {
    /// What becomes of the devices of a journal that makes sense.
    pub(super) fn state(&self, journal: &Journal) -> HeldState {
        match journal.keep {
            _ if self.live => HeldState::Live,
            Keep::UntilReleased if journal.complete => HeldState::Kept,
            _ => HeldState::Stale,
        }
    }
}

impl Store {
    pub(super) fn new(folder: &Path) -> Self {
        let folder = folder.to_owned();
        Self { folder }
    }

    fn journals(&self) -> PathBuf {
        self.folder.join("bindings")
    }

    /// Waits for the lock, at most `limit`.
    pub(super) fn lock(&self, limit: Duration) -> Result<Lock, BindError> {
        let journals = self.journals();
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&self.folder)
            .map_err(failed("make", &self.folder))?;
        match DirBuilder::new().mode(0o700).create(&journals) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("make", &journals)(error));
            }
            _ => {}
        }
        let path = self.folder.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open", &path))?;
        let end = Instant::now() + limit;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    let _ = file.take(1024).read_to_string(&mut holder);
                    let holder = clean(holder.trim().as_bytes());
                    return Err(BindError::Locked { holder, limit });
                }
                Err(TryLockError::Error(error)) => return Err(failed("lock", &path)(error)),
            }
        }
        // For whoever waits in vain. What was there is of no use.
        let _ = file.set_len(0);
        let _ = write!(file, "pid {}: {}", process::id(), command());
        Ok(Lock { _file: file })
    }

    /// Every journal of this boot, sorted by name and so by age. One that is
    /// being replaced at this moment may look as if nobody minded it: who is
    /// to act on that needs the lock.
    pub(super) fn list(&self, boot_id: &str) -> Result<Vec<Stored>, BindError> {
        let folder = self.journals();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &folder)(error)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed("list", &folder))?.path();
            if path.extension().is_some_and(|ending| ending == "json") {
                paths.push(path);
            }
        }
        paths.sort_unstable();
        let stored = paths.into_iter().map(|path| Self::load(path, boot_id));
        stored.filter_map(Result::transpose).collect()
    }

    /// Nothing when the journal is of another boot, or has just gone.
    fn load(path: PathBuf, boot_id: &str) -> Result<Option<Stored>, BindError> {
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", &path)(error)),
        };
        let mut bytes = Vec::new();
        (&file)
            .take(SIZE_LIMIT)
            .read_to_end(&mut bytes)
            .map_err(failed("read", &path))?;
        let journal = Journal::parse(&bytes);
        if journal
            .as_ref()
            .is_ok_and(|journal| journal.boot_id != boot_id)
        {
            return Ok(None);
        }
        // Shared, so that two that look do not take each other for owners.
        let live = match file.try_lock_shared() {
            Ok(()) => false,
            Err(TryLockError::WouldBlock) => true,
            Err(TryLockError::Error(error)) => return Err(failed("lock", &path)(error)),
        };
        Ok(Some(Stored {
            path,
            journal,
            live,
        }))
    }

    /// Removes what has no meaning: journals of another boot, and files that
    /// were being written when their writer ended.
    pub(super) fn sweep(&self, boot_id: &str, _lock: &Lock) -> Result<(), BindError> {
        let folder = self.journals();
        let entries = fs::read_dir(&folder).map_err(failed("list", &folder))?;
        for entry in entries {
            let path = entry.map_err(failed("list", &folder))?.path();
            let is_journal = path.extension().is_some_and(|ending| ending == "json");
            if !is_journal || Self::load(path.clone(), boot_id)?.is_none() {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Puts a journal down, and holds it.
    pub(super) fn create(&self, journal: Journal, _lock: &Lock) -> Result<OpenJournal, BindError> {
        let folder = self.journals();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let mut number = now.map_or(0, |now| now.as_nanos());
        // Names sort by age. Two of the same moment are told apart.
        let path = loop {
            let path = folder.join(format!("{number:020}.json"));
            if !path.exists() {
                break path;
            }
            number += 1;
        };
        let file = replace(&path, &journal)?;
        Ok(OpenJournal {
            path,
            file,
            journal,
        })
    }

    /// Takes over a journal whose owner is gone.
    pub(super) fn adopt(
        &self,
        path: &Path,
        journal: Journal,
        _lock: &Lock,
    ) -> Result<OpenJournal, BindError> {
        let file = File::open(path).map_err(failed("open", path))?;
        Ok(OpenJournal {
            path: path.to_owned(),
            file,
            journal,
        })
    }
}

impl OpenJournal {
    /// Writes it anew, as it is now. The lock goes over to the new file. When
    /// nothing is left to be given back, the file is removed.
    pub(super) fn save(&mut self) -> Result<(), BindError> {
        if self.journal.devices.is_empty() {
            return remove(&self.path);
        }
        self.file = replace(&self.path, &self.journal)?;
        Ok(())
    }
}

/// Writes `journal` beside `path`, locks it, and puts it in its place.
fn replace(path: &Path, journal: &Journal) -> Result<File, BindError> {
    let new = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(journal)?)?;
        file.sync_all()?;
        // Nobody else can know the file so far.
        file.try_lock().map_err(io::Error::from)?;
        fs::rename(&new, path)?;
        sync_folder(path)?;
        Ok(file)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&new);
        failed("write", path)(error)
    })
}

fn remove(path: &Path) -> Result<(), BindError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => sync_folder(path).map_err(failed("remove", path)),
    }
}

/// A name that was made or removed is on disk only with its folder.
fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BindError {
    let path = path.to_owned();
    move |answer| BindError::Journal {
        action,
        path,
        answer,
    }
}
