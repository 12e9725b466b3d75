//! Resets and sleep, by the guest's kernel and by its registers.

use lab::machine::{Device, Machine};
use lab::markers::Marker;
use lab::{Backend, on_both_backends, scenario};

use super::guest::{NIC, NVME, assert_reads, disk, finish, run};

on_both_backends!(devices_sleep_are_reset_and_work_again);

const ALL_ONES: Option<u64> = Some(u32::MAX as u64);

/// In D3hot only config space answered, and after it the function was as its
/// No_Soft_Reset bit says (PCI-PM 1.2 §5.4.1).
fn assert_slept(power: &Marker) {
    let number = |key| power.number(key);
    assert_ne!(number("awake"), ALL_ONES, "{power:?}");
    assert_eq!(number("state"), Some(3), "{power:?}");
    assert_ne!(number("id"), ALL_ONES, "{power:?}");
    assert_eq!(number("asleep"), ALL_ONES, "{power:?}");
    if number("keeps") == Some(1) {
        assert_eq!(number("woken-command"), number("command"), "{power:?}");
        assert_eq!(number("woken-bar"), number("bar"), "{power:?}");
        assert_eq!(number("woken"), number("awake"), "{power:?}");
    } else {
        assert_eq!(number("woken-command"), Some(0), "{power:?}");
        assert_eq!(number("woken-bar"), Some(0), "{power:?}");
        assert_eq!(number("woken"), ALL_ONES, "{power:?}");
    }
    assert_eq!(number("again"), number("awake"), "{power:?}");
}

fn devices_sleep_are_reset_and_work_again(backend: Backend) {
    let machine = Machine::new(format!("power-{backend}"))
        .device(Device::nvme("disk", disk()))
        .device(Device::e1000e("nic"));
    scenario(&machine, |host| {
        host.bind_vfio(&["disk", "nic"])?;
        let script = format!(
            "task_nvme
            for id in {NVME} {NIC}; do
                unbind $id
                guest-pci sleep $id 8
                for method in $(cat $device/reset_method); do
                    echo $method >$device/reset_method
                    echo 1 >$device/reset && marker reset \"id=$id method=$method\"
                    guest-pci sleep $id 8
                done
                rebind
            done
            task_nvme
            task_net"
        );
        let run = run(host, backend, &script)?
            .device(host.address("disk")?)
            .device(host.address("nic")?);
        let markers = finish(host, &run)?;
        let slept: Vec<_> = markers.all("power").collect();
        assert_eq!(slept.len(), 2 + markers.all("reset").count());
        slept.into_iter().for_each(assert_slept);
        for (id, expected) in [(NVME, ["flr", "bus"]), (NIC, ["pm", "bus"])] {
            let of = markers.all("reset").filter(|reset| reset.value("id") == id);
            let methods: Vec<_> = of.map(|reset| reset.value("method")).collect();
            for method in expected {
                assert!(methods.contains(&method), "{id}: {methods:?}");
            }
        }
        assert_reads(&markers, 2);
        let net = markers.first("net").expect("the guest has no network");
        assert_eq!(net.number("received"), net.number("sent"), "{net:?}");
        Ok(())
    });
}
