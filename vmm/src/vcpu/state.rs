use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::GuestRam;

/// Where and in which mode the first vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryPoint {
    /// The 64-bit entry of the Linux boot protocol
    /// (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").
    Linux64 {
        /// The first instruction.
        entry: u64,
        /// `struct boot_params`, for RSI.
        boot_params: u64,
    },
    /// The 32-bit entry of the PVH boot protocol
    /// (xen/include/public/arch-x86/hvm/start_info.h).
    Pvh {
        /// The first instruction.
        entry: u32,
        /// `struct hvm_start_info`, for EBX.
        start_info: u32,
    },
}

/// Why a vCPU could not be set up.
#[derive(Debug, Error)]
pub enum SetupError {
    /// KVM refused a part of its state.
    #[error("KVM refuses the vCPU's {0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    /// The tables did not fit into guest memory.
    #[error("cannot write the boot page tables into guest memory")]
    Tables(#[from] GuestMemoryError),
}

const GDT: u64 = 0x500;
const IDT: u64 = 0x520;
const STACK: u64 = 0x8ff0;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const PD: u64 = 0xb000;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MSR_IA32_MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

/// Puts the boot vCPU at `entry`. The others need nothing: KVM holds them
/// until the guest starts them.
///
/// # Errors
/// [`SetupError`] when KVM or guest memory refuses.
pub fn set_up(vcpu: &VcpuFd, ram: &GuestRam, entry: EntryPoint) -> Result<(), SetupError> {
    let long_mode = matches!(entry, EntryPoint::Linux64 { .. });
    write_gdt(ram, long_mode)?;
    if long_mode {
        write_page_tables(ram)?;
    }
    set_segments(vcpu, long_mode)?;
    let regs = match entry {
        EntryPoint::Linux64 { entry, boot_params } => kvm_regs {
            rflags: 2,
            rip: entry,
            rsi: boot_params,
            rsp: STACK,
            rbp: STACK,
            ..Default::default()
        },
        EntryPoint::Pvh { entry, start_info } => kvm_regs {
            rflags: 2,
            rip: entry.into(),
            rbx: start_info.into(),
            ..Default::default()
        },
    };
    vcpu.set_regs(&regs)
        .map_err(|e| SetupError::Kvm("general registers", e))
}

/// Settings that every vCPU has from reset on: the FPU as after FNINIT, fast
/// strings, all memory write-back as firmware would leave the MTRRs, and no
/// interrupts from the legacy PIC.
pub(super) fn set_reset_state(vcpu: &VcpuFd) -> Result<(), SetupError> {
    let fpu = kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    };
    vcpu.set_fpu(&fpu).map_err(|e| SetupError::Kvm("FPU", e))?;
    let msr = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    for entry in [
        msr(MSR_IA32_MISC_ENABLE, MSR_IA32_MISC_ENABLE_FAST_STRING),
        msr(MSR_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK),
    ] {
        let msrs = Msrs::from_entries(&[entry])
            .map_err(|_| SetupError::Kvm("MSRs", kvm_ioctls::Error::new(libc::EINVAL)))?;
        // KVM sets as many as it knows. A CPU without one does without it.
        let set = vcpu
            .set_msrs(&msrs)
            .map_err(|e| SetupError::Kvm("MSRs", e))?;
        if set == 0 {
            log::debug!("KVM has no MSR {:#x}", entry.index);
        }
    }
    mask_lint0(vcpu)
}

/// KVM leaves the boot CPU's LINT0 open for the PIC, and Linux keeps what it
/// finds. A Linux on hardware-reduced ACPI never programs the PIC, whose first
/// interrupt would then arrive as an exception's vector.
fn mask_lint0(vcpu: &VcpuFd) -> Result<(), SetupError> {
    const LVT_LINT0: usize = 0x350;
    const MASKED_IN_BYTE_2: std::ffi::c_char = 1;
    let refused = |error| SetupError::Kvm("local APIC", error);
    let mut apic = vcpu.get_lapic().map_err(refused)?;
    if let Some(byte) = apic.regs.get_mut(LVT_LINT0 + 2) {
        *byte |= MASKED_IN_BYTE_2;
    }
    vcpu.set_lapic(&apic).map_err(refused)
}

