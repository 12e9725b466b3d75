use kvm_ioctls::{Error, VcpuFd};
use vmm_sys_util::signal::SIGRTMIN;

/// Keeps the `size` bytes that the vCPU shares with KVM (its
/// `KVM_GET_VCPU_MMAP_SIZE`) out of child processes. A mapping holds its file,
/// and a vCPU its VM: a child that is left behind, waiting for sysfs, would
/// keep both, and by that the groups of the guest's devices.
///
/// # Errors
/// The kernel's, when `size` is not that of the mapping.
pub(crate) fn keep_from_children(vcpu: &mut VcpuFd, size: usize) -> Result<(), Error> {
    // The vCPU's mapping begins there and is as long as KVM says.
    let start = std::ptr::from_mut(vcpu.get_kvm_run()).cast();
    keep_range_from_children(start, size)
}

/// Keeps a mapping of KVM's out of child processes.
pub(super) fn keep_range_from_children(start: *mut u8, size: usize) -> Result<(), Error> {
    // SAFETY: the advice changes nothing of this process's own memory, whatever
    // is mapped there; the kernel refuses a range that isn't.
    match unsafe { libc::madvise(start.cast(), size, libc::MADV_DONTFORK) } {
        0 => Ok(()),
        _ => Err(Error::last()),
    }
}

/// The kernel's number of the calling thread.
pub(super) fn thread_id() -> libc::pid_t {
    // SAFETY: only tells a number.
    unsafe { libc::gettid() }
}

/// Takes the vCPU that this thread runs out of the guest, by the signal that
/// [`super::VcpuThreads`] handles. Nothing happens when the thread has ended.
pub(super) fn interrupt(thread: libc::pid_t) {
    if thread == 0 {
        return;
    }
    // SAFETY: only tells a number.
    let process = unsafe { libc::getpid() };
    // SAFETY: a signal to a thread of this process only; all of its threads
    // survive it, as the handler, which does nothing, was set before `thread` ran.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, SIGRTMIN()) };
}
