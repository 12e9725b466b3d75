use devices::pci::{BarIndex, BarInfo, BarKind, PciAddress};
use thiserror::Error;

use super::options::RomSource;
use crate::limit::LogLimit;
use crate::vfio::DeviceBackend;

/// VFIO's region of the ROM.
const REGION: u32 = 6;
/// A ROM's sizes (PCIe 6.0 §7.5.1.2.4).
const SMALLEST: usize = 2 << 10;
const LARGEST: usize = 16 << 20;
/// How much is read from the device at a time: devices give a few MiB a
/// second, and the guest waits.
const CHUNK: usize = 64 << 10;
/// How every image begins (PCI Firmware 3.2 §5.1.1).
const SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// Messages about one ROM.
const MAX_MESSAGES: u32 = 1;

/// Why bytes can't be a ROM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RomError {
    /// There are none.
    #[error("it is empty; rom=off is how to have none")]
    Empty,
    /// There are too many.
    #[error("it has {0} bytes, and a ROM has at most 16 MiB: is it a ROM image?")]
    TooLarge(usize),
}

/// The ROM that a guest sees.
#[derive(Debug)]
pub(super) struct Rom {
    host: PciAddress,
    info: BarInfo,
    contents: Contents,
    log: LogLimit,
}

#[derive(Debug)]
enum Contents {
    /// These bytes, and all ones after them.
    Given(Vec<u8>),
    /// The device's, in pieces of [`CHUNK`] bytes, as far as the guest has
    /// looked: a ROM never changes.
    Device(Vec<Option<Vec<u8>>>),
}

impl Rom {
    /// The ROM of the device at `host`; nothing when the guest is to have none.
    ///
    /// # Errors
    /// When the bytes that are to replace it can't be a ROM.
    pub(super) fn new(
        host: PciAddress,
        source: RomSource,
        backend: &dyn DeviceBackend,
    ) -> Result<Option<Self>, RomError> {
        let (size, contents) = match source {
            RomSource::Off => return Ok(None),
            RomSource::File(bytes) => {
                if !bytes.starts_with(&SIGNATURE) {
                    log::warn!(
                        "{host}: the file given as its ROM does not begin with 55 aa as ROM images \
                         do: no firmware will run it"
                    );
                }
                (given_size(&bytes)? as u64, Contents::Given(bytes))
            }
            RomSource::Device => {
                let region = backend.region(REGION).filter(|region| region.readable);
                let Some(size) = region.map(|region| region.size) else {
                    return Ok(None);
                };
                (size, Contents::Device(Vec::new()))
            }
        };
        let info = BarInfo {
            index: BarIndex::ROM,
            kind: BarKind::Rom,
            size,
        };
        if !info.is_valid() {
            log::debug!("{host}: no register can express a ROM of {size:#x} bytes: left out");
            return Ok(None);
        }
        let log = LogLimit::new(MAX_MESSAGES);
        Ok(Some(Self {
            host,
            info,
            contents,
            log,
        }))
    }

    /// Its register and size.
    pub(super) fn info(&self) -> BarInfo {
        self.info
    }

    /// The guest reads. `data` is all ones, and stays so where nothing answers.
    pub(super) fn read(&mut self, backend: &dyn DeviceBackend, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..self.info.size) {
            let Ok(at) = usize::try_from(at) else { return };
            let found = match &self.contents {
                Contents::Given(bytes) => bytes.get(at).copied(),
                Contents::Device(_) => match self.chunk(backend, at / CHUNK) {
                    Some(chunk) => chunk.get(at % CHUNK).copied(),
                    None => return,
                },
            };
            *byte = found.unwrap_or(0xff);
        }
    }

    /// A piece of the device's ROM, read when it is first looked at. What
    /// fails is tried again by the next look.
    fn chunk(&mut self, backend: &dyn DeviceBackend, index: usize) -> Option<&[u8]> {
        let Contents::Device(chunks) = &mut self.contents else {
            return None;
        };
        if chunks.len() <= index {
            chunks.resize(index + 1, None);
        }
        if chunks[index].is_none() {
            let start = (index * CHUNK) as u64;
            let size = self.info.size.checked_sub(start)?.min(CHUNK as u64);
            let mut bytes = vec![0; usize::try_from(size).ok()?];
            match backend.region_read(REGION, start, &mut bytes) {
                Ok(()) => chunks[index] = Some(bytes),
                Err(error) => {
                    if let Some(end) = self.log.admit() {
                        log::warn!("{}: its ROM can't be read: {error}{end}", self.host);
                    }
                }
            }
        }
        chunks[index].as_deref()
    }
}

/// Bytes of the ROM that holds `bytes`.
fn given_size(bytes: &[u8]) -> Result<usize, RomError> {
    match bytes.len() {
        0 => Err(RomError::Empty),
        size if size > LARGEST => Err(RomError::TooLarge(size)),
        size => Ok(size.next_power_of_two().max(SMALLEST)),
    }
}
