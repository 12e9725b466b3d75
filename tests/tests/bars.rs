//! BARs of every kind, as guests find them, use them and move them.

use lab::airlock::Run;
use lab::host::{Exit, Outcome};
use lab::machine::{Device, DeviceModel, Machine, Slot};
use lab::markers::{Marker, Markers};
use lab::{Backend, on_both_backends, scenario};

on_both_backends!(a_bar_below_a_page, a_bar_of_16_gib,);

const ALL_ONES: Option<u64> = Some(0xffff_ffff);

fn integrated(name: &str, model: &str) -> Slot {
    let model = DeviceModel::Other(model.to_owned());
    Slot::Integrated(Device::new(name, model))
}

fn markers(outcome: &Outcome) -> Markers {
    assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("slow"), "{}", outcome.stderr);
    Markers::of(&outcome.lines)
}

/// The size of BAR `index`, as the guest's kernel found it.
fn size(markers: &Markers, index: u64) -> Option<u64> {
    let is = |marker: &&Marker| marker.number("index") == Some(index);
    markers.all("bar").find(is)?.number("size")
}

/// Its registers are a page of the device's, and are reached directly where the
/// guest gives them a page too; anywhere else each access is trapped.
fn a_bar_below_a_page(backend: Backend) {
    const MIDDLE_OF_A_PAGE: u64 = 0xc000_0100;
    const A_PAGE: u64 = 0xc010_0000;
    let machine = Machine::new(format!("small-bar-{backend}"))
        .slot(integrated("shm", "ivshmem-plain,memdev=memory"))
        .qemu_args(["-object", "memory-backend-ram,size=1M,share=on,id=memory"]);
    scenario(&machine, |host| {
        host.bind_vfio(&["shm"])?;
        let run = Run::tasks("bar,poweroff")
            .cmdline("lab.bar=1af4:1110,0,0x5a")
            .cmdline(&format!("lab.move={MIDDLE_OF_A_PAGE:#x},{A_PAGE:#x}"))
            .iommu(backend)
            .device(host.address("shm")?);
        let markers = markers(&host.run(&run.step())?);
        assert_eq!(size(&markers, 0), Some(256));
        assert_eq!(size(&markers, 2), Some(1 << 20));
        let kept = markers.first("bar-kept").expect("the guest found no BAR");
        assert_eq!(kept.number("value"), Some(0x5a), "{kept:?}");
        let moved: Vec<_> = markers.all("bar-moved").collect();
        assert_eq!(moved.len(), 2);
        for (moved, at) in moved.iter().zip([MIDDLE_OF_A_PAGE, A_PAGE]) {
            assert_eq!(moved.number("at"), Some(at));
            assert_eq!(moved.number("off"), ALL_ONES, "decoding was off");
            assert_eq!(moved.number("value"), Some(0x5a), "{moved:?}");
            assert_eq!(moved.number("before"), ALL_ONES, "it left its place");
        }
        Ok(())
    });
}

/// And the ports of the same device, which are trapped.
fn a_bar_of_16_gib(backend: Backend) {
    let machine = Machine::new(format!("large-bar-{backend}"))
        .slot(integrated("large", "pci-testdev,membar=16G"));
    scenario(&machine, |host| {
        host.bind_vfio(&["large"])?;
        let run = Run::tasks("bar,poweroff")
            .cmdline("lab.bar=1b36:0005,2,0x5a")
            .iommu(backend)
            .device(host.address("large")?);
        let markers = markers(&host.run(&run.step())?);
        assert_eq!(size(&markers, 0), Some(4096));
        assert_eq!(size(&markers, 1), Some(256));
        assert_eq!(size(&markers, 2), Some(16 << 30));
        // Nothing is behind the memory: it reads as zero, and not as the ones
        // that are read where no BAR is.
        let kept = markers.first("bar-kept").expect("the guest found no BAR");
        assert!(kept.number("at") >= Some(4 << 30), "{kept:?}");
        assert_eq!(
            (kept.number("value"), kept.number("last")),
            (Some(0), Some(0))
        );
        Ok(())
    });
}
