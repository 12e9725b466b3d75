//! vCPUs: what CPU the guest sees, its state at the first instruction, and the
//! thread that runs it.

mod cpuid;
mod state;
mod thread;

pub use cpuid::guest_cpuid;
pub(crate) use cpuid::{address_bits, supported};
pub use state::{EntryPoint, SetupError, set_up};
pub use thread::{Buses, StartError, VcpuEnd, VcpuObserver, VcpuThreads};
