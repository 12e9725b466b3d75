//! Hosts for the tests of binding.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use super::fake::{FakeDevice, FakeDriver, FakeSysfs};
use super::{BindError, BindPlan, BindRequest, Binder, Binding, DeviceName, Keep};

pub(super) const NVME: &str = "0000:01:00.0";
pub(super) const NICS: [&str; 3] = ["0000:02:00.0", "0000:02:01.0", "0000:02:02.0"];
pub(super) const PF: &str = "0000:03:00.0";
pub(super) const VFS: [&str; 2] = ["0000:03:10.0", "0000:03:10.2"];

/// What a scene is about, and how it is set up.
type Named = (&'static str, fn() -> Scene);

/// A host, a place for its journals, and what is asked for on it.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) fake: FakeSysfs,
    pub(super) request: BindRequest,
    pub(super) run: TempDir,
}

pub(super) fn name(device: &str) -> DeviceName {
    device.parse().unwrap()
}

impl Scene {
    /// The host without devices, and a request for `devices`.
    pub(super) fn new(devices: &[&str]) -> Self {
        let fake = FakeSysfs::new();
        fake.set_boot_id("first");
        fake.add_driver("pci", FakeDriver::host("nvme", &["1b36:0010"]));
        fake.add_driver("pci", FakeDriver::host("e1000", &["8086:100e"]));
        fake.add_driver("pci", FakeDriver::host("igb", &["8086:10c9"]).with_sriov());
        fake.add_driver("pci", FakeDriver::host("igbvf", &["vf"]));
        Self {
            fake,
            request: BindRequest {
                devices: devices.iter().map(|device| name(device)).collect(),
                ..BindRequest::default()
            },
            // Memory, as /run is: a disk takes its time over each sync.
            run: tempfile::tempdir_in("/dev/shm")
                .or_else(|_| tempfile::tempdir())
                .unwrap(),
        }
    }

    pub(super) fn one() -> Self {
        let scene = Self::new(&[NVME]);
        scene
            .fake
            .add_device(NVME, FakeDevice::new("1b36:0010", 1, "nvme"));
        scene
    }

    /// One without a driver, two on that of the host: a group.
    pub(super) fn group() -> Self {
        let mut scene = Self::new(&NICS[..1]);
        scene.request.whole_group = true;
        for (device, driver) in NICS.into_iter().zip(["e1000", "", "e1000"]) {
            let mut nic = FakeDevice::new("8086:100e", 2, driver);
            nic.power = "auto".to_owned();
            scene.fake.add_device(device, nic);
        }
        scene
    }

    pub(super) fn physical_function() -> Self {
        let mut scene = Self::new(&[PF]);
        scene.request.disable_vfs = true;
        let pf = FakeDevice::new("8086:10c9", 3, "igb").with_virtual_functions(2, &VFS);
        scene.fake.add_device(PF, pf);
        for (device, group) in VFS.into_iter().zip(1000..) {
            let mut vf = FakeDevice::new("vf", group, "igbvf");
            vf.physical = Some(name(PF));
            scene.fake.add_device(device, vf);
        }
        scene
    }

    /// A device that is right, and one that is not.
    pub(super) fn half_right() -> Self {
        let mut scene = Self::one();
        let mut right = FakeDevice::new("8086:100e", 2, "vfio-pci");
        right.vfio_device = Some("vfio0".to_owned());
        scene.fake.add_device(NICS[0], right);
        scene.request.devices.push(name(NICS[0]));
        scene
    }

    /// Its override keeps other drivers of the host away from it.
    pub(super) fn overridden() -> Self {
        let scene = Self::one();
        scene.fake.change(NVME, |device| {
            device.driver_override = Some("nvme".to_owned());
            device.power = "auto".to_owned();
        });
        scene
    }

    /// The variant for it refuses it, and vfio-pci comes with a module.
    pub(super) fn fallback() -> Self {
        let scene = Self::one();
        let variant = FakeDriver::vfio("best_vfio_pci").refusing(NVME);
        scene.fake.add_module("best_vfio_pci", "pci", variant);
        scene
            .fake
            .add_alias("v00001B36d*sv*sd*bc*sc*i*", "best_vfio_pci");
        scene.fake.remove_driver("pci", "vfio-pci");
        scene
            .fake
            .add_module("vfio_pci", "pci", FakeDriver::vfio("vfio-pci"));
        scene
    }

    /// Its override names a driver, but nobody has had it probed since.
    pub(super) fn astray() -> Self {
        let scene = Self::one();
        scene.fake.change(NVME, |device| {
            device.driver_override = Some("vfio-pci".to_owned());
        });
        scene
    }

    /// On vfio-pci by an override that was cleared since.
    pub(super) fn rebound() -> Self {
        let mut scene = Self::one();
        scene
            .fake
            .add_driver("pci", FakeDriver::vfio("own_vfio_pci"));
        scene.fake.change(NVME, |device| {
            device.driver = Some("vfio-pci".to_owned());
            device.vfio_device = Some("vfio-0000:01:00.0".to_owned());
            device.power = "auto".to_owned();
        });
        scene.request.driver = Some("own_vfio_pci".to_owned());
        scene
    }

    pub(super) fn all() -> [Named; 8] {
        [
            ("one device", Self::one),
            ("a group of three", Self::group),
            ("a PF with VFs", Self::physical_function),
            ("one of two is right", Self::half_right),
            ("a device with an override", Self::overridden),
            ("a variant that refuses", Self::fallback),
            ("from one VFIO driver to another", Self::rebound),
            ("an override that leads elsewhere", Self::astray),
        ]
    }

    pub(super) fn binder(&self) -> Binder {
        let limit = Duration::from_millis(50);
        Binder::new(Box::new(self.fake.clone()), self.run.path(), limit)
    }

    pub(super) fn plan(&self) -> Result<BindPlan, BindError> {
        self.binder().plan(&self.fake.survey(), &self.request)
    }

    pub(super) fn bind(&self, keep: Keep) -> Result<Binding, BindError> {
        self.binder().bind(&self.plan()?, keep)
    }

    /// Runs `work` as a program of its own that a fault may end.
    pub(super) fn program<T>(work: impl FnOnce() -> T) -> Option<T> {
        catch_unwind(AssertUnwindSafe(work)).ok()
    }

    pub(super) fn devices(&self) -> BTreeMap<DeviceName, FakeDevice> {
        self.fake.devices()
    }

    /// Everything in the folder of the journals.
    pub(super) fn journals(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.run.path().join("bindings"));
        let entries = entries.into_iter().flatten().flatten();
        let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths
    }

    /// How many steps `work` takes.
    pub(super) fn steps(&self, work: impl FnOnce()) -> usize {
        let before = self.fake.log().len();
        work();
        self.fake.log().len() - before
    }
}
