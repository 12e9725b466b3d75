use std::fs;
use std::ptr;

use vmm::kvm::Hypervisor;

use crate::kernel::has_kvm;

/// What the kernel notes about the mapping at `address` (proc_pid_smaps(5)).
fn flags(address: usize) -> String {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let start = format!("{address:x}-");
    let lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
    let mut flags = lines.filter_map(|line| line.strip_prefix("VmFlags:"));
    let flags = flags.next().unwrap_or_else(|| panic!("{start}: {smaps}"));
    format!("{flags} ")
}

#[test]
fn no_child_keeps_a_vcpu_open() {
    if !has_kvm() {
        return;
    }
    let hypervisor = Hypervisor::new().unwrap();
    let vcpus = hypervisor.vcpus(2).unwrap();
    assert_eq!(vcpus.len(), 2);
    for mut vcpu in vcpus {
        let flags = flags(ptr::from_mut(vcpu.get_kvm_run()).addr());
        // Shared with KVM, and not copied on fork.
        assert!(flags.contains(" sh ") && flags.contains(" dc "), "{flags}");
    }
}
