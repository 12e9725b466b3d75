//! Option ROMs that the user gives instead of the devices' own.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use passthrough::RomSource;
use thiserror::Error;

use crate::config::RomConfig;

/// The largest ROM that a BAR can hold (PCIe 6.0 §7.5.1.2.4).
const LIMIT: u64 = 16 << 20;

/// Why a file can't be a device's option ROM.
#[derive(Debug, Error)]
pub enum RomError {
    /// The file can't be read.
    #[error("cannot read the option ROM {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No file of bytes.
    #[error("{} is no file: give rom= the image of an option ROM, or rom=off", path.display())]
    NotAFile {
        /// What it is instead.
        path: PathBuf,
    },
    /// A size that no ROM has.
    #[error("{} has {size} bytes: an option ROM has 1 byte to 16 MiB", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
}

/// What the guest finds in a device's option ROM, read from its file if that
/// is the user's choice.
///
/// # Errors
/// [`RomError`] when the file can't be one.
pub fn load(rom: &RomConfig) -> Result<RomSource, RomError> {
    match rom {
        RomConfig::Device => Ok(RomSource::Device),
        RomConfig::Off => Ok(RomSource::Off),
        RomConfig::File(path) => read(path).map(RomSource::File),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, RomError> {
    let unreadable = |source| RomError::Read {
        path: path.to_owned(),
        source,
    };
    // Looked at before it is opened: opening a FIFO would wait for a writer.
    let metadata = path.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        let path = path.to_owned();
        return Err(RomError::NotAFile { path });
    }
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    let mut limited = file.take(LIMIT + 1);
    limited.read_to_end(&mut bytes).map_err(unreadable)?;
    let read = bytes.len() as u64;
    if read == 0 || read > LIMIT {
        let (path, size) = (path.to_owned(), read.max(metadata.len()));
        return Err(RomError::Size { path, size });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Chain;

    fn refusal(path: &Path) -> String {
        let error = load(&RomConfig::File(path.to_owned())).unwrap_err();
        Chain(&error).to_string()
    }

    #[test]
    fn a_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rom");
        std::fs::write(&path, [0x55, 0xaa, 1]).unwrap();
        let rom = load(&RomConfig::File(path)).unwrap();
        assert_eq!(rom, RomSource::File(vec![0x55, 0xaa, 1]));
        assert_eq!(load(&RomConfig::Off).unwrap(), RomSource::Off);
        assert_eq!(load(&RomConfig::Device).unwrap(), RomSource::Device);
    }

    #[test]
    fn what_is_no_rom_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let none = folder.path().join("none");
        let text = refusal(&none);
        assert!(
            text.contains("/none") && text.contains("No such file"),
            "{text}"
        );
        let text = refusal(folder.path());
        assert!(
            text.contains("is no file") && text.contains("rom=off"),
            "{text}"
        );
        assert!(refusal(Path::new("/dev/zero")).contains("is no file"));
        std::fs::write(&none, []).unwrap();
        assert!(refusal(&none).contains("0 bytes"));
    }

    #[test]
    fn sixteen_mebibytes_are_the_most() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rom");
        let file = File::create(&path).unwrap();
        file.set_len(LIMIT).unwrap();
        let rom = load(&RomConfig::File(path.clone())).unwrap();
        assert!(matches!(rom, RomSource::File(bytes) if bytes.len() as u64 == LIMIT));
        file.set_len(1 << 40).unwrap();
        assert!(refusal(&path).contains("1099511627776 bytes"));
    }
}
