use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::watch;
use crate::vcpu::CoalescedWrites;

/// Has writes carried out that the guest has not followed up.
#[derive(Debug)]
pub struct Lull(Arc<CoalescedWrites>);

impl Lull {
    /// Watches `writes`.
    pub fn new(writes: Arc<CoalescedWrites>) -> Self {
        Self(writes)
    }
}

impl MutEventSubscriber for Lull {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        self.0.lull();
    }

    fn init(&mut self, ops: &mut EventOps) {
        let timer = Events::new(&self.0.timer(), EventSet::IN);
        watch(ops, timer, "writes that the guest does not follow up");
    }
}
