//! BARs of many GiB.

use lab::machine::{Device, DeviceModel, Machine, Slot};
use lab::{Backend, on_both_backends, scenario};

use super::guest::{finish, run};

on_both_backends!(bars_of_16_and_of_128_gib);

const GIB: u64 = 1 << 30;

fn integrated(name: &str, model: &str) -> Slot {
    let model = DeviceModel::Other(model.to_owned());
    Slot::Integrated(Device::new(name, model))
}

/// One with memory behind it, and one that is a quarter of what a 39-bit IOMMU
/// can address and reads as zero everywhere.
fn bars_of_16_and_of_128_gib(backend: Backend) {
    let machine = Machine::new(format!("large-{backend}"))
        .slot(integrated("memory", "ivshmem-plain,memdev=large"))
        .slot(integrated("empty", "pci-testdev,membar=128G"))
        .qemu_args([
            "-object",
            "memory-backend-ram,size=16G,share=on,reserve=off,id=large",
        ]);
    scenario(&machine, |host| {
        host.bind_vfio(&["memory", "empty"])?;
        for (device, id, size, kept) in [
            ("memory", "1af4:1110", 16 * GIB, (0x1122_3344, 0x5566_7788)),
            ("empty", "1b36:0005", 128 * GIB, (0, 0)),
        ] {
            let run = run(host, backend, &format!("guest-pci ends {id} 2"))?;
            let markers = finish(host, &run.device(host.address(device)?))?;
            let ends = markers.first("ends").expect("the guest has no such BAR");
            assert_eq!(ends.number("size"), Some(size), "{ends:?}");
            // Naturally aligned, where the IOMMU's 39 bits reach.
            let start = ends.number("start").unwrap();
            assert_eq!(start % size, 0, "{ends:?}");
            assert!(start + size <= 1 << 39, "{ends:?}");
            let found = (ends.number("first"), ends.number("last"));
            assert_eq!(found, (Some(kept.0), Some(kept.1)), "{ends:?}");
        }
        Ok(())
    });
}
