use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use passthrough::ports::MsiMessage;

/// Pins of the emulated IOAPIC: GSIs 0 to 23.
const IOAPIC_PINS: u32 = 24;
/// Entries of KVM's default table: both PICs have 8 pins each.
const IRQCHIP_ENTRIES: usize = 16 + IOAPIC_PINS as usize;
/// KVM's limit of entries (`KVM_MAX_IRQ_ROUTES`). Those of the interrupt
/// controllers count too, so that GSIs never come near the same limit.
const MAX_ENTRIES: usize = 4096;

/// A global system interrupt: KVM's number for an interrupt's way into the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gsi(u32);

impl Gsi {
    /// Pin `pin` of the IOAPIC; nothing above 23.
    pub const fn ioapic_pin(pin: u32) -> Option<Self> {
        if pin < IOAPIC_PINS {
            Some(Self(pin))
        } else {
            None
        }
    }

    /// KVM's number.
    pub(super) const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Gsi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GSI {}", self.0)
    }
}

/// A route's place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) gsi: Gsi,
    /// What the table has there.
    pub(super) message: MsiMessage,
    /// The version of the table that first had it.
    since: u64,
}

/// The routing table as it should be, and how much of it KVM has.
///
/// GSIs 0 to 23 go to the PIC and IOAPIC, as KVM has them by default; the rest
/// are given out to MSI routes. KVM's copy may lag behind: it still has what
/// was removed since, which no irqfd can signal, and not yet what was put in.
#[derive(Debug)]
pub(super) struct Table {
    messages: BTreeMap<Gsi, MsiMessage>,
    /// GSIs below `next` that were given back.
    free: BTreeSet<Gsi>,
    next: u32,
    version: u64,
    committed: u64,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            messages: BTreeMap::new(),
            free: BTreeSet::new(),
            next: IOAPIC_PINS,
            version: 0,
            committed: 0,
        }
    }
}

impl Table {
    /// Puts `message` at a free GSI; nothing when all are taken.
    pub(super) fn seat(&mut self, message: MsiMessage) -> Option<Seat> {
        if self.size() >= MAX_ENTRIES {
            return None;
        }
        let gsi = self.free.pop_first().unwrap_or_else(|| {
            self.next += 1;
            Gsi(self.next - 1)
        });
        Some(self.put(gsi, message))
    }

    /// Puts `message` at `gsi`, which is taken.
    pub(super) fn put(&mut self, gsi: Gsi, message: MsiMessage) -> Seat {
        self.messages.insert(gsi, message);
        self.version += 1;
        Seat {
            gsi,
            message,
            since: self.version,
        }
    }

    /// Takes back what was put in place of `seat`, before KVM has seen it.
    pub(super) fn restore(&mut self, seat: Seat) {
        self.messages.insert(seat.gsi, seat.message);
    }

    /// Gives a GSI back. KVM hears of it with the next table: nothing signals
    /// it any more, and a table of its own would cost a call.
    pub(super) fn remove(&mut self, gsi: Gsi) {
        if self.messages.remove(&gsi).is_some() {
            self.free.insert(gsi);
        }
    }

    /// Whether KVM has what is in `seat`.
    pub(super) fn has(&self, seat: Seat) -> bool {
        seat.since <= self.committed
    }

    /// Whether KVM lacks something.
    pub(super) fn is_behind(&self) -> bool {
        self.committed < self.version
    }

    /// KVM has taken the table as it is.
    pub(super) fn committed(&mut self) {
        self.committed = self.version;
    }

    /// MSI routes in the table.
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// The MSI routes.
    pub(super) fn messages(&self) -> &BTreeMap<Gsi, MsiMessage> {
        &self.messages
    }

    /// Entries that KVM is given for this table.
    pub(super) fn size(&self) -> usize {
        IRQCHIP_ENTRIES + self.messages.len()
    }
}

/// The whole table for KVM.
pub(super) fn entries(messages: &BTreeMap<Gsi, MsiMessage>) -> Vec<kvm_irq_routing_entry> {
    let messages = messages.iter();
    irqchip_entries()
        .chain(messages.map(|(gsi, message)| msi_entry(*gsi, *message)))
        .collect()
}

/// KVM's default table, which setting a table of our own would lose: the PICs
/// have 8 pins each and share GSIs 0 to 15 with the IOAPIC.
fn irqchip_entries() -> impl Iterator<Item = kvm_irq_routing_entry> {
    let pic = (0..16).map(|gsi| match gsi {
        0..8 => irqchip_entry(gsi, KVM_IRQCHIP_PIC_MASTER, gsi),
        _ => irqchip_entry(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8),
    });
    let ioapic = (0..IOAPIC_PINS).map(|gsi| irqchip_entry(gsi, KVM_IRQCHIP_IOAPIC, gsi));
    pic.chain(ioapic)
}

fn irqchip_entry(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    entry
}

fn msi_entry(gsi: Gsi, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi: gsi.0,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi = kvm_irq_routing_msi {
        address_lo: message.address as u32,
        address_hi: (message.address >> 32) as u32,
        data: message.data,
        ..Default::default()
    };
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_table_has_both_irqchips() {
        let entries = entries(Table::default().messages());
        assert_eq!(entries.len(), IRQCHIP_ENTRIES);
        assert_eq!(entries.len(), Table::default().size());
        let of = |gsi| entries.iter().filter(move |e| e.gsi == gsi).count();
        assert_eq!(of(4), 2, "COM1 reaches PIC and IOAPIC");
        assert_eq!(of(23), 1);
    }

    #[test]
    fn only_the_ioapic_has_pins() {
        assert!(Gsi::ioapic_pin(23).is_some());
        assert_eq!(Gsi::ioapic_pin(24), None);
    }

    #[test]
    fn gsis_run_out_and_come_back() {
        let mut table = Table::default();
        let message = MsiMessage::default();
        let seats: Vec<_> = std::iter::from_fn(|| table.seat(message)).collect();
        assert_eq!(table.size(), 4096, "all that KVM takes");
        assert_eq!(seats[0].gsi, Gsi(24));
        table.remove(seats[7].gsi);
        table.remove(seats[7].gsi);
        assert_eq!(table.len(), seats.len() - 1);
        assert_eq!(table.seat(message).unwrap().gsi, seats[7].gsi);
        assert_eq!(table.seat(message), None);
        assert_eq!(table.size(), 4096);
    }

    #[test]
    fn a_seat_is_had_by_kvm_from_the_next_commit_on() {
        let mut table = Table::default();
        let first = table.seat(MsiMessage::default()).unwrap();
        assert!(table.is_behind() && !table.has(first));
        table.committed();
        let message = MsiMessage {
            address: 0xfee0_0000,
            data: 1,
        };
        let changed = table.put(first.gsi, message);
        assert!(table.has(first) && !table.has(changed));
        table.restore(first);
        assert_eq!(table.messages()[&first.gsi], first.message);
        let entries = entries(table.messages());
        assert_eq!((entries.len(), entries[40].gsi), (table.size(), 24));
        table.remove(first.gsi);
        table.committed();
        assert!(!table.is_behind());
    }
}
