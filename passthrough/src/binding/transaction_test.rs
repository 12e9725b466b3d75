//! Whatever goes wrong, at every step: the host gets back what it had.

use super::fake::Fault;
use super::scene::{NICS, NVME, PF, Scene, VFS, name};
use super::*;

fn drivers(scene: &Scene, devices: &[&str]) -> Vec<Option<String>> {
    let driver = |device: &&str| scene.fake.device(device).unwrap().driver;
    devices.iter().map(driver).collect()
}

fn is_back(released: &[Released]) -> bool {
    let back = |released: &Released| matches!(released.outcome, Outcome::Back { .. });
    released.iter().all(back)
}

#[test]
fn what_was_bound_comes_back() {
    for (what, scene) in Scene::all() {
        for keep in [Keep::UntilReleased, Keep::WhileHeld] {
            let scene = scene();
            let before = scene.devices();
            let plan = scene.plan().unwrap();
            let binding = scene.bind(keep).unwrap();
            assert!(!binding.devices().is_empty(), "{what}");
            for device in binding.devices() {
                let device = scene.devices()[device].clone();
                let driver = scene.request.driver.as_deref().or(Some("vfio-pci"));
                assert_eq!(device.driver.as_deref(), driver, "{what}");
                assert_eq!(device.driver_override.as_deref(), driver, "{what}");
            }
            let planned: Vec<_> = plan.devices.iter().map(|p| p.device.clone()).collect();
            assert_eq!(binding.devices(), planned);
            assert_eq!(binding.right(), plan.right);
            assert_eq!(scene.journals().len(), 1);
            let released = binding.release().unwrap();
            assert_eq!(released.len(), planned.len());
            assert!(is_back(&released), "{what}: {released:?}");
            assert_eq!(scene.devices(), before, "{what}");
            assert!(scene.journals().is_empty(), "{what}");
        }
    }
}

#[test]
fn the_steps_are_those_of_the_plan() {
    for (what, scene) in Scene::all() {
        if what == "a variant that refuses" {
            continue;
        }
        let scene = scene();
        let plan = scene.plan().unwrap();
        let text = |steps: &Vec<Step>| steps.iter().map(ToString::to_string).collect::<Vec<_>>();
        let steps: Vec<_> = plan.devices.iter().flat_map(|p| text(&p.steps)).collect();
        let binding = scene.bind(Keep::UntilReleased).unwrap();
        assert_eq!(scene.fake.log(), steps, "{what}");
        let begin = scene.fake.log().len();
        binding.release().unwrap();
        // Where a device slept before, it is let sleep again, which a plan
        // can't know.
        let mut log = scene.fake.log().split_off(begin);
        log.retain(|line| !line.ends_with("power/control"));
        let undo = plan.devices.iter().rev().flat_map(|p| text(&p.undo));
        assert_eq!(log, undo.collect::<Vec<_>>(), "{what}");
    }
}

#[test]
fn a_failure_at_any_step_leaves_no_trace() {
    for (what, scene) in Scene::all() {
        let trial = scene();
        let steps = trial.steps(|| drop(trial.bind(Keep::UntilReleased).unwrap()));
        assert!(steps >= 3, "{what}");
        for step in 0..steps {
            for errno in [libc::EIO, libc::ENODEV, libc::EINVAL] {
                let scene = scene();
                let before = scene.devices();
                scene.fake.fault(step, Fault::Errno(errno));
                let result = scene.bind(Keep::UntilReleased);
                let (devices, log) = (scene.devices(), scene.fake.log());
                let Err(error) = result else {
                    // Another driver could take the place of the one that failed.
                    assert_eq!(what, "a variant that refuses", "step {step}: {log:#?}");
                    continue;
                };
                assert_eq!(devices, before, "{what}, step {step}: {log:#?}");
                assert!(scene.journals().is_empty(), "{what}, step {step}");
                if let BindError::Undone { undone, .. } = &error {
                    assert!(is_back(undone), "{error}");
                    assert!(
                        error.to_string().ends_with("Everything is as it was"),
                        "{error}"
                    );
                } else {
                    assert!(log[step].starts_with("modprobe"), "{error}");
                }
            }
        }
    }
}

