use super::place::find;
use super::*;
use crate::host::GroupId;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use tempfile::TempDir;

const NVME: &str = "0000:01:00.0";

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

/// A sysfs with one device in group 5 and one without a group.
fn sysfs() -> TempDir {
    let root = TempDir::new().unwrap();
    fs::create_dir_all(root.path().join("groups/5")).unwrap();
    for device in [NVME, "0000:00:1f.0"] {
        fs::create_dir(root.path().join(device)).unwrap();
    }
    symlink("../groups/5", root.path().join(NVME).join("iommu_group")).unwrap();
    root
}

fn refusal(step: Step, errno: i32) -> Refusal {
    let source = io::Error::from_raw_os_error(errno);
    Refusal { step, source }
}

#[test]
fn devices_are_found_with_their_group() {
    let root = sysfs();
    let places = find(root.path(), &[address(NVME).into()]).unwrap();
    assert_eq!(places[0].group, GroupId(5));
    assert_eq!(places[0].path, root.path().join(NVME));
}

#[test]
fn what_can_be_known_without_the_kernel_is_refused_first() {
    let root = sysfs();
    let error = |devices: &[&str]| {
        let devices: Vec<_> = devices.iter().map(|text| address(text).into()).collect();
        find(root.path(), &devices).unwrap_err().to_string()
    };
    assert!(error(&[]).contains("no device"));
    assert!(error(&[NVME, NVME]).contains("0000:01:00.0 is named twice"));
    assert!(error(&["0000:02:00.0"]).contains("0000:02:00.0 does not exist"));
    assert!(error(&["0000:00:1f.0"]).contains("no IOMMU group"));
}

#[test]
fn refusals_name_device_group_file_cause_and_next_step() {
    let place = Place {
        device: address(NVME),
        token: None,
        path: PathBuf::from("/sys/bus/pci/devices/0000:01:00.0"),
        group: GroupId(5),
    };
    for (step, errno, words) in [
        (Step::OpenGroup, libc::EBUSY, "another process"),
        (Step::OpenGroup, libc::EACCES, "chown"),
        (Step::OpenGroup, libc::ENOENT, "bind the device to vfio-pci"),
        (Step::NotViable, libc::EPERM, "owns the DMA"),
        (Step::ClaimGroup, libc::EPERM, "owns the DMA"),
        (Step::ClaimGroup, libc::EBUSY, "claimed already"),
        (Step::SetIommu, libc::EPERM, "interrupt remapping"),
        (Step::OpenDevice, libc::ENODEV, "not on a VFIO driver"),
        (Step::OpenDevice, libc::EACCES, "token"),
        (Step::OpenDevice, libc::EAGAIN, "try again"),
    ] {
        let error = OpenError::of_device(&place, refusal(step, errno));
        let text = error.to_string();
        assert!(text.contains(words), "{text}");
        assert!(
            text.contains("device 0000:01:00.0 of IOMMU group 5"),
            "{text}"
        );
        assert!(
            text.contains("/dev/vfio/5") || text.contains("/sys/bus"),
            "{text}"
        );
        let OpenError::Refused { source, .. } = error else {
            panic!("{text}");
        };
        assert_eq!(source.raw_os_error(), Some(errno));
    }
}

#[test]
fn a_host_without_vfio_is_told_what_to_load() {
    let error = OpenError::of_host(refusal(Step::OpenContainer, libc::ENOENT)).to_string();
    assert!(
        error.contains("/dev/vfio/vfio") && error.contains("modprobe vfio-pci"),
        "{error}"
    );
}
