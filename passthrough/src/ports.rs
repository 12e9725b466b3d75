//! What the embedding monitor implements: the contract of this crate.
//!
//! | port | the monitor supplies |
//! |---|---|
//! | [`InterruptRouter`] | routes from MSI messages to vCPUs, one event each; a function's interrupt line |
//! | [`MemoryMapper`] | host memory put straight into the guest's address space; writes that may come late |
//! | [`HostMemory`] | host memory that stays where it is (guest RAM) |
//!
//! The crate calls a port on the thread of the call that needs it: a vCPU's, for
//! what follows from a guest's access. The caller holds the lock of the function
//! then, so a port must not call back into it, and should not wait for a guest. A
//! port that fails is told of the same thing again when the guest tries again;
//! what it answers with is shown in the log, and never ends anything by itself.
//!
//! Two more duties are the monitor's, and can't be checked here:
//!
//! * RAM is mapped into the address space before [`settle`] lets a device reach
//!   memory (`Reach::bus_master`), and stays there, at the guest's addresses, as
//!   long as it may. What gives pages back to the host behind the IOMMU's back, a
//!   balloon for example, is off meanwhile: the device would go on writing to pages
//!   that are somebody else's.
//! * No map stands where something else answers; see [`MemoryMapper::map`].
//!
//! [`settle`]: devices::pci::PciFunction::settle

use std::any::Any;
use std::error::Error;
use std::fmt::Debug;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

pub use devices::pci::{InterruptPin, MsiMessage};

/// What a port's implementation answers when the host refuses.
pub type PortError = Box<dyn Error + Send + Sync>;

/// A range of this process's memory that stays mapped, at the same place, for
/// as long as the value lives. The IOMMU and KVM are given its address.
///
/// # Safety
/// `address()` is page-aligned and always the same, and the `size()` bytes from
/// it on stay mapped until the value is dropped. They are not Rust data: the
/// guest and its devices change them at any time.
#[allow(unsafe_code)] // Declared here, implemented where memory is mapped.
pub unsafe trait HostMemory: Send + Sync + Debug {
    /// The first byte, aligned to the host's page size.
    fn address(&self) -> NonNull<u8>;

    /// Bytes, a multiple of the host's page size.
    fn size(&self) -> usize;

    /// The file that all of the memory is a shared map of (a memfd, on huge
    /// pages or not), and where in the file it begins, in bytes. Constant.
    ///
    /// With it an IOMMU can take the pages from the file, which spares it the
    /// walk through this process's page tables. Nothing unless it is
    /// implemented: private memory has no file.
    fn file(&self) -> Option<(BorrowedFd<'_>, u64)> {
        None
    }

    /// The memory as a dma-buf, when it is a device's: iommufd lets one device
    /// reach another only by that. The buffer is dead for good once the device
    /// stops decoding memory, so each map wants a new one. Nothing unless it is
    /// implemented, as is right for RAM.
    fn dma_buf(&self) -> Option<io::Result<OwnedFd>> {
        None
    }

    /// Whether the memory is a device's: whether [`Self::dma_buf`] answers.
    /// Constant.
    fn is_device(&self) -> bool {
        false
    }
}

/// Puts host memory straight into the guest's physical address space.
pub trait MemoryMapper: Send + Sync + Debug {
    /// Maps `memory` at guest physical `address`, readable and writable, until
    /// the answer is dropped. Keeps `memory` alive until then.
    ///
    /// The mapping must not stand while anything else answers in its pages:
    /// guest RAM, another mapping, another function's BAR. The mapper takes it
    /// away for as long, and accesses trap to whoever the guest's address
    /// decoding chooses; a trapped access to the BAR works all the same. This
    /// matters the more as a BAR smaller than a page comes as a whole page.
    ///
    /// # Errors
    /// When the hypervisor refuses; nothing is mapped then.
    fn map(
        &self,
        address: u64,
        memory: Arc<dyn HostMemory>,
    ) -> Result<Box<dyn MemoryMapping>, PortError>;

    /// Lets the guest's writes to `size` bytes at guest physical `address`,
    /// where a BAR traps, come late until the answer is dropped: the guest need
    /// not be left for each. They come in their order, before the next trapped
    /// access of the vCPU that wrote, whatever that accesses; and soon after the
    /// answer was dropped, even if nothing follows.
    ///
    /// Nothing unless it is implemented, or where it can't be done: each write
    /// traps then.
    fn post_writes(&self, address: u64, size: u64) -> Option<Box<dyn MemoryMapping>> {
        let _ = (address, size);
        None
    }
}

/// Something in the guest's address space; dropping it takes it away.
pub trait MemoryMapping: Send + Debug {}

