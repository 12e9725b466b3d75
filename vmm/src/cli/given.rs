//! Files that whoever started this process has opened for it.

use std::io;
use std::str::FromStr;

use passthrough::{FileName, FileNameError, OpenFiles};
use thiserror::Error;

use crate::sys;

/// `NAME=N`: file descriptor N is that file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GivenFile {
    name: FileName,
    fd: i32,
}

/// Why a file can't be used.
#[derive(Debug, Error)]
pub(super) enum GivenFileError {
    /// Not `NAME=N`.
    #[error("'{0}' is not NAME=N: write for example iommufd=3")]
    Form(String),
    /// No such name.
    #[error(transparent)]
    Name(#[from] FileNameError),
    /// No number that a file can have here.
    #[error("'{0}' is no file descriptor that can be given: write a number from 3 on")]
    Number(String),
    /// Nothing is open by that number.
    #[error(
        "file descriptor {fd} for {name} is not open: whoever starts airlock must open it, and \
         leave it open across exec (no close-on-exec)"
    )]
    NotOpen {
        /// The file.
        name: FileName,
        /// Its number.
        fd: i32,
        /// What the kernel answered.
        source: io::Error,
    },
    /// One number or one name for two.
    #[error("--fd {name}={fd}: give each file and each descriptor once")]
    Twice {
        /// The file.
        name: FileName,
        /// Its number.
        fd: i32,
    },
}

impl FromStr for GivenFile {
    type Err = GivenFileError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || GivenFileError::Form(text.to_owned());
        let (name, number) = text.split_once('=').ok_or_else(form)?;
        let name = name.parse()?;
        // Below are the standard streams.
        let fd = number.parse().ok().filter(|fd| *fd > 2);
        let fd = fd.ok_or_else(|| GivenFileError::Number(number.to_owned()))?;
        Ok(Self { name, fd })
    }
}

/// Takes the files over. To be called once, before this process opens files of
/// its own for long.
pub(super) fn adopt(given: &[GivenFile]) -> Result<OpenFiles, GivenFileError> {
    let mut files = OpenFiles::default();
    for (at, &GivenFile { name, fd }) in given.iter().enumerate() {
        let twice = given[..at]
            .iter()
            .any(|other| other.fd == fd || other.name == name);
        if twice {
            return Err(GivenFileError::Twice { name, fd });
        }
        let file = sys::adopt(fd).map_err(|source| GivenFileError::NotOpen { name, fd, source })?;
        files.insert(name, file);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::IntoRawFd;

    #[test]
    fn files_that_users_type() {
        let file: GivenFile = "0000:01:00.0=7".parse().unwrap();
        assert_eq!(
            (file.name.to_string().as_str(), file.fd),
            ("0000:01:00.0", 7)
        );
        for text in [
            "",
            "iommufd",
            "iommufd=",
            "iommufd=x",
            "iommufd=2",
            "iommufd=-1",
            "x=3",
        ] {
            let error = text.parse::<GivenFile>().unwrap_err();
            assert!(error.to_string().contains("write"), "{error}");
        }
    }

    #[test]
    fn what_is_not_open_is_named() {
        let file: GivenFile = "iommufd=1000000".parse().unwrap();
        let error = adopt(&[file]).unwrap_err().to_string();
        assert!(error.contains("1000000 for iommufd is not open"), "{error}");
    }

    #[test]
    fn a_file_is_taken_once() {
        let fd = File::open("/dev/null").unwrap().into_raw_fd();
        let name = FileName::Iommufd;
        let file = GivenFile { name, fd };
        let error = adopt(&[file, file]).unwrap_err().to_string();
        assert!(error.contains("once"), "{error}");
    }
}
