use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_bindings::{KvmIrqRouting, kvm_msi};
use kvm_ioctls::VmFd;
use passthrough::ports::MsiMessage;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::table::{Gsi, entries};

/// Names a watched event to the interrupts thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct WatchId(pub(super) u64);

/// What routes need of the kernel. The model test has another.
pub(super) trait Kernel: Send + Sync + Debug + 'static {
    /// An eventfd.
    type Event: Send + Sync + Debug;

    /// Replaces KVM's routing table by the interrupt controllers' pins and
    /// these MSI routes (`KVM_SET_GSI_ROUTING`).
    fn set_table(&self, messages: &BTreeMap<Gsi, MsiMessage>) -> io::Result<()>;

    /// Has KVM deliver `gsi` for each signal of `event`, and once for what it
    /// counts already (`KVM_IRQFD`).
    fn add_irqfd(&self, event: &Self::Event, gsi: Gsi) -> io::Result<()>;

    /// Ends that. All signals so far have been delivered and the counter is 0
    /// when this returns; later ones stay in the counter.
    fn remove_irqfd(&self, event: &Self::Event, gsi: Gsi) -> io::Result<()>;

    /// Sends `message` to the guest's vCPUs (`KVM_SIGNAL_MSI`). Says whether
    /// one took it.
    fn inject(&self, message: MsiMessage) -> io::Result<bool>;

    /// Wakes the interrupts thread with `id` while `event` counts anything.
    fn watch(&self, event: &Self::Event, id: WatchId) -> io::Result<()>;

    /// Ends that.
    fn unwatch(&self, event: &Self::Event) -> io::Result<()>;

    /// Takes what `event` counts; 0 for nothing.
    fn take(&self, event: &Self::Event) -> u64;
}

/// The kernel itself: a VM, and the epoll of its interrupts thread.
#[derive(Debug)]
pub(super) struct Kvm {
    vm: Arc<VmFd>,
    epoll: Epoll,
}

impl Kvm {
    pub(super) fn new(vm: Arc<VmFd>) -> io::Result<Self> {
        Ok(Self {
            vm,
            epoll: Epoll::new()?,
        })
    }

    /// Waits until watched events count something, at most `timeout`
    /// milliseconds, with -1 for ever. Answers how many of `events` it filled.
    pub(super) fn wait(&self, timeout: i32, events: &mut [EpollEvent]) -> io::Result<usize> {
        self.epoll.wait(timeout, events)
    }
}

impl Kernel for Kvm {
    type Event = EventFd;

    fn set_table(&self, messages: &BTreeMap<Gsi, MsiMessage>) -> io::Result<()> {
        let routing = KvmIrqRouting::from_entries(&entries(messages))
            .map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
        Ok(self.vm.set_gsi_routing(&routing)?)
    }

    fn add_irqfd(&self, event: &EventFd, gsi: Gsi) -> io::Result<()> {
        Ok(self.vm.register_irqfd(event, gsi.get())?)
    }

    fn remove_irqfd(&self, event: &EventFd, gsi: Gsi) -> io::Result<()> {
        Ok(self.vm.unregister_irqfd(event, gsi.get())?)
    }

    fn inject(&self, message: MsiMessage) -> io::Result<bool> {
        let message = kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..Default::default()
        };
        match self.vm.signal_msi(message) {
            Ok(vcpus) => Ok(vcpus > 0),
            // KVM's -1 for a message that no vCPU takes.
            Err(error) if error.errno() == libc::EPERM => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn watch(&self, event: &EventFd, id: WatchId) -> io::Result<()> {
        let interest = EpollEvent::new(EventSet::IN, id.0);
        self.epoll
            .ctl(ControlOperation::Add, event.as_raw_fd(), interest)
    }

    fn unwatch(&self, event: &EventFd) -> io::Result<()> {
        let none = EpollEvent::default();
        self.epoll
            .ctl(ControlOperation::Delete, event.as_raw_fd(), none)
    }

    fn take(&self, event: &EventFd) -> u64 {
        event.read().unwrap_or(0)
    }
}
