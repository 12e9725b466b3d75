use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use devices::pci::PciAddress;

use super::{GuestError, at};

/// The command register (PCIe 6.0 §7.5.1.1.3) and its bit for memory.
const COMMAND: u64 = 0x04;
const MEMORY: u16 = 1 << 1;
/// The first BAR (§7.5.1.2.1).
const BAR0: u64 = 0x10;
/// The pointer to the first capability.
const CAPABILITIES: u64 = 0x34;
/// As many as fit between the header and the end of the first 256 bytes.
const MOST_CAPABILITIES: usize = 48;
/// Config space of a PCI Express function.
const EXTENDED: u64 = 4096;

/// A PCI function, by its directory in sysfs.
#[derive(Debug)]
pub struct Function {
    address: PciAddress,
    directory: PathBuf,
    config: File,
}

/// A BAR, as the kernel found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Which of the six.
    pub index: u8,
    /// Where it was at the start.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

impl Function {
    /// The function at an address, or the first one with ids such as `1b36:0010`,
    /// or a later one, counted from 0: `1b36:0010/1`.
    ///
    /// # Errors
    /// [`GuestError`] when there is none.
    pub fn find(what: &str) -> Result<Self, GuestError> {
        let all = Path::new("/sys/bus/pci/devices");
        let mut names: Vec<_> = fs::read_dir(all)
            .map_err(at(all))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        let (wanted, number) = what.split_once('/').unwrap_or((what, "0"));
        let mut left: u32 = number.parse().unwrap_or(0);
        for name in names {
            let directory = all.join(&name);
            let id = |file| fs::read_to_string(directory.join(file)).unwrap_or_default();
            let ids = format!("{}:{}", id("vendor").trim(), id("device").trim());
            if name != wanted && ids.replace("0x", "") != wanted {
                continue;
            }
            if left == 0
                && let Ok(address) = name.parse()
            {
                return Self::open(address, directory);
            }
            left = left.saturating_sub(1);
        }
        Err(GuestError::Unexpected(format!("the guest has no {what}")))
    }

    fn open(address: PciAddress, directory: PathBuf) -> Result<Self, GuestError> {
        let path = directory.join("config");
        let config = OpenOptions::new().read(true).write(true).open(&path);
        Ok(Self {
            address,
            config: config.map_err(at(path))?,
            directory,
        })
    }

    /// Its address.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// The bridge above it, if it isn't on a root bus.
    ///
    /// # Errors
    /// [`GuestError`] when sysfs doesn't tell.
    pub fn parent(&self) -> Result<Option<Self>, GuestError> {
        let path = fs::canonicalize(&self.directory).map_err(at(&self.directory))?;
        let above = path.parent().and_then(Path::file_name);
        match above.and_then(|name| name.to_str()?.parse().ok()) {
            Some(address) => Self::open(address, self.directory.join("..")).map(Some),
            None => Ok(None),
        }
    }

    /// One of its other files, for reading and writing.
    ///
    /// # Errors
    /// [`GuestError`] when it can't be opened.
    pub fn file(&self, name: &str) -> Result<File, GuestError> {
        let path = self.directory.join(name);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        file.map_err(at(path))
    }

    fn failed(&self) -> impl FnOnce(std::io::Error) -> GuestError {
        at(self.directory.join("config"))
    }

    /// Reads config space in one access of `N` bytes, at a multiple of `N`.
    ///
    /// # Errors
    /// [`GuestError`] when the kernel refuses.
    pub fn read<const N: usize>(&self, offset: u64) -> Result<[u8; N], GuestError> {
        let mut bytes = [0; N];
        self.config
            .read_exact_at(&mut bytes, offset)
            .map_err(self.failed())?;
        Ok(bytes)
    }

    /// Writes config space in one access.
    ///
    /// # Errors
    /// [`GuestError`] when the kernel refuses.
    pub fn write<const N: usize>(&self, offset: u64, bytes: [u8; N]) -> Result<(), GuestError> {
        self.config
            .write_all_at(&bytes, offset)
            .map_err(self.failed())
    }

    /// Reads a register of 2 bytes.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn word(&self, offset: u64) -> Result<u16, GuestError> {
        Ok(u16::from_le_bytes(self.read(offset)?))
    }

    /// Reads a register of 4 bytes.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn dword(&self, offset: u64) -> Result<u32, GuestError> {
        Ok(u32::from_le_bytes(self.read(offset)?))
    }

    /// How many bytes its config space has.
    pub fn config_size(&self) -> u64 {
        let last: Result<[u8; 4], _> = self.read(EXTENDED - 4);
        if last.is_ok() { EXTENDED } else { 256 }
    }

    /// Memory decoding on or off.
    ///
    /// # Errors
    /// As [`Self::read`] and [`Self::write`].
    pub fn decode(&self, on: bool) -> Result<(), GuestError> {
        let command = self.word(COMMAND)?;
        let bit = if on { MEMORY } else { 0 };
        self.write(COMMAND, (command & !MEMORY | bit).to_le_bytes())
    }

    /// A BAR, where the kernel has it.
    ///
    /// # Errors
    /// [`GuestError`] when there is none of that number.
    pub fn bar(&self, index: u8) -> Result<Bar, GuestError> {
        let path = self.directory.join("resource");
        let text = fs::read_to_string(&path).map_err(at(path))?;
        let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
        let parse = |line: &str| {
            let mut words = line.split_whitespace().filter_map(number);
            let (start, end) = (words.next()?, words.next()?);
            (end > start).then(|| Bar {
                index,
                start,
                size: end - start + 1,
            })
        };
        let found = text.lines().nth(index.into()).and_then(parse);
        found.ok_or_else(|| self.none(format!("BAR {index}")))
    }

    /// Whether a memory BAR has 64 bits.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn is_wide(&self, index: u8) -> Result<bool, GuestError> {
        Ok(self.dword(BAR0 + u64::from(index) * 4)? & 7 == 4)
    }

    /// The address in a BAR's registers.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn bar_address(&self, index: u8) -> Result<u64, GuestError> {
        let register = BAR0 + u64::from(index) * 4;
        let low = u64::from(self.dword(register)? & !0xf);
        if !self.is_wide(index)? {
            return Ok(low);
        }
        Ok(low | u64::from(self.dword(register + 4)?) << 32)
    }

    /// Writes an address into a BAR's registers: the low half first, as Linux
    /// does, and each whether it changes or not.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn move_bar(&self, index: u8, address: u64) -> Result<(), GuestError> {
        let register = BAR0 + u64::from(index) * 4;
        let bytes = address.to_le_bytes();
        let wide = self.is_wide(index)?;
        self.write(register, [bytes[0], bytes[1], bytes[2], bytes[3]])?;
        if wide {
            self.write(register + 4, [bytes[4], bytes[5], bytes[6], bytes[7]])?;
        }
        Ok(())
    }

    /// Where a capability stands.
    ///
    /// # Errors
    /// [`GuestError`] when it isn't in the list.
    pub fn capability(&self, id: u8) -> Result<u64, GuestError> {
        let [mut next] = self.read(CAPABILITIES)?;
        for _ in 0..MOST_CAPABILITIES {
            let offset = u64::from(next & !3);
            if offset == 0 {
                break;
            }
            let [found, after] = self.read(offset)?;
            if found == id {
                return Ok(offset);
            }
            next = after;
        }
        Err(self.none(format!("capability {id:#04x}")))
    }

    /// That the function has no such thing.
    pub(super) fn none(&self, what: String) -> GuestError {
        let function = self.address.to_string();
        GuestError::None { function, what }
    }
}
