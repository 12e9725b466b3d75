use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;

/// MSI as the kernel keeps it (drivers/vfio/pci/vfio_pci_intrs.c): all host
/// vectors are allocated when it is turned on, and none later.
#[derive(Debug)]
pub(super) struct FakeMsi {
    /// How many vectors the device has.
    pub(super) vectors: u32,
    /// How many the host has left.
    pub(super) available: u32,
    /// The pending bits of the device.
    pub(super) pending: u32,
    /// How many host vectors there are; nothing while MSI is off.
    allocated: Option<u32>,
    armed: BTreeMap<u32, File>,
}

impl FakeMsi {
    pub(super) fn new(vectors: u32) -> Self {
        Self {
            vectors,
            available: u32::MAX,
            pending: 0,
            allocated: None,
            armed: BTreeMap::new(),
        }
    }

    pub(super) fn host_vectors(&self) -> Option<usize> {
        self.allocated.map(|count| count as usize)
    }

    /// The device raises a vector: signals its event, or sets its pending bit
    /// as the host masks what has no event.
    pub(super) fn raise(&mut self, vector: u32, may_signal: bool) -> bool {
        if may_signal && let Some(event) = self.armed.get_mut(&vector) {
            return event.write_all(&1_u64.to_ne_bytes()).is_ok();
        }
        self.pending |= 1_u32.checked_shl(vector).unwrap_or(0);
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
        if was_off && end > self.available {
            return match self.available {
                0 => Err(errno(libc::ENOSPC)),
                available => Ok(available),
            };
        }
        let allocated = *self.allocated.get_or_insert(end);
        for (vector, event) in (start..).zip(events) {
            if let Err(error) = self.set_one(vector, *event, allocated) {
                // All or nothing.
                for vector in start..=vector {
                    self.armed.remove(&vector);
                }
                if was_off {
                    self.turn_off();
                }
                return Err(error);
            }
        }
        Ok(0)
    }

    fn set_one(
        &mut self,
        vector: u32,
        event: Option<BorrowedFd<'_>>,
        allocated: u32,
    ) -> io::Result<()> {
        self.armed.remove(&vector);
        let Some(event) = event else {
            return Ok(());
        };
        if vector >= allocated {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut event = File::from(event.try_clone_to_owned()?);
        // What was pending in the device fires when it is unmasked there.
        if self.pending >> vector & 1 != 0 {
            self.pending &= !(1 << vector);
            event.write_all(&1_u64.to_ne_bytes())?;
        }
        self.armed.insert(vector, event);
        Ok(())
    }

    pub(super) fn turn_off(&mut self) {
        self.allocated = None;
        self.armed.clear();
    }
}
