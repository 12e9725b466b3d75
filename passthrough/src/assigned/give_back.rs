use std::sync::{Arc, Mutex, PoisonError};

use super::AssignedDevice;
use crate::iommu::AddressSpace;
use crate::together::together;

/// Gives `devices` back to the host when their guest is over, and takes all memory from
/// `space`, which is theirs.
///
/// The kernel resets each device as it closes, which takes a tenth of a second or longer:
/// all at the same time, in a thread each, and memory is unmapped beside that. By then no
/// device reaches it. What goes wrong is in the log, since there is nothing left to be
/// done about it but to end the process; memory that stays mapped is leaked.
pub fn give_back(devices: Vec<Arc<Mutex<AssignedDevice>>>, space: Arc<dyn AddressSpace>) {
    for device in &devices {
        let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
        device.quiet();
    }
    let close = |device: Arc<Mutex<AssignedDevice>>| {
        let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = device.surrender() {
            log::error!("{error}");
        }
    };
    let devices = devices
        .into_iter()
        .map(|device| Box::new(move || close(device)) as Task);
    let unmap = move || {
        if let Err(error) = space.unmap_all() {
            log::error!("{error}: {}", error.source);
        }
    };
    let unmap = Box::new(unmap) as Task;
    together(devices.chain([unmap]).collect(), |task| task());
}

type Task = Box<dyn FnOnce() + Send>;
