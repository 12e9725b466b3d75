use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use devices::bus::Bus;
use kvm_ioctls::{VcpuExit, VcpuFd};
use thiserror::Error;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::coalesced::CoalescedWrites;
use super::state::{SetupError, set_reset_state};

/// What the guest's accesses reach.
#[derive(Clone, Debug)]
pub struct Buses {
    /// Memory-mapped.
    pub mmio: Arc<Bus>,
    /// Ports.
    pub pio: Arc<Bus>,
}

/// Why a vCPU stopped by itself.
#[derive(Debug, Error)]
pub enum VcpuEnd {
    /// The guest faulted while it handled a fault: how x86 resets.
    #[error("triple fault")]
    TripleFault,
    /// KVM says the guest asked to stop.
    #[error("KVM system event {0}")]
    SystemEvent(u32),
    /// The guest's state can't be entered.
    #[error("the CPU refuses to enter the guest (hardware reason {0:#x})")]
    EntryFailed(u64),
    /// KVM can't go on.
    #[error(
        "KVM reports an internal error; its suberror and the instruction are in the kernel log"
    )]
    Internal,
    /// An exit that airlock knows no answer to.
    #[error("unexpected exit from the guest: {0}")]
    Unexpected(String),
    /// `KVM_RUN` failed.
    #[error("cannot run the vCPU")]
    Run(#[source] kvm_ioctls::Error),
    /// The thread panicked.
    #[error(
        "its thread panicked, which is a bug in airlock: please report it with the message above"
    )]
    Panicked,
}

/// Called from a vCPU's thread when it stops by itself, with its number.
pub trait VcpuObserver: Send + Sync + fmt::Debug {
    /// The first instruction of the guest is about to run.
    fn entering(&self, id: u8);
    /// The vCPU has stopped for good.
    fn ended(&self, id: u8, end: VcpuEnd);
    /// Whether the VM has ended, so that no vCPU need enter the guest again.
    fn is_over(&self) -> bool;
}

/// The running vCPUs, one thread each. Dropping stops and joins them.
#[derive(Debug)]
pub struct VcpuThreads {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl VcpuThreads {
    /// Starts a thread for each vCPU.
    ///
    /// # Errors
    /// When a vCPU's state or thread can't be made; those started are stopped.
    pub fn start(
        vcpus: Vec<VcpuFd>,
        buses: &Buses,
        coalesced: Option<&Arc<CoalescedWrites>>,
        observer: &Arc<dyn VcpuObserver>,
    ) -> Result<Self, StartError> {
        // A handler that does nothing, without SA_RESTART: the signal only
        // ends KVM_RUN.
        register_signal_handler(SIGRTMIN(), nothing)
            .map_err(|error| StartError::Thread(error.into()))?;
        for vcpu in &vcpus {
            set_reset_state(vcpu)?;
        }
        let mut this = Self {
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for (id, vcpu) in (0u8..).zip(vcpus) {
            let runner = Runner {
                id,
                vcpu,
                buses: buses.clone(),
                coalesced: coalesced.cloned(),
                stop: Arc::clone(&this.stop),
            };
            let observer = Arc::clone(observer);
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{id}"))
                .spawn(move || runner.run(&*observer))
                .map_err(StartError::Thread)?;
            this.threads.push(thread);
        }
        Ok(this)
    }

    /// Takes the vCPUs out of the guest and waits for their threads.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // A signal that arrives just before KVM_RUN is lost: repeat it.
            while !thread.is_finished() {
                if let Err(error) = thread.kill(SIGRTMIN()) {
                    log::debug!("cannot signal a vCPU thread: {error}");
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            if thread.join().is_err() {
                log::error!("a vCPU thread panicked");
            }
        }
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Why the vCPUs could not be started.
#[derive(Debug, Error)]
pub enum StartError {
    /// A vCPU's state.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// No thread or signal handler.
    #[error("cannot start a vCPU thread")]
    Thread(#[source] io::Error),
}

extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Ends the VM when the thread of a vCPU panics: it would hang otherwise, and
/// nothing would be given back to the host.
struct PanicWatch<'a> {
    id: u8,
    observer: &'a dyn VcpuObserver,
}

impl Drop for PanicWatch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.observer.ended(self.id, VcpuEnd::Panicked);
        }
    }
}

struct Runner {
    id: u8,
    vcpu: VcpuFd,
    buses: Buses,
    coalesced: Option<Arc<CoalescedWrites>>,
    stop: Arc<AtomicBool>,
}

impl Runner {
    fn run(mut self, observer: &dyn VcpuObserver) {
        let _watch = PanicWatch {
            id: self.id,
            observer,
        };
        if let Some(coalesced) = &self.coalesced
            && self.id == 0
        {
            coalesced.runs_here();
        }
        observer.entering(self.id);
        while !self.stop.load(Ordering::Acquire) && !observer.is_over() {
            if let Some(end) = self.step() {
                observer.ended(self.id, end);
                return;
            }
        }
    }

