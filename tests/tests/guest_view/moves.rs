//! BARs that the guest moves while another of its CPUs reads them.

use lab::machine::{Device, DeviceModel, Machine, Slot};
use lab::markers::Marker;
use lab::{Backend, on_both_backends, scenario};

use super::guest::{NVME, assert_reads, disk, finish, run};

on_both_backends!(bars_move_under_load);

/// Each read between two writes found who answers there, and each read during
/// one found somebody who may.
fn assert_right(shuffled: &Marker, writes: u64) {
    assert_eq!(shuffled.number("writes"), Some(writes), "{shuffled:?}");
    assert!(
        shuffled.number("stable") >= Some(writes * 8),
        "{shuffled:?}"
    );
    assert!(shuffled.number("during") > Some(0), "{shuffled:?}");
    for wrong in ["wrong", "wrong-own"] {
        assert_eq!(shuffled.number(wrong), Some(0), "{shuffled:?}");
    }
}

fn shared_memory(name: &str) -> Slot {
    let model = format!("ivshmem-plain,memdev={name}-memory");
    Slot::Integrated(Device::new(name, DeviceModel::Other(model)))
}

fn bars_move_under_load(backend: Backend) {
    // One CPU for both of the guest's: each waits in the middle of a write for
    // as long as the other runs.
    let mut machine = Machine::new(format!("moves-{backend}")).device(Device::nvme("disk", disk()));
    for name in ["one", "other"] {
        let memory = format!("memory-backend-ram,size=1M,share=on,id={name}-memory");
        machine = machine
            .slot(shared_memory(name))
            .qemu_args(["-object", &memory]);
    }
    scenario(&machine, |host| {
        host.bind_vfio(&["disk", "one", "other"])?;
        // Two that have no driver swap places, and the registers of one go
        // about behind its port; then its driver gets it back.
        let script = format!(
            "task_nvme
            guest-pci swap 1af4:1110 1af4:1110/1 2
            unbind {NVME}
            guest-pci wander {NVME} 8
            rebind
            task_nvme"
        );
        let mut run = run(host, backend, &script)?.cpus(2);
        for device in ["disk", "one", "other"] {
            run = run.device(host.address(device)?);
        }
        let markers = finish(host, &run)?;
        assert_right(markers.first("swap").unwrap(), 100);
        assert_right(markers.first("wander").unwrap(), 60);
        assert_reads(&markers, 2);
        Ok(())
    });
}
