//! From what the guest programs to what is armed on the host.

mod msix;

pub(crate) use msix::MsixInterrupts;
