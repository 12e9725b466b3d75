//! What is refused, and why; and what is planned.

use std::collections::BTreeSet;

use super::fake::{FakeDevice, FakeDriver};
use super::scene::{NICS, NVME, PF, Scene, VFS, name};
use super::*;
use crate::host::{GroupId, HostUse};

fn refusal(scene: &Scene) -> String {
    scene.plan().unwrap_err().to_string()
}

#[test]
fn a_plan_reads_as_a_script() {
    let scene = Scene::overridden();
    let expected = "\
# 0000:01:00.0: from nvme to vfio-pci
echo vfio-pci > /sys/bus/pci/devices/0000:01:00.0/driver_override
echo 0000:01:00.0 > /sys/bus/pci/drivers/nvme/unbind
echo 0000:01:00.0 > /sys/bus/pci/drivers_probe
# to give 0000:01:00.0 back:
echo nvme > /sys/bus/pci/devices/0000:01:00.0/driver_override
echo 0000:01:00.0 > /sys/bus/pci/drivers/vfio-pci/unbind
echo 0000:01:00.0 > /sys/bus/pci/drivers_probe
";
    assert_eq!(scene.plan().unwrap().to_string(), expected);
    assert!(scene.fake.log().is_empty(), "planning changes nothing");

    let text = Scene::fallback().plan().unwrap().to_string();
    assert!(
        text.contains("to best_vfio_pci, else vfio-pci\nmodprobe best_vfio_pci\n"),
        "{text}"
    );
    let text = Scene::half_right().plan().unwrap().to_string();
    assert!(
        text.contains("# 0000:02:00.0 is already on vfio-pci: nothing to do"),
        "{text}"
    );
    let text = Scene::physical_function().plan().unwrap().to_string();
    assert!(
        text.contains("echo 0 > /sys/bus/pci/devices/0000:03:00.0/sriov_numvfs"),
        "{text}"
    );
    assert!(
        text.contains("# warning: the 2 VFs of 0000:03:00.0 are disabled"),
        "{text}"
    );

    let json = serde_json::to_value(scene.plan().unwrap()).unwrap();
    let step = &json["devices"][0]["steps"][0]["write"];
    assert_eq!(step["value"], "vfio-pci");
}

#[test]
fn the_whole_group_or_a_word_about_the_rest() {
    let mut scene = Scene::group();
    let planned = |scene: &Scene| {
        let plan = scene.plan().unwrap();
        let devices = plan
            .devices
            .iter()
            .map(|planned| planned.device.to_string());
        (devices.collect::<Vec<_>>(), plan.warnings)
    };
    assert_eq!(
        planned(&scene),
        (NICS.map(str::to_owned).to_vec(), Vec::new())
    );
    scene.request.whole_group = false;
    let (devices, warnings) = planned(&scene);
    assert_eq!(devices, [NICS[0]]);
    assert_eq!(
        warnings,
        [
            "group 2 can't be given to a guest yet, for 0000:02:02.0 is on the host driver 'e1000': bind the whole group with --group"
        ]
    );
    // What is out of the way stays there, and so do bridges.
    scene.request.whole_group = true;
    scene.fake.change(NICS[2], |device| {
        device.driver = Some("pci-stub".to_owned())
    });
    scene.fake.change(NICS[1], |device| {
        device.bridge = true;
        device.driver = Some("pcieport".to_owned());
    });
    assert_eq!(planned(&scene), (vec![NICS[0].to_owned()], Vec::new()));
}

#[test]
fn nonsense_is_refused() {
    let mut scene = Scene::one();
    scene.request.driver = Some("../x".to_owned());
    assert!(refusal(&scene).contains("can't be the name of a driver"));
    scene.request = BindRequest::default();
    assert!(refusal(&scene).contains("no device is named"));
    scene.request.devices = vec![name("0000:7f:00.0"), name("platform/none")];
    assert!(refusal(&scene).contains("there is no device 0000:7f:00.0"));
    scene.request.devices.remove(0);
    assert!(refusal(&scene).contains("see `ls /sys/bus/platform/devices`"));
    // Named twice is once.
    scene.request.devices = vec![name(NVME), name("1:0.0")];
    assert_eq!(scene.plan().unwrap().devices.len(), 1);
}

