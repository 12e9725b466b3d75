use devices::pci::{BarIndex, BarInfo, BarKind, ConfigSpace};

use super::ConfigError;
use crate::vfio::DeviceBackend;

/// The BARs that the device has: the size from its regions, the kind from the
/// type bits of its registers (PCIe 6.0 §7.5.1.2.1).
///
/// The ROM is none of them. A BAR to which the host gave no address is shown by the kernel as absent,
/// and so it is here.
///
/// # Errors
/// When a region does not fit its register.
pub(crate) fn discover(
    backend: &dyn DeviceBackend,
    snapshot: &ConfigSpace,
) -> Result<Vec<BarInfo>, ConfigError> {
    let mut bars = Vec::new();
    let mut upper_half = false;
    for index in BarIndex::all() {
        if std::mem::take(&mut upper_half) {
            continue;
        }
        let size = match backend.region(index.get().into()) {
            Some(region) if region.size > 0 => region.size,
            _ => continue,
        };
        let kind = kind(snapshot.u32(index.register()));
        let bar = BarInfo { index, kind, size };
        if !bar.is_valid() {
            return Err(ConfigError::Bar { index, kind, size });
        }
        upper_half = kind.is_64_bit();
        bars.push(bar);
    }
    Ok(bars)
}

/// What a BAR's low bits say. The type "below 1 MiB" of old means 32 bits.
pub(crate) fn kind(register: u32) -> BarKind {
    let prefetchable = register & 8 != 0;
    match register & 7 {
        4 => BarKind::Memory64 { prefetchable },
        bits if bits & 1 != 0 => BarKind::Io,
        _ => BarKind::Memory32 { prefetchable },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        let prefetchable = true;
        assert_eq!(kind(0xe1), BarKind::Io);
        assert_eq!(kind(0xe5), BarKind::Io);
        assert_eq!(kind(0xfc), BarKind::Memory64 { prefetchable });
        assert_eq!(kind(0xf8), BarKind::Memory32 { prefetchable });
        let prefetchable = false;
        assert_eq!(kind(0xf2), BarKind::Memory32 { prefetchable });
    }
}
