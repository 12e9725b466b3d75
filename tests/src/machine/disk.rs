use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::digest::{DigestError, Sha256, sha256_reader};

/// The content of a disk.
#[derive(Clone, Debug)]
pub enum Disk {
    /// Generated, of this many bytes: each 8-byte word is a function of its
    /// place, so that a block that was read from a wrong place shows.
    Pattern {
        /// Size in bytes, a multiple of 512.
        bytes: u64,
        /// Disks of different seeds differ everywhere.
        seed: u64,
    },
    /// A file of the machine that runs the lab, written to by the guest.
    Image(PathBuf),
}

/// Why a disk cannot be had.
#[derive(Debug, Error)]
pub enum DiskError {
    /// Its file could not be read or written.
    #[error("cannot use the disk image {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The size is not one of a disk.
    #[error("a disk of {0} bytes cannot be: the size must be a multiple of 512 and not 0")]
    Size(u64),
    /// The digest could not be computed.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl Disk {
    /// A disk of generated content, see [`Disk::Pattern`].
    pub fn pattern(bytes: u64) -> Self {
        Self::Pattern { bytes, seed: 0 }
    }

    /// A disk of generated content that differs from other seeds' everywhere.
    pub fn seeded(bytes: u64, seed: u64) -> Self {
        Self::Pattern { bytes, seed }
    }

    /// The SHA-256 digest of the first `bytes` bytes as they were before the
    /// boot (or of all, when there are fewer).
    ///
    /// # Errors
    /// [`DiskError`] when an image cannot be read.
    pub fn digest(&self, bytes: u64) -> Result<Sha256, DiskError> {
        match self {
            Self::Pattern { bytes: size, seed } => {
                Ok(sha256_reader(Pattern::new(*seed, bytes.min(*size)))?)
            }
            Self::Image(path) => {
                let file = File::open(path).map_err(|source| DiskError::Io {
                    path: path.clone(),
                    source,
                })?;
                Ok(sha256_reader(file.take(bytes))?)
            }
        }
    }

    /// The file that QEMU opens: the image itself, or `path` after the pattern
    /// was written to it.
    pub(crate) fn materialize(&self, path: &Path) -> Result<PathBuf, DiskError> {
        let Self::Pattern { bytes, seed } = self else {
            let Self::Image(image) = self else {
                return Err(DiskError::Size(0));
            };
            return fs::canonicalize(image).map_err(|source| DiskError::Io {
                path: image.clone(),
                source,
            });
        };
        if *bytes == 0 || bytes % 512 != 0 {
            return Err(DiskError::Size(*bytes));
        }
        let write = || -> io::Result<()> {
            let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
            io::copy(&mut Pattern::new(*seed, *bytes), &mut file)?;
            file.flush()
        };
        write().map_err(|source| DiskError::Io {
            path: path.to_owned(),
            source,
        })?;
        Ok(path.to_owned())
    }
}

/// The stream of words of a pattern: a counter through the finalizer of
/// splitmix64, which is a bijection, so no two words of a disk are equal.
struct Pattern {
    base: u64,
    position: u64,
    end: u64,
}

impl Pattern {
    fn new(seed: u64, end: u64) -> Self {
        Self {
            base: mix(seed),
            position: 0,
            end,
        }
    }
}

fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Read for Pattern {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let mut filled = 0;
        while filled < wanted {
            let word = mix(self.base.wrapping_add(self.position / 8)).to_le_bytes();
            let from = (self.position % 8) as usize;
            let count = (8 - from).min(wanted - filled);
            buffer[filled..filled + count].copy_from_slice(&word[from..from + count]);
            filled += count;
            self.position += count as u64;
        }
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut reader: impl Read) -> Vec<u8> {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_pattern_does_not_depend_on_how_it_is_read() {
        let whole = all(Pattern::new(3, 4096));
        let mut pieces = Vec::new();
        let mut reader = Pattern::new(3, 4096);
        for size in (1..).take_while(|size| size * (size - 1) / 2 < 4096) {
            let mut piece = vec![0; size];
            let count = reader.read(&mut piece).unwrap();
            pieces.extend_from_slice(&piece[..count]);
        }
        assert_eq!(whole.len(), 4096);
        assert_eq!(pieces, whole);
    }

    #[test]
    fn words_differ_by_place_and_by_seed() {
        let words: Vec<_> = all(Pattern::new(0, 1 << 16))
            .chunks(8)
            .chain(all(Pattern::new(1, 1 << 16)).chunks(8))
            .map(<[u8]>::to_vec)
            .collect();
        let distinct: std::collections::HashSet<_> = words.iter().collect();
        assert_eq!(distinct.len(), words.len());
    }

    #[test]
    fn the_digest_is_that_of_the_file_that_qemu_gets() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::seeded(1 << 16, 9);
        let path = disk.materialize(&directory.path().join("disk")).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 16);
        let image = Disk::Image(path);
        assert_eq!(
            image.digest(1 << 12).unwrap(),
            disk.digest(1 << 12).unwrap()
        );
        assert_ne!(
            image.digest(1 << 13).unwrap(),
            disk.digest(1 << 12).unwrap()
        );
    }

    #[test]
    fn a_size_that_no_disk_has_is_refused() {
        let path = Path::new("unused");
        for size in [0, 511] {
            assert!(matches!(
                Disk::pattern(size).materialize(path),
                Err(DiskError::Size(s)) if s == size
            ));
        }
    }
}