#[test]
fn what_nothing_confines_is_refused() {
    let scene = Scene::one();
    scene.fake.change(NVME, |device| device.group = None);
    assert!(refusal(&scene).contains("in no IOMMU group"));
    scene
        .fake
        .change(NVME, |device| device.group = Some(GroupId(1)));
    scene.fake.change(NVME, |device| device.bridge = true);
    assert!(refusal(&scene).contains("is a bridge"));
    scene.fake.change(NVME, |device| device.bridge = false);
    let mut survey = scene.fake.survey();
    survey.groups.get_mut(&GroupId(1)).unwrap().name = Some("vfio-noiommu".to_owned());
    let error = scene.binder().plan(&survey, &scene.request).unwrap_err();
    assert!(matches!(error, BindError::NoIommu { .. }), "{error}");
}

#[test]
fn what_the_host_needs_takes_force() {
    let mut scene = Scene::one();
    let mut survey = scene.fake.survey();
    let address = name(NVME).address().unwrap();
    let mounted = HostUse::Mounted {
        on: "/".to_owned(),
        device: "nvme0n1p1".to_owned(),
    };
    survey.uses.insert(address, BTreeSet::from([mounted]));
    let plan = |scene: &Scene| scene.binder().plan(&survey, &scene.request);
    let text = plan(&scene).unwrap_err().to_string();
    assert!(text.contains("has the disk of / behind it"), "{text}");
    scene.request.force = vec![name(NVME)];
    let warnings = plan(&scene).unwrap().warnings;
    assert!(
        warnings[0].contains("the host loses that, as forced"),
        "{warnings:?}"
    );
}

#[test]
fn a_driver_that_is_named_is_used() {
    let mut scene = Scene::half_right();
    scene
        .fake
        .add_driver("pci", FakeDriver::vfio("own_vfio_pci"));
    scene.request.driver = Some("own-vfio-pci".to_owned());
    let plan = scene.plan().unwrap();
    let drivers = plan
        .devices
        .iter()
        .map(|planned| planned.targets[0].driver.as_str());
    assert_eq!(
        drivers.collect::<Vec<_>>(),
        ["own_vfio_pci"; 2],
        "as its bus writes it"
    );
    let binding = scene.bind(Keep::WhileHeld).unwrap();
    assert_eq!(binding.devices().len(), 2);
    drop(binding);
    let driver = scene.fake.device(NICS[0]).unwrap().driver;
    assert_eq!(driver.as_deref(), Some("vfio-pci"), "as it was");
    // Not from under a guest, by whatever force.
    scene.fake.open(7, "qemu", "/dev/vfio/2");
    scene.request.force = scene.request.devices.clone();
    assert!(refusal(&scene).contains("qemu (pid 7) has /dev/vfio/2 open"));

    scene.fake.close(7);
    scene.request.driver = Some("nothing".to_owned());
    let error = scene.bind(Keep::WhileHeld).unwrap_err().to_string();
    assert!(error.contains("cannot load module nothing"), "{error}");
    assert!(error.contains("not found"), "{error}");
}

#[test]
fn a_variant_comes_first_and_a_right_device_stays() {
    let scene = Scene::fallback();
    let binding = scene.bind(Keep::UntilReleased).unwrap();
    let notes = binding.notes();
    assert!(
        notes[0].contains("is on vfio-pci: 0000:01:00.0 should be on best_vfio_pci"),
        "{notes:?}"
    );
    // It is airlock's, and nobody else's to bind.
    assert!(refusal(&scene).contains("is bound already"));
    let scene = Scene::fallback();
    scene.fake.change(NVME, |device| {
        device.driver = Some("vfio-pci".to_owned());
    });
    let plan = scene.plan().unwrap();
    assert_eq!(plan.right.len(), 1);
    assert!(
        plan.warnings[0].contains("--driver best_vfio_pci"),
        "{plan}"
    );
    // Claimed by its ids before anybody asked.
    let mut scene = Scene::one();
    scene
        .fake
        .change(NVME, |device| device.driver = Some("vfio-pci".to_owned()));
    let binding = scene.bind(Keep::WhileHeld).unwrap();
    assert_eq!(
        binding.right()[0].to_string(),
        "0000:01:00.0 is already on vfio-pci"
    );
    drop(binding);
    assert!(scene.fake.log().is_empty() && scene.journals().is_empty());
    scene.request.driver = Some("vfio_pci".to_owned());
    assert!(scene.plan().unwrap().devices.is_empty());
}

