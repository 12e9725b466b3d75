use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// What the routing of interrupts has cost so far, and what went wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RouterStats {
    /// Routes given out.
    pub routes: u64,
    /// GSIs in use for them now.
    pub gsis: u64,
    /// Routing tables that KVM was given (`KVM_SET_GSI_ROUTING`).
    pub tables: u64,
    /// Entries in all of those together: what they cost.
    pub table_entries: u64,
    /// irqfds made (`KVM_IRQFD`).
    pub irqfds: u64,
    /// irqfds taken away.
    pub irqfds_removed: u64,
    /// Routes that got their irqfd because they fired.
    pub promotions: u64,
    /// Interrupts that user space injected (`KVM_SIGNAL_MSI`).
    pub injections: u64,
    /// Of those, how many no vCPU took: the guest's message names none that
    /// there is, and would be lost on any machine.
    pub untaken: u64,
    /// Wake-ups of the interrupts thread with nothing to deliver.
    pub spurious: u64,
    /// Signals that KVM refused to inject.
    pub lost: u64,
}

/// The counters behind [`RouterStats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) routes: Counter,
    pub(super) tables: Counter,
    pub(super) table_entries: Counter,
    pub(super) irqfds: Counter,
    pub(super) irqfds_removed: Counter,
    pub(super) promotions: Counter,
    pub(super) injections: Counter,
    pub(super) untaken: Counter,
    pub(super) spurious: Counter,
    pub(super) lost: Counter,
}

impl Counters {
    /// The present values, with `gsis` in use.
    pub(super) fn read(&self, gsis: usize) -> RouterStats {
        RouterStats {
            routes: self.routes.get(),
            gsis: gsis as u64,
            tables: self.tables.get(),
            table_entries: self.table_entries.get(),
            irqfds: self.irqfds.get(),
            irqfds_removed: self.irqfds_removed.get(),
            promotions: self.promotions.get(),
            injections: self.injections.get(),
            untaken: self.untaken.get(),
            spurious: self.spurious.get(),
            lost: self.lost.get(),
        }
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
