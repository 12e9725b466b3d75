use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use kvm_ioctls::{Cap, IoEventAddress, VcpuFd, VmFd};
use passthrough::ports::MemoryMapping;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use super::ring::Ring;
use super::{Buses, mapping};

/// How long an unfinished output waits for the guest to go on with it.
const LULL: Duration = Duration::from_millis(100);

/// Ports whose writes may be late.
#[derive(Clone, Debug)]
pub struct PostedPorts {
    /// Writes to these alone are kept back.
    pub ports: Range<u16>,
    /// Of a device whose writes matter even if no other access ever follows.
    pub unfollowed: Option<Unfollowed>,
}

/// What happens when a guest leaves a device alone.
#[derive(Clone)]
pub struct Unfollowed {
    /// All ports of the device: an access to any says that it is in use.
    pub device: Range<u16>,
    /// Is called once its writes are carried out, by a vCPU's thread.
    pub flush: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Unfollowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Unfollowed").field(&self.device).finish()
    }
}

/// Writes that KVM gathers in a ring, instead of leaving the guest for each
/// (Documentation/virt/kvm/api.rst, `KVM_REGISTER_COALESCED_MMIO`; for ports
/// since Linux 4.20).
///
/// It is for registers whose writes nobody notices before the next access: one
/// that selects what another port reads, the transmitter of a serial port, a
/// table that is not in use yet. That next access leaves the guest, and each
/// thread that has left it carries out what the ring holds before it does
/// anything else. So all writes reach the devices in the guest's order, whichever
/// vCPU they came from.
///
/// A write that nothing follows ([`Unfollowed`]) would wait for ever: that of a
/// guest that hangs after its last words, or that sends by interrupts and asks
/// nothing in between. When the device has been left alone for 100 ms, a vCPU is
/// taken out of the guest once to see to it.
///
/// Lock order: `turn`, then those of the devices.
pub struct CoalescedWrites {
    vm: Arc<VmFd>,
    ring: Ring,
    /// The right to carry writes out.
    turn: Mutex<()>,
    unfollowed: Vec<Unfollowed>,
    timer: OwnedFd,
    /// A device whose writes may be the last was accessed since the timer was set.
    touched: AtomicBool,
    /// The timer runs.
    armed: AtomicBool,
    /// They have been left alone, and whoever leaves the guest next sees to it.
    lull: AtomicBool,
    /// Who is taken out of the guest; 0 before it runs.
    thread: AtomicI32,
    /// Writes somewhere may no longer be late, and some may have been.
    ended: AtomicBool,
}

impl CoalescedWrites {
    /// The ring of `vcpu`'s VM `vm`, which gathers nothing yet. Nothing where KVM
    /// has none: every write leaves the guest then.
    pub fn new(vm: &Arc<VmFd>, vcpu: &VcpuFd) -> Option<Self> {
        if !vm.check_extension(Cap::CoalescedMmio) {
            return None;
        }
        Self::of(vm, vcpu)
            .inspect_err(|error| log::debug!("every write leaves the guest: {error}"))
            .ok()
    }

    fn of(vm: &Arc<VmFd>, vcpu: &VcpuFd) -> io::Result<Self> {
        Ok(Self {
            vm: Arc::clone(vm),
            ring: Ring::of(vcpu)?,
            turn: Mutex::default(),
            unfollowed: Vec::new(),
            timer: rustix::time::timerfd_create(
                TimerfdClockId::Monotonic,
                TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
            )?,
            touched: AtomicBool::new(false),
            armed: AtomicBool::new(false),
            lull: AtomicBool::new(false),
            thread: AtomicI32::new(0),
            ended: AtomicBool::new(false),
        })
    }

    /// Gathers the writes to these ports, where KVM can (Linux 4.20).
    pub fn post_ports(&mut self, posted: &[PostedPorts]) {
        if !self.vm.check_extension(Cap::CoalescedPio) {
            return;
        }
        for PostedPorts { ports, unfollowed } in posted {
            let first = IoEventAddress::Pio(ports.start.into());
            match self.vm.register_coalesced_mmio(first, ports.len() as u32) {
                Ok(()) => self.unfollowed.extend(unfollowed.clone()),
                Err(error) => log::debug!("writes to {ports:x?} leave the guest: {error}"),
            }
        }
    }

