use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VmFd};

/// What CPUID tells vCPU `id` of `cpus`: all that KVM can virtualize here, with
/// the topology of one socket of single-threaded cores.
///
/// `supported` is KVM's own answer (`KVM_GET_SUPPORTED_CPUID`).
pub fn guest_cpuid(supported: &CpuId, vm: &VmFd, id: u8, cpus: u8) -> CpuId {
    let mut cpuid = supported.clone();
    // KVM emulates the deadline timer in its APIC but leaves saying so to the
    // monitor on kernels before 6.13 (KVM_CAP_TSC_DEADLINE_TIMER).
    let deadline_timer = vm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice() {
        fit(entry, id.into(), cpus.into(), deadline_timer);
    }
    cpuid
}

/// How many physical address bits the guest's CPU has
/// (leaf 0x8000_0008, EAX bits 7:0).
pub(crate) fn address_bits(supported: &CpuId) -> u8 {
    supported
        .as_slice()
        .iter()
        .find(|entry| entry.function == 0x8000_0008)
        .map_or(36, |entry| entry.eax as u8)
        .clamp(32, 52)
}

/// All that KVM can virtualize on this host.
pub(crate) fn supported(kvm: &Kvm) -> Result<CpuId, kvm_ioctls::Error> {
    kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
}

fn fit(entry: &mut kvm_cpuid_entry2, id: u32, cpus: u32, deadline_timer: bool) {
    // Bits that an APIC id needs for its core part.
    let core_bits = cpus.next_power_of_two().trailing_zeros();
    match (entry.function, entry.index) {
        (0x1, _) => {
            // EBX 31:24 initial APIC id, 23:16 logical processors, 15:8 CLFLUSH.
            entry.ebx = id << 24 | cpus << 16 | entry.ebx & 0xffff;
            entry.ecx |= 1 << 31;
            set(&mut entry.ecx, 24, deadline_timer);
            // HTT: more than one logical processor in the package.
            set(&mut entry.edx, 28, cpus > 1);
        }
        // Deterministic caches: first and second level belong to one core.
        (0x4, index) if entry.eax & 0x1f != 0 => {
            let sharing = if index < 3 { 0 } else { cpus - 1 };
            let cores = (1 << core_bits) - 1;
            entry.eax = entry.eax & 0x3fff | sharing << 14 | cores << 26;
        }
        // Extended topology: a level of one thread, then the cores.
        (0xb | 0x1f, 0) => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 1, 1 << 8, id);
        }
        (0xb | 0x1f, 1) => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (core_bits, cpus, 2 << 8 | 1, id);
        }
        (0xb | 0x1f, index) => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, index & 0xff, id);
        }
        // AMD: ECX 15:12 size of the core part of the APIC id, 7:0 cores - 1.
        (0x8000_0008, _) => {
            entry.ecx = entry.ecx & !0xf0ff | core_bits << 12 | (cpus - 1);
        }
        // AMD: ECX bit 1, the package has several cores.
        (0x8000_0001, _) => set(&mut entry.ecx, 1, cpus > 1),
        // AMD caches: like leaf 4.
        (0x8000_001d, index) if entry.eax & 0x1f != 0 => {
            let sharing = if index < 3 { 0 } else { cpus - 1 };
            entry.eax = entry.eax & !(0xfff << 14) | sharing << 14;
        }
        // AMD: EAX extended APIC id, EBX 7:0 core id, ECX 7:0 node id.
        (0x8000_001e, _) => (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xff, 0),
        _ => {}
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = *register & !(1 << bit) | u32::from(on) << bit;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: 0xffff_ffff,
            ebx: 0xffff_ffff,
            ecx: 0xffff_ffff,
            edx: 0xffff_ffff,
            ..Default::default()
        }
    }

    #[test]
    fn each_cpu_has_its_own_apic_id() {
        let mut leaf = entry(1, 0);
        fit(&mut leaf, 3, 4, true);
        assert_eq!(leaf.ebx >> 24, 3);
        assert_eq!(leaf.ebx >> 16 & 0xff, 4);
        assert_ne!(leaf.ecx & 1 << 24, 0);
        let mut leaf = entry(0xb, 1);
        fit(&mut leaf, 3, 4, true);
        assert_eq!((leaf.eax, leaf.ebx, leaf.edx), (2, 4, 3));
    }

    #[test]
    fn a_single_cpu_is_not_multithreaded() {
        let mut leaf = entry(1, 0);
        fit(&mut leaf, 0, 1, false);
        assert_eq!(leaf.edx & 1 << 28, 0);
        assert_eq!(leaf.ecx & 1 << 24, 0);
        let mut leaf = entry(0x8000_0008, 0);
        fit(&mut leaf, 0, 1, false);
        assert_eq!(leaf.ecx & 0xf0ff, 0);
    }

    #[test]
    fn topology_levels_end() {
        let mut leaf = entry(0xb, 2);
        fit(&mut leaf, 1, 2, true);
        assert_eq!((leaf.eax, leaf.ebx, leaf.ecx), (0, 0, 2));
    }
}
