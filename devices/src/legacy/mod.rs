//! The few devices of a PC that a guest can't do without, at their classic ports.
//!
//! Ports that Linux also touches need no device: the delay port 0x80 may stay
//! unclaimed, and the interrupt controllers and the timer are the hypervisor's.

mod calendar;
mod i8042;
mod output;
mod power;
mod pvpanic;
mod rtc;
mod serial;

pub use i8042::I8042;
pub(crate) use power::SLEEP_TYPE_OFF;
pub use power::{PowerBlock, PowerEvent, PowerEvents};
pub use pvpanic::PvPanic;
pub(crate) use rtc::CENTURY;
pub use rtc::{Clock, HostClock, Rtc};
pub use serial::{InputNotice, InterruptLine, Serial};
