//! The agent: the lab's hand inside the nested host.

pub mod protocol;
mod serve;

pub use serve::{AgentError, monotonic_ns, open_port, serve};
