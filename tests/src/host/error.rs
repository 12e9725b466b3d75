use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::{Outcome, QmpError};
use crate::cache::CacheError;
use crate::kernel::KernelError;
use crate::machine::{DiskError, QemuError};

/// Why a nested host did not do what it should.
#[derive(Debug, Error)]
pub enum HostError {
    /// A boot or a step took longer than it may. The host was ended.
    #[error(
        "machine '{machine}': '{title}' did not end in {limit:?}; the nested host was ended\n{tails}"
    )]
    TimeLimit {
        /// Which machine.
        machine: String,
        /// The step.
        title: String,
        /// Its limit.
        limit: Duration,
        /// What was to be seen last.
        tails: Box<Tails>,
    },
    /// The host ended, or its agent can no longer be reached.
    #[error("machine '{machine}': the nested host was lost during '{title}': {reason}\n{tails}")]
    Gone {
        /// Which machine.
        machine: String,
        /// The step.
        title: String,
        /// What is known.
        reason: String,
        /// What was to be seen last.
        tails: Box<Tails>,
    },
    /// The agent could not start a step's program.
    #[error("cannot start '{title}' in the nested host: {reason}")]
    Refused {
        /// The step.
        title: String,
        /// Why.
        reason: String,
    },
    /// A step that had to succeed didn't.
    #[error("'{}' ended with {:?}\nstandard output:\n{}\nstandard error:\n{}", .0.title, .0.exit, .0.stdout.trim_end(), .0.stderr.trim_end())]
    Failed(Box<Outcome>),
    /// A process ended before it wrote what was waited for.
    #[error("'{title}' ended without a line that contains '{text}'; its last lines:\n{}", .tail.join("\n"))]
    Ended {
        /// The step.
        title: String,
        /// What was waited for.
        text: String,
        /// Its last lines.
        tail: Vec<String>,
    },
    /// There is no such device.
    #[error(
        "machine '{machine}' has no device named '{name}', or the nested host did not find it, or it's not plugged in"
    )]
    NoDevice {
        /// Which machine.
        machine: String,
        /// The name.
        name: String,
    },
    /// QEMU did not plug or unplug a device.
    #[error("machine '{machine}': {source}")]
    Monitor {
        /// Which machine.
        machine: String,
        /// What QEMU said.
        source: QmpError,
    },
    /// The nested host says something that makes no sense.
    #[error("the nested host says {text:?}, which is not {expected}")]
    Unexpected {
        /// What it says.
        text: String,
        /// What it should be.
        expected: &'static str,
    },
    /// There is no kernel for it.
    #[error("machine '{machine}' has no kernel: {source}")]
    Kernel {
        /// Which machine.
        machine: String,
        /// Why.
        source: Arc<KernelError>,
    },
    /// The machine cannot be.
    #[error(transparent)]
    Machine(#[from] QemuError),
    /// One of its disks can't be.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A file or program of the lab cannot be used.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl HostError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// The ends of what was to be seen when a host failed.
#[derive(Clone, Debug, Default)]
pub struct Tails {
    /// The nested host's console.
    pub console: Vec<String>,
    /// QEMU's own messages.
    pub messages: Vec<String>,
    /// The step's output: for a step that runs a guest, the guest's console.
    pub output: Vec<String>,
}

impl fmt::Display for Tails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (title, lines) in [
            ("the nested host's console", &self.console),
            ("QEMU's messages", &self.messages),
            ("the step's output", &self.output),
        ] {
            if lines.is_empty() {
                writeln!(f, "---- {title}: nothing")?;
                continue;
            }
            writeln!(f, "---- the end of {title}:")?;
            for line in lines {
                writeln!(f, "  | {line}")?;
            }
        }
        Ok(())
    }
}

/// The last `count` lines of a file; nothing if it can't be read.
pub(crate) fn file_tail(path: &Path, count: usize) -> Vec<String> {
    const WINDOW: u64 = 16 << 10;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(WINDOW)))?;
        let mut bytes = Vec::new();
        file.take(WINDOW).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines[lines.len().saturating_sub(count)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_lines_also_of_a_large_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let content: String = (0..10_000).map(|n| format!("line {n}\r\n")).collect();
        std::fs::write(&path, content).unwrap();
        assert_eq!(file_tail(&path, 2), ["line 9998", "line 9999"]);
        assert!(file_tail(&directory.path().join("absent"), 2).is_empty());
    }

    #[test]
    fn a_time_limit_shows_all_the_tails() {
        let error = HostError::TimeLimit {
            machine: "m".into(),
            title: "airlock run".into(),
            limit: Duration::from_secs(3),
            tails: Box::new(Tails {
                console: vec!["host line".into()],
                messages: Vec::new(),
                output: vec!["guest line".into()],
            }),
        };
        let text = error.to_string();
        for part in [
            "airlock run",
            "3s",
            "| host line",
            "QEMU's messages: nothing",
            "| guest line",
        ] {
            assert!(text.contains(part), "{part:?} is missing in {text}");
        }
    }
}
