//! The 64-bit Linux boot protocol: the zero page.

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::GuestAddress;

use super::{BootError, BootFacts, memory_map};
use crate::memory::GuestRam;
use crate::vcpu::EntryPoint;

const ZERO_PAGE: u64 = 0x7000;
/// "Undefined" boot loader, as the protocol has it for those without a number.
const LOADER_TYPE: u8 = 0xff;
/// The kernel may use the heap of its setup code.
const LOADFLAG_CAN_USE_HEAP: u8 = 0x80;

/// Writes `struct boot_params` for a kernel whose file had `header`.
pub(super) fn write(
    ram: &GuestRam,
    facts: &BootFacts<'_>,
    header: setup_header,
    entry: u64,
) -> Result<EntryPoint, BootError> {
    let mut params = boot_params {
        hdr: header,
        acpi_rsdp_addr: facts.rsdp,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_TYPE;
    params.hdr.loadflags |= LOADFLAG_CAN_USE_HEAP;
    params.hdr.cmd_line_ptr = facts.cmdline.start as u32;
    if let Some(initrd) = facts.initrd {
        // Placed below `initrd_addr_max`, which has 32 bits.
        params.hdr.ramdisk_image = initrd.start as u32;
        params.hdr.ramdisk_size = initrd.size as u32;
    }
    let map = memory_map(facts.layout);
    for (slot, (range, kind)) in params.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry {
            addr: range.start,
            size: range.size,
            r#type: *kind as u32,
        };
    }
    params.e820_entries = map.len().min(params.e820_table.len()) as u8;
    let params = BootParams::new(&params, GuestAddress(ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, ram.view()).map_err(|_| {
        BootError::Write(
            "the zero page",
            vm_memory::GuestMemoryError::InvalidGuestAddress(GuestAddress(ZERO_PAGE)),
        )
    })?;
    Ok(EntryPoint::Linux64 {
        entry,
        boot_params: ZERO_PAGE,
    })
}
