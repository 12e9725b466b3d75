/// Who answers some bits of a register, and who takes the guest's writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
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
    /// As `Guest`, but a reset of the function alone leaves it as it is
    /// (PCIe 6.0 §6.6.2).
    Kept {
        /// After a reset of the bus.
        value: u32,
        /// What the guest may change.
        writable: u32,
    },
    /// Ours, and handed on: reads are answered here, writes of the `writable`
    /// bits reach the device too. After reset both have the value that the
    /// device had at the start.
    Shared {
        /// What the guest may change.
        writable: u32,
    },
    /// The device's, read each time.
    Device {
        /// What the guest sees; the rest reads as zero.
        readable: u32,
        /// What the guest may change.
        writable: u32,
        /// What the guest clears by writing a one. Only in its own view: the
        /// hardware's bit is the host's, and the kernel drops such writes.
        clearable: u32,
    },
}

/// Every bit.
pub(super) const ALL: u32 = u32::MAX;
/// The whole register, as the device had it at the start.
pub(super) const CONSTANT: Access = Access::Constant(ALL);
/// The device's own, in both directions.
pub(super) const PASSED: Access = Access::Device {
    readable: ALL,
    writable: ALL,
    clearable: 0,
};
/// The device's own, reads only.
pub(super) const READ: Access = masked(ALL);
/// The device's own, reads only, with bits that are cleared by ones.
pub(super) const LATCHED: Access = latched(ALL);
/// Nothing: reads as zero.
pub(super) const NONE: Access = Access::Value(0);

/// These bits of the device's own, reads only.
pub(super) const fn masked(readable: u32) -> Access {
    Access::Device {
        readable,
        writable: 0,
        clearable: 0,
    }
}

/// As [`masked`], all of them cleared by ones.
pub(super) const fn latched(bits: u32) -> Access {
    Access::Device {
        readable: bits,
        writable: 0,
        clearable: bits,
    }
}

/// The guest's own bits, zero after reset.
pub(super) const fn guest(writable: u32) -> Access {
    Access::Guest { value: 0, writable }
}

/// On what a rule depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// It always holds.
    Always,
    /// The device is conventional PCI on the host.
    Conventional,
    /// The device is PCI Express on the host.
    Express,
    /// It has a BAR of ports.
    Ports,
    /// It has a BAR of memory, or a ROM.
    Memory,
    /// The guest sees it on the root bus.
    RootBus,
    /// The guest sees it behind a port.
    BehindPort,
    /// The host can reset it.
    Reset,
    /// Its interrupt pin can be delivered.
    Pin,
    /// Its PCI Express capability has the second set of registers.
    Second,
    /// As `Second`, and the guest sees it behind a port.
    SecondBehindPort,
}

/// How the guest sees some bits of a range of config space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// The first byte, from the start of config space or of the capability.
    pub(crate) offset: u16,
    /// Bytes; cut off at the end of the capability.
    pub(crate) size: u16,
    /// The bits that it speaks of, counted from the first byte. This and the
    /// masks of `access` apply to every 4 bytes of a longer range.
    pub(crate) bits: u32,
    /// Who answers.
    pub(crate) access: Access,
    /// On what it depends.
    pub(super) when: When,
    /// What it is.
    pub(crate) name: &'static str,
    /// Where that is specified.
    pub(crate) section: &'static str,
    /// Why the guest does not simply see what the device has. Empty when it
    /// does.
    pub(crate) why: &'static str,
}

impl Rule {
    /// A rule for all bits that always holds.
    pub(super) const fn new(
        offset: u16,
        size: u16,
        access: Access,
        (name, section): (&'static str, &'static str),
        why: &'static str,
    ) -> Self {
        Self {
            offset,
            size,
            bits: ALL,
            access,
            when: When::Always,
            name,
            section,
            why,
        }
    }

    /// The same rule for these bits only.
    pub(super) const fn bits(self, bits: u32) -> Self {
        Self { bits, ..self }
    }

    /// Whether the guest sees, and can change, just what the device has.
    #[cfg(test)]
    pub(super) fn is_plain(&self) -> bool {
        let size = u32::from(self.size.min(4)) * 8;
        let all = self.bits & u32::MAX >> (32 - size);
        match self.access {
            Access::Constant(shown) => shown & all == all,
            Access::Device {
                readable,
                writable,
                clearable,
            } => {
                readable & all == all && clearable == 0 && (writable == 0 || writable & all == all)
            }
            Access::Shared { .. } => true,
            _ => false,
        }
    }
}

/// Rules as a table: `offset size bits access when`, then name, section and
/// reason.
macro_rules! rules {
    ($($offset:literal $size:literal $bits:tt $access:tt $when:ident
        $name:literal, $section:literal, $why:literal;)*) => {
        &[$($crate::config::rule::Rule {
            offset: $offset,
            size: $size,
            bits: $bits,
            access: $access,
            when: $crate::config::rule::When::$when,
            name: $name,
            section: $section,
            why: $why,
        }),*]
    };
}
pub(super) use rules;
