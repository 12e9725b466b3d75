use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Weak;

use super::{Mapping, export_dma_buf};
use crate::ports::HostMemory;

/// Memory of a device: part of a region, mapped into this process.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    mapping: Mapping,
    /// The device's file. Weak: memory alone does not keep a device open.
    device: Weak<OwnedFd>,
    region: u32,
    /// Where the memory begins in the region.
    offset: u64,
}

impl DeviceMemory {
    /// `mapping` is that of the bytes of `region` from `offset` on.
    pub(crate) fn new(mapping: Mapping, device: Weak<OwnedFd>, region: u32, offset: u64) -> Self {
        Self {
            mapping,
            device,
            region,
            offset,
        }
    }
}

// SAFETY: all of it is the mapping's, whose contract it is too.
unsafe impl HostMemory for DeviceMemory {
    fn address(&self) -> NonNull<u8> {
        self.mapping.address()
    }

    fn size(&self) -> usize {
        self.mapping.size()
    }

    fn dma_buf(&self) -> Option<io::Result<OwnedFd>> {
        let gone = || io::Error::from_raw_os_error(libc::ENODEV);
        let size = self.mapping.size() as u64;
        let export = |device: std::sync::Arc<OwnedFd>| {
            export_dma_buf(device.as_fd(), self.region, self.offset, size)
        };
        Some(self.device.upgrade().ok_or_else(gone).and_then(export))
    }

    fn is_device(&self) -> bool {
        true
    }
}