#[test]
fn a_crash_at_any_step_is_mended_by_the_next() {
    for (what, scene) in Scene::all() {
        let trial = scene();
        let steps = trial.steps(|| drop(trial.bind(Keep::UntilReleased).unwrap()));
        for step in 0..steps {
            for crash in [Fault::CrashBefore, Fault::CrashAfter] {
                for keep in [Keep::UntilReleased, Keep::WhileHeld] {
                    let scene = scene();
                    let before = scene.devices();
                    scene.fake.fault(step, crash.clone());
                    assert!(Scene::program(|| scene.bind(keep)).is_none());
                    let released = scene.binder().release_stale().unwrap();
                    assert!(is_back(&released), "{what}, step {step}: {released:?}");
                    let log = scene.fake.log();
                    assert_eq!(scene.devices(), before, "{what}, step {step}: {log:#?}");
                    assert!(scene.journals().is_empty());
                }
            }
        }
    }
}

#[test]
fn a_restore_that_is_cut_short_is_done_again() {
    for (what, scene) in Scene::all() {
        let trial = scene();
        let binding = trial.bind(Keep::UntilReleased).unwrap();
        let steps = trial.steps(|| assert!(is_back(&binding.release().unwrap())));
        for step in 0..steps {
            for crash in [
                Fault::CrashBefore,
                Fault::CrashAfter,
                Fault::Errno(libc::EIO),
            ] {
                let scene = scene();
                let before = scene.devices();
                let binding = scene.bind(Keep::WhileHeld).unwrap();
                scene.fake.fault(step, crash.clone());
                let first = Scene::program(|| binding.release().unwrap());
                if let Some(first) = first {
                    let failed: Vec<_> = first.iter().filter(|r| !r.is_back()).collect();
                    assert_eq!(failed.len(), 1, "{what}, step {step}: {first:?}");
                }
                let again = scene.binder().release_stale().unwrap();
                assert!(!again.is_empty(), "{what}, step {step}");
                assert!(is_back(&again), "{what}, step {step}: {again:?}");
                let log = scene.fake.log();
                assert_eq!(scene.devices(), before, "{what}, step {step}: {log:#?}");
                assert!(scene.journals().is_empty());
                assert!(scene.binder().release_stale().unwrap().is_empty());
            }
        }
    }
}

#[test]
fn a_rollback_that_fails_is_told_and_done_later() {
    let scene = Scene::group();
    let before = scene.devices();
    // The third device can't be had; the first does not go back at once.
    scene.fake.fault(7, Fault::Errno(libc::EIO));
    for step in 8..20 {
        scene.fake.fault(step, Fault::Errno(libc::EIO));
    }
    let error = scene.bind(Keep::UntilReleased).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("Not everything is as it was"), "{text}");
    assert!(text.contains("airlock release --stale"), "{text}");
    let held = scene.binder().bindings().unwrap();
    assert!(held.iter().all(|held| held.state == HeldState::Stale));
    assert!(!held.is_empty() && held.len() <= 3);
    scene.fake.clear_faults();
    assert!(is_back(&scene.binder().release_stale().unwrap()));
    assert_eq!(scene.devices(), before);
}

