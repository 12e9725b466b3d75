//! The PVH boot protocol: the start info page.

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::GuestAddress;

use super::{BootError, BootFacts, memory_map};
use crate::memory::GuestRam;
use crate::vcpu::EntryPoint;

const START_INFO: u64 = 0x6000;
const MODULES: u64 = 0x6100;
const MEMORY_MAP: u64 = 0x7000;
/// "xEn3" with the 0x80 bit of the first byte set.
const MAGIC: u32 = 0x336e_c578;
/// The version with a memory map.
const VERSION: u32 = 1;

/// Writes `struct hvm_start_info`, its module list and memory map.
pub(super) fn write(
    ram: &GuestRam,
    facts: &BootFacts<'_>,
    entry: u32,
) -> Result<EntryPoint, BootError> {
    let map: Vec<_> = memory_map(facts.layout)
        .into_iter()
        .map(|(range, kind)| hvm_memmap_table_entry {
            addr: range.start,
            size: range.size,
            type_: kind as u32,
            ..Default::default()
        })
        .collect();
    let modules: Vec<_> = facts
        .initrd
        .iter()
        .map(|initrd| hvm_modlist_entry {
            paddr: initrd.start,
            size: initrd.size,
            ..Default::default()
        })
        .collect();
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        cmdline_paddr: facts.cmdline.start,
        rsdp_paddr: facts.rsdp,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        nr_modules: modules.len() as u32,
        modlist_paddr: if modules.is_empty() { 0 } else { MODULES },
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(START_INFO));
    params.set_sections(&map, GuestAddress(MEMORY_MAP));
    if !modules.is_empty() {
        params.set_modules(&modules, GuestAddress(MODULES));
    }
    PvhBootConfigurator::write_bootparams(&params, ram.view()).map_err(|_| {
        BootError::Write(
            "the PVH start info",
            vm_memory::GuestMemoryError::InvalidGuestAddress(GuestAddress(START_INFO)),
        )
    })?;
    Ok(EntryPoint::Pvh {
        entry,
        start_info: START_INFO as u32,
    })
}
