use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::cache::CacheError;
use crate::host::HostError;
use crate::lab::LabError;
use crate::machine::DiskError;
use crate::prerequisites::PrerequisiteError;

/// Why there are no numbers. A step names what was being measured.
#[derive(Debug, Error)]
pub enum NumbersError {
    /// The lab cannot be set up.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A program that only this command needs is missing.
    #[error(transparent)]
    Prerequisite(#[from] PrerequisiteError),
    /// What the disk holds cannot be told.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The nested host failed.
    #[error("{step}: {source}")]
    Host {
        /// What was being measured.
        step: String,
        /// Why it failed.
        source: HostError,
    },
    /// A measurement is missing or makes no sense.
    #[error("{step}: {reason}")]
    Wrong {
        /// What was being measured.
        step: String,
        /// What is wrong.
        reason: String,
    },
    /// A file of the machine that runs the lab cannot be used.
    #[error("cannot use {path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl NumbersError {
    pub(super) fn wrong(step: &str, reason: impl Into<String>) -> Self {
        Self::Wrong {
            step: step.to_owned(),
            reason: reason.into(),
        }
    }

    /// Whether it is what a monitor did, and not the nested host's failure.
    pub(super) fn is_of_monitor(&self) -> bool {
        match self {
            Self::Host { source, .. } => matches!(source, HostError::Failed(_)),
            Self::Wrong { .. } => true,
            _ => false,
        }
    }

    /// Whether the nested host hangs or is lost, as emulated ones sometimes are.
    pub(super) fn is_a_loss(&self) -> bool {
        let Self::Host { source, .. } = self else {
            return false;
        };
        matches!(source, HostError::TimeLimit { .. } | HostError::Gone { .. })
    }

    pub(super) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::File { path, source }
    }
}

/// Names the step that an error of the nested host ended.
pub(super) trait At<T> {
    fn at(self, step: &str) -> Result<T, NumbersError>;
}

impl<T> At<T> for Result<T, HostError> {
    fn at(self, step: &str) -> Result<T, NumbersError> {
        self.map_err(|source| NumbersError::Host {
            step: step.to_owned(),
            source,
        })
    }
}
