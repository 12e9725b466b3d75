//! Has the kernel find a PCI device anew that came into a held group.
//!
//! When a device is added, Linux decides whether the host's DMA of it goes
//! through the IOMMU's tables, by the domain that its group has at that moment
//! (`iommu_setup_dma_ops`, called by `__iommu_probe_device`; 6.12). For one that
//! comes into a held group that is the guest's domain, so the answer is no. It
//! is not asked again when the group goes back to the host's domain
//! (`iommu_group_release_dma_owner`), where the tables hold nothing for such a
//! device: each of its accesses would be a fault. Removed and found anew in the
//! free group, it is as any other.

use std::slice;

use super::error::BindError;
use super::kernel::{probe, remove, rescan};
use super::restore::{Outcome, Restore};

impl Restore<'_> {
    /// Whether the device is to be found anew when its group is free. For any
    /// other than a PCI device there is no way to do that.
    pub(super) fn is_to_be_found_anew(&self) -> Result<bool, BindError> {
        let device = &self.entry.device;
        if !self.group_is_free || !self.entry.hot_added || device.bus_folder().is_none() {
            return Ok(false);
        }
        // An override that somebody set would be lost. It names VFIO's driver
        // as a rule, which sets DMA up by itself.
        if self.before().is_some() {
            return Ok(false);
        }
        // No scan finds a VF: only its PF makes it anew, and all others with it.
        self.kernel.is_virtual_function(device).map(|is| !is)
    }

    /// Removes the device, scans its bus, and sees to it that it is back. One
    /// that is not there may have been removed before this was cut short.
    pub(super) fn find_anew(&self) -> Result<Outcome, BindError> {
        let (kernel, device) = (self.kernel, &self.entry.device);
        let there = kernel.has(device)?;
        if !there && !kernel.has_bus(device)? {
            return Ok(Outcome::Gone);
        }
        self.check_users()?;
        let rescan = rescan(device);
        if there {
            self.unbind_ours()?;
            if let Some(driver) = kernel.driver(device)? {
                // Somebody gave it away, or it was found anew already.
                self.restore_override(self.before())?;
                let driver = Some(driver);
                return Ok(Outcome::Back { driver });
            }
            kernel.write(device, &remove(device), slice::from_ref(&rescan))?;
        }
        kernel.write(device, &rescan, &[])?;
        match kernel.has(device)? {
            true => {}
            false if there => {
                let (device, path) = (device.clone(), rescan.path);
                return Err(BindError::NotFoundAnew { device, path });
            }
            false => return Ok(Outcome::Gone),
        }
        // The scan asks the drivers too. That it is asked again shows a group
        // that is held after all.
        if kernel.driver(device)?.is_none() {
            kernel.write(device, &probe(device), &[])?;
        }
        let driver = kernel.driver(device)?;
        Ok(Outcome::Back { driver })
    }
}