/// Gives one function its ways to the guest's interrupt controllers: routes for
/// its MSI messages, and the line that its interrupt pin drives.
pub trait InterruptRouter: Send + Sync + Debug {
    /// A new route with its event, not connected yet. It need not cost more
    /// than the event until it is connected, or even until it first delivers.
    ///
    /// # Errors
    /// When routes or file descriptors have run out.
    fn new_route(&self) -> Result<Box<dyn InterruptRoute>, PortError>;

    /// Connects routes of this router together, each with its message: what a
    /// guest unmasks at once. The answers are in the order of `routes`; one
    /// that fails stays as it was, and the others are connected all the same.
    ///
    /// Connects them one by one unless it is implemented. Where each of these
    /// rewrites a routing table, one rewrite for all should take their place:
    /// its cost must not grow with the square of their number.
    fn connect_all(
        &self,
        routes: &mut [(&mut dyn InterruptRoute, MsiMessage)],
    ) -> Vec<Result<(), PortError>> {
        routes
            .iter_mut()
            .map(|(route, message)| route.connect(*message))
            .collect()
    }

    /// The line that `pin` of the function drives, not connected yet. Where
    /// the function stands in the guest's topology decides which line that is,
    /// so a router with lines serves one function. Several functions may share
    /// a line. Nothing, unless it is implemented: the guest sees no interrupt
    /// pin then.
    ///
    /// # Errors
    /// When file descriptors have run out.
    fn new_line(&self, pin: InterruptPin) -> Result<Option<Box<dyn InterruptLine>>, PortError> {
        let _ = pin;
        Ok(None)
    }
}

/// One interrupt's way into the guest. Dropping it disconnects and frees it.
///
/// The event is an eventfd, non-blocking and close-on-exec. While the route is
/// disconnected, signals stay in its counter; `connect` delivers them.
///
/// It is [`Any`] so that [`InterruptRouter::connect_all`] finds its own type.
pub trait InterruptRoute: Any + Send + Debug {
    /// The eventfd that raises the interrupt. Constant.
    fn event(&self) -> BorrowedFd<'_>;

    /// Delivers `message` to the guest whenever the event is signalled, from
    /// now on, and once for what was signalled before. A connected route
    /// delivers the new message instead of the old: a signal that arrives
    /// meanwhile is delivered with one of the two.
    ///
    /// Once the route is in use, no user-space code should run for a signal;
    /// the first ones may be delivered by user space.
    ///
    /// # Errors
    /// When the hypervisor refuses; the route is then as it was.
    fn connect(&mut self, message: MsiMessage) -> Result<(), PortError>;

    /// Holds signals back in the event's counter from now on. What was taken
    /// from the counter before has been delivered when this returns.
    ///
    /// # Errors
    /// When the hypervisor refuses; the route is then as it was.
    fn disconnect(&mut self) -> Result<(), PortError>;

    /// Whether a disconnected route holds a signal back in its event's counter.
    fn is_pending(&self) -> bool;
}

/// A function's end of a level-triggered interrupt line. Dropping it lets go of
/// the line and frees it.
///
/// ```text
///  device asserts -> event() -> the line is asserted -> guest -> EOI
///        ^                                                        |
///        +-- unmasked, asserts again or not <-- resample_event() -+
/// ```
///
/// The events are eventfds, non-blocking and close-on-exec.
pub trait InterruptLine: Send + Debug {
    /// The eventfd that asserts the line. Constant. A signal while the line is
    /// not connected counts when it is.
    fn event(&self) -> BorrowedFd<'_>;

    /// The eventfd that the monitor signals when the guest has acknowledged
    /// the interrupt (EOI) and the line was let go; constant. With it no
    /// user-space code should run for an interrupt.
    ///
    /// Nothing when the monitor does not learn of it. The function then takes
    /// each access of the guest to its BARs for the acknowledgement, and
    /// [`Self::release`]s the line; so that it sees them, its BARs are not
    /// mapped into the guest while the line is connected.
    fn resample_event(&self) -> Option<BorrowedFd<'_>>;

    /// Asserts the line whenever the event is signalled, from now on, until
    /// the guest acknowledges. Does nothing when it is connected.
    ///
    /// # Errors
    /// When the hypervisor refuses; the line is then as it was.
    fn connect(&mut self) -> Result<(), PortError>;

    /// Lets go of the line, and no longer looks at the event. Signals that were
    /// not seen yet are forgotten: of a level only the present state counts.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    fn disconnect(&mut self) -> Result<(), PortError>;

    /// Lets go of the line if this function asserts it, and says whether it
    /// did. For lines without a resample event; called often, so it should be
    /// cheap when there is nothing to do.
    fn release(&mut self) -> bool;

    /// Lets go of the line, and forgets signals that were not seen yet: the
    /// guest has told the function not to interrupt, and it does not signal
    /// again before that changes. For lines without a resample event; others
    /// are let go when the guest acknowledges.
    fn silence(&mut self);
}