#[test]
fn another_driver_in_between_is_noticed_and_left() {
    use super::kernel::{bind, set_override, unbind};
    let scene = Scene::one();
    let device = name(NVME);
    scene
        .fake
        .add_driver("pci", super::fake::FakeDriver::host("other", &[]));
    // Between override and unbind: the unbind finds it gone.
    let others = vec![
        unbind(&device, "nvme"),
        set_override(&device, Some("other")),
        bind(&device, "other"),
    ];
    scene.fake.fault(0, Fault::Others(others.clone()));
    let error = scene.bind(Keep::UntilReleased).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("is on other now, but was on nvme"), "{text}");
    assert!(text.contains("somebody else did: left alone"), "{text}");
    assert_eq!(drivers(&scene, &[NVME]), [Some("other".to_owned())]);
    assert!(scene.journals().is_empty());

    // Between unbind and probe: the probe finds it taken.
    let scene = Scene::one();
    scene
        .fake
        .add_driver("pci", super::fake::FakeDriver::host("other", &[]));
    scene.fake.fault(1, Fault::Others(others[1..].to_vec()));
    let error = scene.bind(Keep::UntilReleased).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("should be on vfio-pci, but is on other"),
        "{text}"
    );

    // While it is held: it is not taken from them.
    let scene = Scene::one();
    scene
        .fake
        .add_driver("pci", super::fake::FakeDriver::host("other", &[]));
    let binding = scene.bind(Keep::UntilReleased).unwrap();
    scene.fake.change(NVME, |device| {
        device.driver = Some("other".to_owned());
        device.vfio_device = None;
    });
    let released = binding.release().unwrap();
    let driver = "other".to_owned();
    assert_eq!(released[0].outcome, Outcome::LeftAlone { driver });
    assert_eq!(scene.fake.device(NVME).unwrap().driver_override, None);
    assert!(scene.journals().is_empty());
}

#[test]
fn a_plan_is_not_carried_out_on_another_host() {
    let scene = Scene::one();
    let plan = scene.plan().unwrap();
    scene.fake.change(NVME, |device| device.driver = None);
    let error = scene.binder().bind(&plan, Keep::UntilReleased).unwrap_err();
    assert!(matches!(error, BindError::Changed { .. }), "{error}");
    scene.fake.unplug(NVME);
    let error = scene.binder().bind(&plan, Keep::UntilReleased).unwrap_err();
    assert!(matches!(error, BindError::NotThere { .. }), "{error}");
    assert!(scene.fake.log().is_empty() && scene.journals().is_empty());
}

#[test]
fn a_device_that_is_being_unbound_is_in_use_though_its_file_has_no_name() {
    let scene = Scene::one();
    let plan = scene.plan().unwrap();
    scene.binder().bind(&plan, Keep::UntilReleased).unwrap();
    // Somebody unbinds it by hand while a guest has its own file.
    scene.fake.change(NVME, |device| {
        device.driver = None;
        device.vfio_device = None;
    });
    let file = "/dev/vfio/devices/vfio0 (deleted)";
    scene.fake.open(7, "airlock", file);
    let told = scene.binder().release_all().unwrap();
    let told = told.first().map(ToString::to_string).unwrap_or_default();
    assert!(told.contains("in use") && told.contains("pid 7"), "{told}");
    scene.fake.close(7);
}

#[test]
fn an_unbind_that_waits_is_left_behind_and_ends_well() {
    // A guest has the second one of the group; it was bound by hand, to
    // another driver, and no file shows whose it is until later.
    let mut scene = Scene::one();
    scene.request.driver = Some("other-vfio-pci".to_owned());
    scene
        .fake
        .add_driver("pci", super::fake::FakeDriver::vfio("other-vfio-pci"));
    scene.fake.change(NVME, |device| {
        device.driver = Some("vfio-pci".to_owned());
        device.vfio_device = Some("vfio0".to_owned());
        device.driver_override = Some("vfio-pci".to_owned());
    });
    let before = scene.devices();
    let plan = scene.plan().unwrap();
    // It is opened between the look and the unbind.
    let holder = crate::host::Holder {
        pid: 7,
        name: "qemu".to_owned(),
        file: "/dev/vfio/1".to_owned(),
    };
    scene.fake.fault(0, Fault::Opened(holder));
    let error = scene.binder().bind(&plan, Keep::UntilReleased).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("did not finish"), "{text}");
    assert!(text.contains("Not everything is as it was"), "{text}");
    let steps = scene.fake.log().len();
    assert_eq!(steps, 2, "nothing more is asked: {:?}", scene.fake.log());
    // Still in use: said at once, and kept.
    let released = scene.binder().release_stale().unwrap();
    assert!(
        released[0].to_string().contains("qemu (pid 7)"),
        "{}",
        released[0]
    );
    assert_eq!(scene.fake.log().len(), steps);
    assert_eq!(scene.journals().len(), 1);
    // The guest ends: the process that was left behind does the rest.
    scene.fake.close(7);
    let device = scene.fake.device(NVME).unwrap();
    assert_eq!(device.driver.as_deref(), Some("vfio-pci"));
    assert_eq!(device.driver_override.as_deref(), Some("vfio-pci"));
    assert!(is_back(&scene.binder().release_stale().unwrap()));
    assert_eq!(
        scene.devices()[&name(NVME)].driver,
        before[&name(NVME)].driver
    );
    assert!(scene.journals().is_empty());
}