    /// Runs the guest to its next exit and answers it.
    fn step(&mut self) -> Option<VcpuEnd> {
        let exit = self.vcpu.run();
        if let Some(coalesced) = &self.coalesced {
            coalesced.carry_out(&self.buses);
        }
        let exit = match exit {
            Ok(exit) => exit,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return None,
            Err(error) => return Some(VcpuEnd::Run(error)),
        };
        match exit {
            VcpuExit::IoIn(..) | VcpuExit::IoOut(..) => self.port_io(),
            VcpuExit::MmioRead(address, data) => self.buses.mmio.read(address, data),
            VcpuExit::MmioWrite(address, data) => self.buses.mmio.write(address, data),
            VcpuExit::Intr => {}
            VcpuExit::Shutdown => return Some(VcpuEnd::TripleFault),
            VcpuExit::SystemEvent(kind, _) => return Some(VcpuEnd::SystemEvent(kind)),
            VcpuExit::FailEntry(reason, _) => return Some(VcpuEnd::EntryFailed(reason)),
            VcpuExit::InternalError => return Some(VcpuEnd::Internal),
            other => return Some(VcpuEnd::Unexpected(format!("{other:?}"))),
        }
        if let Some(coalesced) = &self.coalesced {
            coalesced.before_entry(&self.buses);
        }
        None
    }

    /// Answers a port access, or each of the accesses of a string instruction:
    /// kvm-ioctls gives their data in one piece and not the width of one.
    fn port_io(&mut self) {
        let run = self.vcpu.get_kvm_run();
        // SAFETY: the exit was KVM_EXIT_IO, for which KVM fills this member.
        let io = unsafe { run.__bindgen_anon_1.io };
        let width = usize::from(io.size).max(1);
        let page = std::ptr::from_mut(run).cast::<u8>();
        // SAFETY: KVM's offset lies in the area that is mapped for this vCPU.
        let first = unsafe { page.add(io.data_offset as usize) };
        // SAFETY: KVM keeps `count` accesses of `size` bytes there, inside the
        // mapped area, and touches them only in KVM_RUN, which needs `self`.
        let data = unsafe { std::slice::from_raw_parts_mut(first, width * io.count as usize) };
        for access in data.chunks_exact_mut(width) {
            if u32::from(io.direction) == kvm_bindings::KVM_EXIT_IO_OUT {
                self.buses.pio.write(io.port.into(), access);
            } else {
                self.buses.pio.read(io.port.into(), access);
            }
        }
        if let Some(coalesced) = &self.coalesced {
            coalesced.accessed(io.port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Debug, Default)]
    struct Ends(Mutex<Vec<String>>);

    impl VcpuObserver for Ends {
        fn entering(&self, _: u8) {}
        fn is_over(&self) -> bool {
            false
        }
        fn ended(&self, id: u8, end: VcpuEnd) {
            self.0.lock().unwrap().push(format!("{id}: {end}"));
        }
    }

    #[test]
    fn a_panic_is_an_end() {
        let ends = Ends::default();
        let run = |panics: bool| {
            let _watch = PanicWatch {
                id: 3,
                observer: &ends,
            };
            assert!(!panics, "for the test");
        };
        std::thread::scope(|scope| {
            assert!(scope.spawn(|| run(false)).join().is_ok());
            assert!(ends.0.lock().unwrap().is_empty());
            assert!(scope.spawn(|| run(true)).join().is_err());
        });
        let ends = ends.0.lock().unwrap();
        assert!(ends[0].starts_with("3: its thread panicked"), "{ends:?}");
        assert_eq!(ends.len(), 1);
    }
}
