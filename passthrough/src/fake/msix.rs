use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;

/// Bytes of the pending bits of the largest table.
pub(super) const PENDING_BYTES: usize = 256;

/// MSI-X as the kernel keeps it (drivers/vfio/pci/vfio_pci_intrs.c).
#[derive(Debug)]
pub(super) struct FakeMsix {
    /// How many the device has.
    pub(super) vectors: u32,
    /// How many the host has left.
    pub(super) available: u32,
    /// The host can't add vectors while MSI-X is on.
    pub(super) no_resize: bool,
    /// The pending bits of the device.
    pub(super) pending: [u8; PENDING_BYTES],
    /// Host vectors; nothing while MSI-X is off.
    allocated: Option<Vec<u32>>,
    armed: BTreeMap<u32, File>,
}

impl FakeMsix {
    pub(super) fn new(vectors: u32) -> Self {
        Self {
            vectors,
            available: u32::MAX,
            no_resize: false,
            pending: [0; PENDING_BYTES],
            allocated: None,
            armed: BTreeMap::new(),
        }
    }

    pub(super) fn host_vectors(&self) -> Option<usize> {
        self.allocated.as_ref().map(Vec::len)
    }

    /// The device raises a vector: signals its event, or sets its pending bit.
    pub(super) fn raise(&mut self, vector: u32, may_signal: bool) -> bool {
        if may_signal && let Some(event) = self.armed.get_mut(&vector) {
            return event.write_all(&1_u64.to_ne_bytes()).is_ok();
        }
        if let Some(byte) = self.pending.get_mut(vector as usize / 8) {
            *byte |= 1 << (vector % 8);
        }
        false
    }

    /// As `VFIO_DEVICE_SET_IRQS`: 0, or how many vectors there could be.
    pub(super) fn set(&mut self, start: u32, events: &[Option<BorrowedFd<'_>>]) -> io::Result<u32> {
        let errno = io::Error::from_raw_os_error;
        let end = start + events.len() as u32;
        if end > self.vectors {
            return Err(errno(libc::EINVAL));
        }
        let was_off = self.allocated.is_none();
        if was_off {
            if end > self.available {
                return match self.available {
                    0 => Err(errno(libc::ENOSPC)),
                    available => Ok(available),
                };
            }
            self.allocated = Some((0..end).collect());
        }
        for (vector, event) in (start..).zip(events) {
            if let Err(error) = self.set_one(vector, *event) {
                // All or nothing.
                for vector in start..=vector {
                    self.armed.remove(&vector);
                }
                if was_off {
                    self.allocated = None;
                }
                return Err(error);
            }
        }
        Ok(0)
    }

    fn set_one(&mut self, vector: u32, event: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.armed.remove(&vector);
        let Some(event) = event else {
            return Ok(());
        };
        let allocated = self.allocated.get_or_insert_default();
        if !allocated.contains(&vector) {
            if self.no_resize {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            if allocated.len() as u32 >= self.available {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            allocated.push(vector);
        }
        let mut event = File::from(event.try_clone_to_owned()?);
        let pending = &mut self.pending[vector as usize / 8];
        let bit = 1 << (vector % 8);
        // What was pending in the device fires when it is unmasked there.
        if *pending & bit != 0 {
            *pending &= !bit;
            event.write_all(&1_u64.to_ne_bytes())?;
        }
        self.armed.insert(vector, event);
        Ok(())
    }

    pub(super) fn disable(&mut self) {
        self.allocated = None;
        self.armed.clear();
    }
}