#[test]
fn what_a_guest_uses_is_not_given_back() {
    let scene = Scene::group();
    let binding = scene.bind(Keep::UntilReleased).unwrap();
    drop(binding);
    scene.fake.open(7, "qemu", "/dev/vfio/2");
    let steps = scene.fake.log().len();
    let released = scene.binder().release_all().unwrap();
    assert_eq!(released.len(), 3);
    assert!(released.iter().all(|released| !released.is_back()));
    assert_eq!(scene.fake.log().len(), steps, "nothing was tried");
    scene.fake.close(7);
    assert!(is_back(&scene.binder().release_all().unwrap()));
}

#[test]
fn a_driver_that_was_unloaded_is_loaded_again() {
    let scene = Scene::one();
    let nvme = super::fake::FakeDriver::host("nvme", &["1b36:0010"]);
    scene.fake.remove_driver("pci", "nvme");
    scene.fake.change(NVME, |device| device.driver = None);
    scene.fake.add_module("nvme", "pci", nvme);
    scene
        .binder()
        .sysfs()
        .load_module("nvme", Binder::LIMIT)
        .unwrap();
    let before = scene.devices();
    assert_eq!(drivers(&scene, &[NVME]), [Some("nvme".to_owned())]);
    let binding = scene.bind(Keep::UntilReleased).unwrap();
    scene.fake.remove_driver("pci", "nvme");
    assert!(is_back(&binding.release().unwrap()));
    assert_eq!(scene.devices(), before);
}

#[test]
fn of_two_drivers_of_the_host_the_right_one_gets_it_back() {
    let scene = Scene::one();
    scene
        .fake
        .add_driver("pci", super::fake::FakeDriver::host("uio", &["1b36:0010"]));
    scene
        .fake
        .change(NVME, |device| device.driver = Some("uio".to_owned()));
    let before = scene.devices();
    let binding = scene.bind(Keep::UntilReleased).unwrap();
    assert!(is_back(&binding.release().unwrap()));
    assert_eq!(scene.devices(), before);
}

#[test]
fn a_device_that_left_is_no_trouble() {
    let scene = Scene::group();
    let binding = scene.bind(Keep::UntilReleased).unwrap();
    scene.fake.unplug(NICS[1]);
    let released = binding.release().unwrap();
    assert_eq!(released[1].outcome, Outcome::Gone);
    assert!(released.iter().all(Released::is_back));
    assert!(scene.journals().is_empty());
}

#[test]
fn vfs_come_back_with_their_pf() {
    let scene = Scene::physical_function();
    let binding = scene.bind(Keep::WhileHeld).unwrap();
    assert!(VFS.iter().all(|vf| scene.fake.device(vf).is_none()));
    drop(binding);
    assert_eq!(
        drivers(&scene, &[PF, VFS[0]]),
        ["igb", "igbvf"].map(|d| Some(d.to_owned()))
    );
}
