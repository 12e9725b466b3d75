//! vCPUs: what CPU the guest sees, its state at the first instruction, and the
//! thread that runs it.

mod coalesced;
mod cpuid;
mod mapping;
mod ring;
mod state;
mod thread;

pub use coalesced::{CoalescedWrites, PostedPorts, Posting, Unfollowed};
pub use cpuid::guest_cpuid;
pub(crate) use cpuid::{address_bits, supported};
pub(crate) use mapping::keep_from_children;
pub use state::{EntryPoint, SetupError, set_up};
pub use thread::{Buses, StartError, VcpuEnd, VcpuObserver, VcpuThreads};
