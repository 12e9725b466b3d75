use std::sync::Arc;

use devices::pci::{BarDecode, BarIndex};

use crate::bar::address_of;
use crate::config::MsixCapability;
use crate::ports::{MemoryMapper, MemoryMapping};

/// Has the guest's writes to the MSI-X table come late while none of them can
/// matter: MSI-X is off, or the function is masked. A driver masks each vector
/// then, and writes most of their messages.
#[derive(Debug)]
pub(super) struct PostedTable {
    mapper: Arc<dyn MemoryMapper>,
    bar: BarIndex,
    /// From the BAR's start.
    offset: u64,
    /// Bytes.
    size: u64,
    /// Where the guest reaches the table; nothing while it can't.
    place: Option<u64>,
    /// Where late writes were asked for, whatever the mapper answered.
    asked: Option<u64>,
    posting: Option<Box<dyn MemoryMapping>>,
}

impl PostedTable {
    /// Nothing is late yet.
    pub(super) fn new(mapper: Arc<dyn MemoryMapper>, capability: &MsixCapability) -> Self {
        let table = &capability.table;
        Self {
            mapper,
            bar: table.bar,
            offset: table.area.offset,
            size: table.area.size,
            place: None,
            asked: None,
            posting: None,
        }
    }

    /// These BARs answer now. Where the table does no longer, nothing is late.
    pub(super) fn answers(&mut self, answering: &[BarDecode]) {
        let bar = address_of(answering, self.bar);
        self.place = bar.and_then(|address| address.checked_add(self.offset));
        if self.asked != self.place {
            self.ask(None);
        }
    }

    /// Writes may be late, or must not be.
    pub(super) fn follow(&mut self, may_be_late: bool) {
        let wanted = self.place.filter(|_| may_be_late);
        if self.asked != wanted {
            self.ask(wanted);
        }
    }

    fn ask(&mut self, wanted: Option<u64>) {
        self.posting = None;
        self.asked = wanted;
        self.posting = wanted.and_then(|place| self.mapper.post_writes(place, self.size));
    }
}
