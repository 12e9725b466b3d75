use kvm_ioctls::{Error, VcpuFd};

/// Keeps the `size` bytes that the vCPU shares with KVM (its
/// `KVM_GET_VCPU_MMAP_SIZE`) out of child processes. A mapping holds its file,
/// and a vCPU its VM: a child that is left behind, waiting for sysfs, would
/// keep both, and by that the groups of the guest's devices.
///
/// # Errors
/// The kernel's, when `size` is not that of the mapping.
pub(crate) fn keep_from_children(vcpu: &mut VcpuFd, size: usize) -> Result<(), Error> {
    let start = std::ptr::from_mut(vcpu.get_kvm_run()).cast();
    // SAFETY: the vCPU's mapping begins there and is as long as KVM says. The
    // advice changes nothing of this process's own memory.
    match unsafe { libc::madvise(start, size, libc::MADV_DONTFORK) } {
        0 => Ok(()),
        _ => Err(Error::last()),
    }
}
