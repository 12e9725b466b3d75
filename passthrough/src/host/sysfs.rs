use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The most that is read of one attribute. sysfs itself gives a page.
const TEXT_LIMIT: u64 = 64 * 1024;

/// The most that is read of a file that is gone through by lines: the module
/// lists of a distribution's kernel take 2 MiB.
const LINES_LIMIT: u64 = 32 * 1024 * 1024;

/// Where sysfs, procfs and `/dev` are read: this machine, or a tree that looks
/// like one.
#[derive(Debug)]
pub struct Host {
    root: PathBuf,
    operations: AtomicU64,
}

impl Host {
    /// The machine that this process runs on.
    pub fn system() -> Self {
        Self::at(Path::new("/"))
    }

    /// A tree with `sys`, `proc` and `dev` below `root`.
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            operations: AtomicU64::new(0),
        }
    }

    /// How many files, links and folders have been looked at through this
    /// value: what a survey costs, in numbers that do not depend on the machine.
    pub fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    /// The file that stands for absolute `path`.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.operations.fetch_add(1, Ordering::Relaxed);
        self.root.join(path.trim_start_matches('/'))
    }

    /// An attribute's text without the white space around it; nothing when
    /// there is no such attribute, or its device has just gone.
    pub(crate) fn text(&self, path: &str) -> io::Result<Option<String>> {
        present(self.bytes(path)).map(|bytes| bytes.map(|bytes| clean(&bytes).trim().to_owned()))
    }

    fn bytes(&self, path: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.path(path))?
            .take(TEXT_LIMIT)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The first of at most `limit` lines that `wanted` answers for.
    pub(super) fn find_line<T>(
        &self,
        path: &str,
        limit: usize,
        wanted: impl Fn(&str) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let mut reader = match File::open(self.path(path)) {
            Ok(file) => BufReader::new(file),
            Err(error) if is_absence(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut line = Vec::new();
        for _ in 0..limit {
            line.clear();
            if (&mut reader)
                .take(TEXT_LIMIT)
                .read_until(b'\n', &mut line)?
                == 0
            {
                break;
            }
            if let Some(found) = wanted(&clean(&line)) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Shows each line to `take`, as it is in the file and without its end;
    /// nothing when there is no such file.
    pub(super) fn lines(&self, path: &str, mut take: impl FnMut(&[u8])) -> io::Result<Option<()>> {
        let Some(file) = present(File::open(self.path(path)))? else {
            return Ok(None);
        };
        let mut reader = BufReader::with_capacity(64 * 1024, file.take(LINES_LIMIT));
        let mut line = Vec::new();
        while present(reader.read_until(b'\n', &mut line))?.is_some_and(|read| read > 0) {
            take(line.strip_suffix(b"\n").unwrap_or(&line));
            line.clear();
        }
        Ok(Some(()))
    }

    /// The config space of a PCI function. Reading it wakes the function.
    pub(crate) fn config(&self, name: &str) -> io::Result<Option<Config>> {
        let path = self.path(&format!("/sys/bus/pci/devices/{name}/config"));
        present(File::open(path).map(Config))
    }

    /// Where a link points, as it is written in the link.
    pub(super) fn link(&self, path: &str) -> io::Result<Option<String>> {
        let target = present(fs::read_link(self.path(path)))?;
        Ok(target.map(|target| clean(target.as_os_str().as_encoded_bytes())))
    }

    /// The last part of where a link points.
    pub(crate) fn link_name(&self, path: &str) -> io::Result<Option<String>> {
        let target = self.link(path)?;
        Ok(target.map(|target| target.rsplit('/').next().unwrap_or_default().to_owned()))
    }

    /// The names in a folder, sorted; nothing when there is no such folder.
    pub(crate) fn list(&self, path: &str) -> io::Result<Option<Vec<String>>> {
        let Some(entries) = present(fs::read_dir(self.path(path)))? else {
            return Ok(None);
        };
        let mut names = Vec::new();
        for entry in entries {
            // A folder that goes away while it is being listed ends early.
            let Some(entry) = present(entry)? else { break };
            names.push(clean(entry.file_name().as_encoded_bytes()));
        }
        names.sort_unstable();
        Ok(Some(names))
    }

    /// Whether there is something at `path`.
    pub(super) fn exists(&self, path: &str) -> io::Result<bool> {
        present(fs::symlink_metadata(self.path(path))).map(|found| found.is_some())
    }
}

/// A function's config space, as far as this user may read it.
#[derive(Debug)]
pub(crate) struct Config(File);

impl Config {
    /// All that this user may read of it, at most `limit` bytes.
    pub(crate) fn bytes(&self, limit: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        (&self.0).take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn byte(&self, at: u64) -> Option<u8> {
        self.read(at).map(|[byte]| byte)
    }

    pub(super) fn word(&self, at: u64) -> Option<u16> {
        self.read(at).map(u16::from_le_bytes)
    }

    pub(super) fn dword(&self, at: u64) -> Option<u32> {
        self.read(at).map(u32::from_le_bytes)
    }

    fn read<const SIZE: usize>(&self, at: u64) -> Option<[u8; SIZE]> {
        let mut bytes = [0; SIZE];
        self.0.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    }
}

/// Whether `error` only says that the thing, or the device or process that it
/// belongs to, is not there (any more).
fn is_absence(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.kind() == io::ErrorKind::NotADirectory
        || matches!(
            error.raw_os_error(),
            Some(libc::ENODEV | libc::ENXIO | libc::ESRCH)
        )
}

pub(crate) fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Text that can be shown: names come from other processes and from devices,
/// and must not drive the user's terminal.
pub(crate) fn clean(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| match c {
            '\n' | '\t' => c,
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::at(folder.path());
        fs::write(folder.path().join("file"), "x\n").unwrap();
        assert_eq!(host.text("/file").unwrap().as_deref(), Some("x"));
        assert_eq!(host.text("/none").unwrap(), None);
        assert_eq!(host.text("/file/below").unwrap(), None);
        assert_eq!(host.list("/none").unwrap(), None);
        assert!(!host.exists("/none").unwrap());
        assert!(host.text("/").is_err(), "a folder is no attribute");
        assert_eq!(host.operations(), 6);
    }

    #[test]
    fn control_characters_do_not_get_through() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::at(folder.path());
        fs::write(folder.path().join("comm"), b"\x1b[31mred\xff\n").unwrap();
        let text = host.text("/comm").unwrap().unwrap();
        assert_eq!(text, "\u{fffd}[31mred\u{fffd}");
    }

    #[test]
    fn an_endless_attribute_is_cut() {
        let host = Host::system();
        let text = host.bytes("/dev/zero").unwrap();
        assert_eq!(text.len() as u64, TEXT_LIMIT);
    }
}