/// One entry of the GDT, decoded as KVM wants it.
fn segment(kind: u8, long: bool, selector: u16) -> kvm_segment {
    let code = kind & 8 != 0;
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!(code && long)),
        s: 1,
        l: u8::from(code && long),
        g: 1,
        ..Default::default()
    }
}

/// The same entry in the format of the table (Intel SDM vol. 3A §3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let access =
        u64::from(segment.type_) | u64::from(segment.s) << 4 | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    // A flat segment: limit 0xfffff pages, base 0.
    0xffff | access << 40 | 0xf << 48 | flags << 52
}

const CODE: u8 = 0xb;
const DATA: u8 = 0x3;
/// The selectors that the Linux boot protocol asks for: `__BOOT_CS`, `__BOOT_DS`.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;

fn write_gdt(ram: &GuestRam, long_mode: bool) -> Result<(), SetupError> {
    let entries = [
        0,
        0,
        descriptor(&segment(CODE, long_mode, CODE_SELECTOR)),
        descriptor(&segment(DATA, long_mode, DATA_SELECTOR)),
    ];
    for (index, entry) in entries.into_iter().enumerate() {
        ram.view()
            .write_obj(entry, GuestAddress(GDT + index as u64 * 8))?;
    }
    ram.view().write_obj(0u64, GuestAddress(IDT))?;
    Ok(())
}

/// Maps the first 4 GiB one to one with 2 MiB pages.
fn write_page_tables(ram: &GuestRam) -> Result<(), SetupError> {
    const PRESENT_WRITABLE: u64 = 3;
    const HUGE: u64 = 1 << 7;
    let view = ram.view();
    view.write_obj(PDPT | PRESENT_WRITABLE, GuestAddress(PML4))?;
    for gib in 0..4 {
        let table = PD + gib * 0x1000;
        view.write_obj(table | PRESENT_WRITABLE, GuestAddress(PDPT + gib * 8))?;
        for entry in 0..512 {
            let page = gib << 30 | entry << 21;
            view.write_obj(
                page | PRESENT_WRITABLE | HUGE,
                GuestAddress(table + entry * 8),
            )?;
        }
    }
    Ok(())
}

fn set_segments(vcpu: &VcpuFd, long_mode: bool) -> Result<(), SetupError> {
    let mut sregs = vcpu
        .get_sregs()
        .map_err(|e| SetupError::Kvm("segment registers", e))?;
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 4 * 8 - 1;
    sregs.idt.base = IDT;
    sregs.idt.limit = 7;
    sregs.cs = segment(CODE, long_mode, CODE_SELECTOR);
    let data = segment(DATA, long_mode, DATA_SELECTOR);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    // A busy 32-bit (or 64-bit) task segment: Intel CPUs refuse to enter without.
    sregs.tr = kvm_segment {
        limit: 0x67,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    if long_mode {
        sregs.cr3 = PML4;
        sregs.cr4 = CR4_PAE;
        sregs.cr0 |= CR0_PG;
        sregs.efer = EFER_LME | EFER_LMA;
    }
    vcpu.set_sregs(&sregs)
        .map_err(|e| SetupError::Kvm("segment registers", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_flat() {
        assert_eq!(
            descriptor(&segment(CODE, false, 0x10)),
            0x00cf_9b00_0000_ffff
        );
        assert_eq!(
            descriptor(&segment(CODE, true, 0x10)),
            0x00af_9b00_0000_ffff
        );
        assert_eq!(
            descriptor(&segment(DATA, true, 0x18)),
            0x00cf_9300_0000_ffff
        );
    }

    #[test]
    fn page_tables_map_one_to_one() {
        let range = crate::memory::GuestRange {
            start: 0,
            size: 2 << 20,
        };
        let ram = GuestRam::new(&[range]).unwrap();
        write_page_tables(&ram).unwrap();
        let entry: u64 = ram
            .view()
            .read_obj(GuestAddress(PD + 0x3000 + 511 * 8))
            .unwrap();
        assert_eq!(entry, 0xffe0_0000 | 0x83);
    }
}
