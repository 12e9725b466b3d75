//! GSIs, routes and irqfds: how events become guest interrupts.
//!
//! KVM takes its routing table only as a whole, and waits for all who read the
//! old one: a table for each of N vectors that a guest unmasks one by one, as
//! Linux does, is work in N². Therefore a route gets into the table only when
//! its vector is known to fire, and together with others:
//!
//! ```text
//!            connect                first signal              promoted
//!   Held ---------------> Watched ---------------> queued --------------> Direct
//!  signals stay     the interrupts thread     it still does,       irqfd: no user-
//!  in the counter   injects (KVM_SIGNAL_MSI)  until the next table space code runs
//!    ^  ^                  |                       |                      |
//!    |  +---- disconnect --+-----------------------+                      |
//!    +------------------------- disconnect -------------------------------+
//! ```
//!
//! A disconnected route keeps its place in the table, so that masking and
//! unmasking it again writes none.
//!
//! 2048 vectors that fire one after the other take 94 tables with 25,000
//! entries in all, where a table for each would make it two millions.

mod kernel;
mod line;
mod promoter;
mod route;
mod router;
mod stats;
mod table;
mod thread;

#[cfg(test)]
mod model_kernel;
#[cfg(test)]
mod model_test;
#[cfg(test)]
mod router_test;

pub use line::EventLine;
pub use router::{RouteError, Router};
pub use stats::RouterStats;
pub use table::Gsi;
