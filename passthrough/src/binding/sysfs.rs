use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::host::{Holders, Host, clean, present};
use crate::sys::bounded::{Access, Undo, access};

/// A write to an attribute of sysfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// The absolute path.
    pub path: String,
    /// What is written, in one write(2).
    pub value: String,
}

impl Write {
    pub(super) fn new(path: String, value: impl Into<String>) -> Self {
        let value = value.into();
        Self { path, value }
    }
}

impl fmt::Display for Write {
    /// As a shell would do it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value.trim_end() {
            "" => write!(f, "echo > {}", self.path),
            value => write!(f, "echo {value} > {}", self.path),
        }
    }
}

/// Why the kernel's files gave no answer, or no good one.
#[derive(Debug, Error)]
pub enum AccessError {
    /// The kernel said no.
    #[error(transparent)]
    Refused(#[from] io::Error),
    /// It did not answer in time. What it was asked for may still happen.
    #[error("the kernel did not answer in time")]
    Late,
}

/// The port to the kernel's files, so that tests can put another kernel behind
/// it. Paths are absolute and begin with `/sys` or `/proc`.
///
/// What takes a device's lock may wait until a guest lets go of the device:
/// that is [`read_locked`](Self::read_locked) and [`write`](Self::write), which
/// must come back by their limit. The others never wait.
pub trait Sysfs: fmt::Debug + Send + Sync {
    /// An attribute's text, trimmed; nothing when there is no such attribute
    /// or device. Only for what takes no lock of a device.
    ///
    /// # Errors
    /// The kernel's.
    fn read(&self, path: &str) -> io::Result<Option<String>>;

    /// The same for what takes the lock: `driver_override`, `sriov_numvfs`.
    ///
    /// # Errors
    /// [`AccessError::Late`] after `limit`, and the kernel's.
    fn read_locked(&self, path: &str, limit: Duration) -> Result<Option<String>, AccessError>;

    /// The last part of where a link points; nothing when there is none.
    ///
    /// # Errors
    /// The kernel's.
    fn link(&self, path: &str) -> io::Result<Option<String>>;

    /// The names in a folder, sorted; nothing when there is no such folder.
    ///
    /// # Errors
    /// The kernel's.
    fn list(&self, path: &str) -> io::Result<Option<Vec<String>>>;

    /// Writes. When it comes back [`Late`](AccessError::Late) and the write
    /// goes through afterwards, `undo` is written by itself, in order and
    /// whatever each answers, even if this process is gone by then.
    ///
    /// # Errors
    /// [`AccessError::Late`] after `limit`, and the kernel's.
    fn write(&self, write: &Write, undo: &[Write], limit: Duration) -> Result<(), AccessError>;

    /// Loads a module by its name.
    ///
    /// # Errors
    /// [`AccessError::Late`] after `limit`; otherwise what the program that
    /// loads modules had to say.
    fn load_module(&self, module: &str, limit: Duration) -> Result<(), AccessError>;

    /// The processes that have VFIO's files open, this one left out.
    fn holders(&self) -> Holders;
}

/// The port to the kernel that this process runs on.
#[derive(Debug)]
pub struct KernelSysfs {
    host: Host,
}

impl KernelSysfs {
    /// Where the kernel says which program loads its modules.
    const MODPROBE: &str = "/proc/sys/kernel/modprobe";
    /// As much of that program's complaint as is shown.
    const COMPLAINT: u64 = 1024;

    /// The machine that this process runs on.
    pub fn new() -> Self {
        let host = Host::system();
        Self { host }
    }
}

impl Default for KernelSysfs {
    fn default() -> Self {
        Self::new()
    }
}

fn open(path: &str) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

impl Sysfs for KernelSysfs {
    fn read(&self, path: &str) -> io::Result<Option<String>> {
        self.host.text(path)
    }

    fn read_locked(&self, path: &str, limit: Duration) -> Result<Option<String>, AccessError> {
        let Some(file) = present(File::open(path))? else {
            return Ok(None);
        };
        match present(access(file.as_fd(), Access::Read, &[], limit))? {
            None => Ok(None),
            Some(None) => Err(AccessError::Late),
            Some(Some(bytes)) => Ok(Some(clean(&bytes).trim().to_owned())),
        }
    }

    fn link(&self, path: &str) -> io::Result<Option<String>> {
        self.host.link_name(path)
    }

    fn list(&self, path: &str) -> io::Result<Option<Vec<String>>> {
        self.host.list(path)
    }