#[test]
fn lockdown_is_reported_as_such() {
    let scene = Scene::fallback();
    scene.fake.set_lockdown("none [integrity] confidentiality");
    let before = scene.devices();
    let error = scene.bind(Keep::UntilReleased).unwrap_err().to_string();
    assert!(
        error.contains("The kernel is locked down (integrity)"),
        "{error}"
    );
    assert!(error.contains("only signed modules"), "{error}");
    assert_eq!(scene.devices(), before);
    assert!(scene.journals().is_empty());
    // What is there already needs no module.
    scene.fake.add_driver("pci", FakeDriver::vfio("vfio-pci"));
    let binding = scene.bind(Keep::UntilReleased).unwrap();
    assert!(
        binding.notes()[0].contains("locked down"),
        "{:?}",
        binding.notes()
    );
    scene.fake.set_lockdown("[none] integrity confidentiality");
    assert!(binding.release().unwrap()[0].is_back());
}

#[test]
fn vfs_go_only_when_nobody_has_them() {
    let mut scene = Scene::physical_function();
    scene.request.disable_vfs = false;
    assert!(refusal(&scene).contains("has 2 VFs"));
    scene.request.disable_vfs = true;
    let vfs = BindRequest {
        devices: vec![name(VFS[0])],
        ..BindRequest::default()
    };
    let plan = scene.binder().plan(&scene.fake.survey(), &vfs).unwrap();
    let early = scene.plan().unwrap();
    let vf = scene.binder().bind(&plan, Keep::UntilReleased).unwrap();
    assert!(refusal(&scene).contains("0000:03:10.0 is held by airlock"));
    let error = scene
        .binder()
        .bind(&early, Keep::UntilReleased)
        .unwrap_err();
    assert!(
        matches!(error, BindError::VirtualFunctionInUse { .. }),
        "{error}"
    );
    scene.fake.open(7, "qemu", "/dev/vfio/1000");
    assert!(refusal(&scene).contains("0000:03:10.0 is in use by qemu (pid 7)"));
    scene.fake.close(7);
    assert_eq!(
        scene.fake.device(PF).unwrap().driver.as_deref(),
        Some("igb")
    );
    assert!(vf.release().unwrap()[0].is_back());
    assert_eq!(scene.plan().unwrap().devices[0].virtual_functions.len(), 2);
    // VFs that were made after the plan.
    let scene = Scene::physical_function();
    scene.fake.change(PF, |pf| {
        pf.virtual_functions = Some((0, VFS.map(name).to_vec()))
    });
    VFS.iter().for_each(|vf| scene.fake.unplug(vf));
    let plan = scene.plan().unwrap();
    scene.fake.change(PF, |pf| {
        pf.virtual_functions = Some((2, VFS.map(name).to_vec()))
    });
    let error = scene.binder().bind(&plan, Keep::UntilReleased).unwrap_err();
    assert!(
        matches!(error, BindError::HasVirtualFunctions { .. }),
        "{error}"
    );
}

#[test]
fn other_buses_go_the_same_way() {
    const ETHERNET: &str = "platform/fff51000.ethernet";
    let mut scene = Scene::new(&[ETHERNET]);
    scene
        .fake
        .add_driver("platform", FakeDriver::host("xgmac", &["xgmac"]));
    scene.fake.add_module(
        "vfio_platform",
        "platform",
        FakeDriver::vfio("vfio-platform"),
    );
    scene
        .fake
        .add_device(ETHERNET, FakeDevice::new("xgmac", 4, "xgmac"));
    let before = scene.devices();
    let binding = scene.bind(Keep::WhileHeld).unwrap();
    let driver = scene.fake.device(ETHERNET).unwrap().driver;
    assert_eq!(driver.as_deref(), Some("vfio-platform"));
    drop(binding);
    assert_eq!(scene.devices(), before);

    let other = "fsl-mc/dprc.2";
    scene.fake.add_device(other, FakeDevice::new("dprc", 5, ""));
    scene.request.devices = vec![name(other)];
    assert!(refusal(&scene).contains("name it with --driver"));
    scene
        .fake
        .add_driver("fsl-mc", FakeDriver::vfio("vfio-fsl-mc"));
    scene.request.driver = Some("vfio-fsl-mc".to_owned());
    drop(scene.bind(Keep::WhileHeld).unwrap());
    assert_eq!(scene.fake.device(other).unwrap().driver, None);
}
