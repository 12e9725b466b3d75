use devices::pci::PciAddress;

use super::boot::parse_address;
use super::{Host, HostError};

impl Host {
    /// Has a device make `count` virtual functions, on no driver, and gives
    /// their addresses. They are named after the device: `disk-vf0`, `disk-vf1`.
    /// With 0 they go away.
    ///
    /// # Errors
    /// [`HostError::Failed`] when the kernel or the device's driver refuses.
    pub fn enable_vfs(&self, device: &str, count: u8) -> Result<Vec<PciAddress>, HostError> {
        let address = self.address(device)?;
        let listing = self.shell(&format!(
            "cd /sys/bus/pci/devices/{address}
             echo 0 > sriov_drivers_autoprobe
             echo {count} > sriov_numvfs
             number=0
             while [ -e virtfn$number ]; do
                 basename \"$(readlink virtfn$number)\"
                 number=$((number + 1))
             done"
        ))?;
        let vfs: Vec<_> = listing
            .lines()
            .map(parse_address)
            .collect::<Result<_, _>>()?;
        let mut known = self.known();
        let prefix = format!("{device}-vf");
        known.retain(|name, _| !name.starts_with(&prefix));
        for (vf, number) in vfs.iter().zip(0..) {
            known.insert(format!("{prefix}{number}"), *vf);
        }
        Ok(vfs)
    }
}
