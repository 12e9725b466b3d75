//! Each step to a device refused, on both ways: what was done before is undone,
//! and the next try finds everything as it was.

use std::sync::Arc;

use devices::pci::PciAddress;

use super::by_group::GroupMember;
use super::fake_kernel::FakeKernel;
use super::{AttachedDevice, Calls, Container, Ioas, Refusal};

/// Devices and their groups: two of one group, one of another.
const DEVICES: [(u8, u32); 3] = [(1, 5), (2, 5), (3, 7)];

fn address(device: u8) -> PciAddress {
    PciAddress::new(0, device, 0, 0).unwrap()
}

/// Takes all devices; the answer keeps them.
type Take = fn(&FakeKernel) -> Result<Vec<AttachedDevice>, Refusal>;

fn by_group(kernel: &FakeKernel) -> Result<Vec<AttachedDevice>, Refusal> {
    let kvm = kernel.given("kvm");
    let container = Container::open(calls(kernel), None, Some(kvm))?;
    let attach = |(device, group)| container.attach(address(device), group, None, None);
    DEVICES.into_iter().map(attach).collect()
}

fn by_cdev(kernel: &FakeKernel) -> Result<Vec<AttachedDevice>, Refusal> {
    let kvm = kernel.given("kvm");
    let ioas = Ioas::open(calls(kernel), None, Some(kvm))?;
    let attach = |(device, _)| ioas.attach(address(device), None, None);
    DEVICES.into_iter().map(attach).collect()
}

/// As [`crate::open`] does: all groups joined before a device is opened, and these
/// from the last on.
fn by_group_at_once(kernel: &FakeKernel) -> Result<Vec<AttachedDevice>, Refusal> {
    let kvm = kernel.given("kvm");
    let container = Container::open(calls(kernel), None, Some(kvm))?;
    let join = |(device, group)| Ok((device, container.join(group, None)?));
    let joined: Vec<_> = DEVICES.into_iter().map(join).collect::<Result<_, _>>()?;
    let open = |(device, member): (_, GroupMember)| member.open(address(device), None);
    let opened: Vec<_> = joined.into_iter().rev().map(open).collect();
    opened.into_iter().rev().collect()
}

/// The same by the devices' own files.
fn by_cdev_at_once(kernel: &FakeKernel) -> Result<Vec<AttachedDevice>, Refusal> {
    let kvm = kernel.given("kvm");
    let ioas = Ioas::open(calls(kernel), None, Some(kvm))?;
    let open = |(device, _)| ioas.open_cdev(address(device), None);
    let cdevs: Vec<_> = DEVICES.into_iter().map(open).collect::<Result<_, _>>()?;
    let attached: Vec<_> = cdevs
        .into_iter()
        .rev()
        .map(|cdev| cdev.attach(None))
        .collect();
    attached.into_iter().rev().collect()
}

fn calls(kernel: &FakeKernel) -> Arc<dyn Calls> {
    Arc::new(kernel.clone())
}

const WAYS: [Take; 4] = [by_group, by_cdev, by_group_at_once, by_cdev_at_once];

fn assert_as_before(kernel: &FakeKernel, what: &str) {
    let log = kernel.log();
    assert_eq!(kernel.open_files(), [""; 0], "{what}: {log:?}");
    assert_eq!(kernel.left_over(), 0, "{what}: {log:?}");
}

#[test]
fn a_refusal_at_any_step_undoes_those_before_it() {
    for take in WAYS {
        let kernel = FakeKernel::default();
        drop(take(&kernel).unwrap());
        let steps = kernel.steps();
        assert_as_before(&kernel, "after the end");
        assert!(steps >= 9, "{steps} steps");
        for step in 0..steps {
            kernel.refuse_after(step);
            let refusal = take(&kernel).unwrap_err();
            assert_eq!(refusal.source.raw_os_error(), Some(libc::EIO));
            assert_as_before(&kernel, &format!("step {step} refused"));
            kernel.relent();
            drop(take(&kernel).unwrap());
            assert_as_before(&kernel, &format!("the try after step {step}"));
        }
    }
}

#[test]
fn devices_of_a_group_go_in_any_order_and_leave_the_others_alone() {
    for take in WAYS {
        for order in [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ] {
            let kernel = FakeKernel::default();
            let mut devices: Vec<_> = take(&kernel).unwrap().into_iter().map(Some).collect();
            for gone in order {
                devices[gone] = None;
                let left = devices.iter().flatten().count();
                let open = kernel.open_files();
                let files = open
                    .iter()
                    .filter(|name| name.contains("device") || name.contains("cdev"));
                assert_eq!(files.count(), left, "{order:?}: {open:?}");
            }
            assert_as_before(&kernel, &format!("{order:?}"));
        }
    }
}

#[test]
fn a_device_that_went_comes_back_into_the_same_space() {
    let kernel = FakeKernel::default();
    let container = Container::open(calls(&kernel), None, None).unwrap();
    let first = container.attach(address(1), 5, None, None).unwrap();
    let second = container.attach(address(2), 5, None, None).unwrap();
    drop(first);
    let first = container.attach(address(1), 5, None, None).unwrap();
    assert!(container.has_groups());
    drop((first, second));
    assert!(!container.has_groups());
    kernel.log();
    // The kernel has forgotten the IOMMU with the last group.
    let again = container.attach(address(1), 5, None, None).unwrap();
    assert!(kernel.log().contains(&"set iommu".to_owned()));
    drop((again, container));
    assert_as_before(&kernel, "at the end");
}

#[test]
fn no_group_leaves_while_its_maps_are_being_undone() {
    let kernel = FakeKernel::default();
    let container = Container::open(calls(&kernel), None, None).unwrap();
    let device = container.attach(address(1), 5, None, None).unwrap();
    std::thread::scope(|scope| {
        let undone = container.while_groups_stay(|| {
            let closing = scope.spawn(move || drop(device));
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!closing.is_finished());
        });
        assert!(undone.is_some());
    });
    assert!(
        container.while_groups_stay(|| ()).is_none(),
        "all is undone"
    );
    drop(container);
    assert_as_before(&kernel, "at the end");
}

#[test]
fn what_is_given_open_is_not_opened() {
    let kernel = FakeKernel::default();
    let container = Container::open(calls(&kernel), Some(kernel.given("container")), None);
    let group = Some(kernel.given("group 5"));
    let container = container.unwrap();
    let device = container.attach(address(1), 5, group, None).unwrap();
    let opened = kernel
        .log()
        .into_iter()
        .filter(|step| step.starts_with("open"));
    assert_eq!(opened.collect::<Vec<_>>(), ["open 0000:01:00.0 of group 5"]);
    drop((device, container));
    assert_as_before(&kernel, "by group");

    let ioas = Ioas::open(calls(&kernel), Some(kernel.given("iommufd")), None).unwrap();
    let cdev = Some(kernel.given("cdev 0000:01:00.0"));
    let device = ioas.attach(address(1), cdev, None).unwrap();
    assert!(!kernel.log().iter().any(|step| step.starts_with("open")));
    drop((ioas, device));
    assert_as_before(&kernel, "by cdev");
}
