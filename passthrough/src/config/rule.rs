/// Who answers a register's reads and takes its writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Treatment {
    /// The device's value as it was at the start, these bits of it. Read-only,
    /// and no system call to read it.
    Constant(u32),
    /// A value of ours, read-only.
    Value(u32),
    /// Ours: the guest reads back what it wrote to the `writable` bits.
    Guest {
        /// After reset.
        value: u32,
        /// What the guest may change.
        writable: u32,
    },
    /// The device's, read each time. Writes to the `writable` bits reach it.
    Device {
        /// What the guest may change.
        writable: u32,
    },
}

/// The whole register, as the device had it at the start.
pub(super) const CONSTANT: Treatment = Treatment::Constant(u32::MAX);
/// The device's own, in both directions.
pub(super) const PASSED: Treatment = Treatment::Device { writable: u32::MAX };
/// The device's own, reads only.
pub(super) const READ: Treatment = Treatment::Device { writable: 0 };

/// How the guest sees a range of config space. What no rule names is hidden:
/// it reads as zero and ignores writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// The first byte, from the start of config space or of the capability.
    pub(super) offset: u16,
    /// Bytes. A mask or value applies to every 4 bytes of a longer range.
    pub(super) size: u16,
    /// Who answers.
    pub(super) treatment: Treatment,
    /// What it is, and where that is specified.
    pub(super) what: &'static str,
}

/// A rule in one line.
pub(super) const fn rule(offset: u16, size: u16, treatment: Treatment, what: &'static str) -> Rule {
    Rule {
        offset,
        size,
        treatment,
        what,
    }
}