    fn write(&self, write: &Write, undo: &[Write], limit: Duration) -> Result<(), AccessError> {
        let file = open(&write.path)?;
        let files: Vec<_> = undo
            .iter()
            .map(|undo| open(&undo.path))
            .collect::<Result<_, _>>()?;
        let undo: Vec<_> = files
            .iter()
            .zip(undo)
            .map(|(file, undo)| Undo {
                file: file.as_fd(),
                bytes: undo.value.as_bytes(),
            })
            .collect();
        let access = access(
            file.as_fd(),
            Access::Write(write.value.as_bytes()),
            &undo,
            limit,
        )?;
        access.map(drop).ok_or(AccessError::Late)
    }

    fn load_module(&self, module: &str, limit: Duration) -> Result<(), AccessError> {
        let program = self.read(Self::MODPROBE)?.unwrap_or_default();
        if program.is_empty() {
            let text = format!("{} names no program", Self::MODPROBE);
            return Err(io::Error::new(io::ErrorKind::Unsupported, text).into());
        }
        let mut child = Command::new(&program)
            .args(["--", module])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
        let end = Instant::now() + limit;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() >= end {
                // What it waits for may not let it go either. Whoever reaps it
                // must not wait for that here.
                let _ = child.kill();
                let _ = thread::Builder::new().spawn(move || child.wait());
                return Err(AccessError::Late);
            }
            thread::sleep(Duration::from_millis(5));
        };
        if status.success() {
            return Ok(());
        }
        let mut complaint = Vec::new();
        if let Some(stderr) = child.stderr.take() {
            let _ = stderr.take(Self::COMPLAINT).read_to_end(&mut complaint);
        }
        let complaint = clean(&complaint);
        let complaint = match complaint.trim() {
            "" => format!("{program}: {status}"),
            complaint => complaint.to_owned(),
        };
        Err(io::Error::other(complaint).into())
    }

    fn holders(&self) -> Holders {
        Holders::read(&self.host)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    #[test]
    fn writes_are_shown_as_a_shell_has_them() {
        let write = Write::new("/sys/a".to_owned(), "vfio-pci");
        assert_eq!(write.to_string(), "echo vfio-pci > /sys/a");
        let write = Write::new("/sys/a".to_owned(), "\n");
        assert_eq!(write.to_string(), "echo > /sys/a");
    }

    #[test]
    fn this_kernel_answers() {
        let sysfs = KernelSysfs::new();
        let limit = Duration::from_secs(20);
        let path = "/proc/sys/kernel/ostype";
        assert_eq!(sysfs.read(path).unwrap().as_deref(), Some("Linux"));
        assert_eq!(
            sysfs.read_locked(path, limit).unwrap().as_deref(),
            Some("Linux")
        );
        assert_eq!(sysfs.read_locked("/proc/none", limit).unwrap(), None);
        let write = Write::new("/proc/none".to_owned(), "x");
        let error = sysfs.write(&write, &[], limit).unwrap_err();
        assert!(
            matches!(error, AccessError::Refused(error) if error.kind() == io::ErrorKind::NotFound)
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "").unwrap();
        let write = Write::new(path.to_str().unwrap().to_owned(), "\n");
        sysfs.write(&write, &[], limit).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"\n");
    }

    #[test]
    fn a_write_that_waits_is_given_up_and_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let made = Command::new("mkfifo").arg(path("fifo")).status();
        assert!(made.unwrap().success());
        fs::write(path("undo"), "").unwrap();
        let mut fifo = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path("fifo"))
            .unwrap();
        while fifo.write(&[0; 4096]).is_ok() {}
        let write = Write::new(path("fifo"), "unbind");
        let undo = [Write::new(path("undo"), "taken back")];
        let limit = Duration::from_millis(100);
        let late = KernelSysfs::new().write(&write, &undo, limit);
        assert!(matches!(late, Err(AccessError::Late)), "{late:?}");
        assert_eq!(fs::read(path("undo")).unwrap(), b"");
        let end = Instant::now() + Duration::from_secs(20);
        while fs::read(path("undo")).unwrap() != b"taken back" {
            let _ = fifo.read(&mut [0; 4096]);
            assert!(Instant::now() < end);
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_module_that_there_is_not_is_said_so() {
        let limit = Duration::from_secs(20);
        let answer = KernelSysfs::new().load_module("no_such_module", limit);
        assert!(matches!(answer, Err(AccessError::Refused(_))), "{answer:?}");
    }
}
