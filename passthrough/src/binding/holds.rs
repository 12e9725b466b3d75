use std::sync::{Arc, Mutex, PoisonError};

use super::Binding;
use crate::host::GroupId;

/// Devices that joined held groups, and are kept from host drivers. They go
/// back when the last clone is dropped.
#[derive(Clone, Debug, Default)]
pub struct Holds(Arc<Mutex<Vec<(GroupId, Binding)>>>);

impl Holds {
    /// How many devices there are.
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn add(&self, group: GroupId, binding: Binding) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.push((group, binding));
    }

    /// Gives those of `group` back, as nobody holds it any longer.
    pub(super) fn give_back(&self, group: GroupId) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_group = |(of, _): &mut (GroupId, Binding)| *of == group;
        let back: Vec<_> = held.extract_if(.., of_group).collect();
        drop(held);
        // Dropping waits for the kernel, within limits.
        drop(back);
    }
}