    /// Gathers the writes to `size` bytes at guest physical `address`, where
    /// nothing is mapped, until the answer is dropped. Nothing when KVM refuses.
    pub fn post_memory(self: &Arc<Self>, address: u64, size: u64) -> Option<Posting> {
        let size = u32::try_from(size).ok()?;
        let first = IoEventAddress::Mmio(address);
        self.vm
            .register_coalesced_mmio(first, size)
            .inspect_err(|error| log::debug!("writes at {address:#x} leave the guest: {error}"))
            .ok()?;
        Some(Posting {
            writes: Arc::clone(self),
            address,
            size,
        })
    }

    /// Carries out what the guest wrote before it was left. Costs three loads
    /// when there is nothing.
    pub fn carry_out(&self, buses: &Buses) {
        if self.ring.is_empty() && !self.lull.load(Ordering::Acquire) {
            return;
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        while self.ring.next(|write| {
            let bus = if write.port { &buses.pio } else { &buses.mmio };
            bus.write(write.address, write.data());
        }) {}
        if self.lull.swap(false, Ordering::AcqRel) {
            for device in &self.unfollowed {
                (device.flush)();
            }
        }
    }

    /// To be called by a thread before it enters the guest again. What it did
    /// may have ended that writes are late: those that are, come now.
    pub(super) fn before_entry(&self, buses: &Buses) {
        if self.ended.swap(false, Ordering::AcqRel) {
            self.carry_out(buses);
        }
    }

    /// The thread that calls it runs a vCPU from now on.
    pub(super) fn runs_here(&self) {
        self.thread.store(mapping::thread_id(), Ordering::Release);
    }

    /// The guest has accessed `port`, and will perhaps write on without leaving.
    pub(super) fn accessed(&self, port: u16) {
        if self.unfollowed.iter().any(|d| d.device.contains(&port)) {
            self.touched.store(true, Ordering::SeqCst);
            self.arm();
        }
    }

    /// Readable when [`Self::lull`] is to be called.
    pub fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// Time has passed: takes a vCPU out of the guest if nothing has happened
    /// meanwhile.
    pub fn lull(&self) {
        let mut expirations = [0; 8];
        if rustix::io::read(&self.timer, &mut expirations).is_err() {
            return;
        }
        // First this: who comes now either is seen below or arms it again.
        self.armed.store(false, Ordering::SeqCst);
        if self.touched.swap(false, Ordering::SeqCst) {
            self.arm();
        } else {
            self.lull.store(true, Ordering::Release);
            mapping::interrupt(self.thread.load(Ordering::Acquire));
        }
    }

    fn arm(&self) {
        if self.armed.swap(true, Ordering::SeqCst) {
            return;
        }
        let zero = Timespec::default();
        let once = Itimerspec {
            it_interval: zero,
            it_value: Timespec {
                tv_nsec: LULL.subsec_nanos().into(),
                ..zero
            },
        };
        let flags = TimerfdTimerFlags::empty();
        if let Err(error) = rustix::time::timerfd_settime(&self.timer, flags, &once) {
            log::debug!("cannot set a timer: {error}");
        }
    }
}

/// Writes to memory that may be late; dropping it ends that.
#[derive(Debug)]
pub struct Posting {
    writes: Arc<CoalescedWrites>,
    address: u64,
    size: u32,
}

impl MemoryMapping for Posting {}

impl Drop for Posting {
    fn drop(&mut self) {
        let first = IoEventAddress::Mmio(self.address);
        if let Err(error) = self.writes.vm.unregister_coalesced_mmio(first, self.size) {
            // They come with the next exit of any vCPU.
            log::error!("writes at {:#x} stay late: {error}", self.address);
        }
        self.writes.ended.store(true, Ordering::Release);
    }
}

impl fmt::Debug for CoalescedWrites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoalescedWrites")
            .field("waiting", &!self.ring.is_empty())
            .finish_non_exhaustive()
    }
}
