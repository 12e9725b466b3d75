//! Whose is what: owners, locks, and journals that make no sense.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use super::fake::Fault;
use super::scene::{NICS, NVME, Scene, name};
use super::*;

fn states(scene: &Scene) -> Vec<HeldState> {
    let held = scene.binder().bindings().unwrap();
    held.iter().map(|held| held.state).collect()
}

/// A scene whose binding was cut short.
fn stale() -> Scene {
    let scene = Scene::one();
    scene.fake.fault(2, Fault::CrashBefore);
    assert!(Scene::program(|| scene.bind(Keep::UntilReleased)).is_none());
    assert_eq!(states(&scene), [HeldState::Stale]);
    scene
}

#[test]
fn what_is_held_can_be_told() {
    let scene = Scene::overridden();
    let binding = scene.bind(Keep::UntilReleased).unwrap();
    let held = &scene.binder().bindings().unwrap()[0];
    assert_eq!(
        (held.device.clone(), held.state),
        (name(NVME), HeldState::Kept)
    );
    assert_eq!(
        (held.driver.as_str(), held.keep),
        ("vfio-pci", Keep::UntilReleased)
    );
    assert_eq!(held.back_to.driver.as_deref(), Some("nvme"));
    assert_eq!(held.back_to.driver_override.as_deref(), Some("nvme"));
    assert_eq!(held.back_to.power_control.as_deref(), Some("auto"));
    assert_eq!(held.owner.pid, std::process::id());
    assert!(held.owner.start_time > 0 && !held.owner.command.is_empty());
    assert!(held.owner.since().elapsed().unwrap() < Duration::from_secs(600));
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&held.journal), 0o600);
    assert_eq!(mode(held.journal.parent().unwrap()), 0o700);
    // Dropped, it stays: that is what was asked for.
    drop(binding);
    assert_eq!(states(&scene), [HeldState::Kept]);
    assert!(scene.binder().release_stale().unwrap().is_empty());
    assert_eq!(scene.binder().release(&[name(NVME)]).unwrap().len(), 1);
    assert!(states(&scene).is_empty());
}

#[test]
fn the_living_are_left_alone() {
    let scene = Scene::one();
    let binding = scene.bind(Keep::WhileHeld).unwrap();
    assert_eq!(states(&scene), [HeldState::Live]);
    let steps = scene.fake.log().len();
    let other = scene.binder();
    assert!(other.release_stale().unwrap().is_empty());
    assert!(other.release_all().unwrap().is_empty());
    let error = other.release(&[name(NVME)]).unwrap_err();
    assert!(
        error.to_string().contains("given back when that ends"),
        "{error}"
    );
    assert_eq!(scene.fake.log().len(), steps, "nothing was done");
    drop(binding);
    assert_eq!(
        scene.fake.device(NVME).unwrap().driver.as_deref(),
        Some("nvme")
    );
}

#[test]
fn two_do_not_take_the_same() {
    let scene = Scene::one();
    let plan = scene.plan().unwrap();
    let _binding = scene.bind(Keep::UntilReleased).unwrap();
    // By a plan of before, and by hand meanwhile.
    let error = scene.binder().bind(&plan, Keep::WhileHeld).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("0000:01:00.0 is bound already, by `"),
        "{text}"
    );
    assert!(
        text.contains("s ago: give it back with `airlock release`"),
        "{text}"
    );
    scene.fake.change(NVME, |device| {
        device.driver = Some("nvme".to_owned());
        device.vfio_device = None;
    });
    let error = scene.plan().unwrap_err();
    assert!(matches!(error, BindError::Taken { .. }), "{error}");
    let error = scene.binder().release(&[name(NICS[0])]).unwrap_err();
    assert!(matches!(error, BindError::NotHeld { .. }), "{error}");
}

#[test]
fn many_at_once_come_one_after_the_other() {
    let scene = Scene::group();
    let before = scene.devices();
    thread::scope(|scope| {
        for device in NICS {
            let scene = &scene;
            scope.spawn(move || {
                for _ in 0..20 {
                    let binder = Binder::new(
                        Box::new(scene.fake.clone()),
                        scene.run.path(),
                        Duration::from_secs(20),
                    );
                    let request = BindRequest {
                        devices: vec![name(device)],
                        ..BindRequest::default()
                    };
                    let plan = binder.plan(&scene.fake.survey(), &request).unwrap();
                    let binding = binder.bind(&plan, Keep::WhileHeld).unwrap();
                    assert_eq!(binding.devices(), [name(device)]);
                    let released = binding.release().unwrap();
                    assert!(released.iter().all(Released::is_back), "{released:?}");
                }
            });
        }
    });
    assert_eq!(scene.devices(), before);
    assert!(scene.journals().is_empty());
}

#[test]
fn a_lock_that_is_not_let_go_is_named() {
    let scene = Scene::one();
    drop(scene.bind(Keep::WhileHeld).unwrap());
    let lock = File::open(scene.run.path().join("lock")).unwrap();
    lock.lock().unwrap();
    let begin = Instant::now();
    let error = scene.binder().release_all().unwrap_err();
    assert!(begin.elapsed() >= Duration::from_millis(150));
    let text = error.to_string();
    assert!(
        text.contains(&format!("(pid {}: ", std::process::id())),
        "{text}"
    );
    // What can't be given back now is not lost.
    drop(lock);
    let binding = scene.bind(Keep::WhileHeld).unwrap();
    let lock = File::open(scene.run.path().join("lock")).unwrap();
    lock.lock().unwrap();
    drop(binding);
    drop(lock);
    assert_eq!(states(&scene), [HeldState::Stale]);
    assert!(scene.binder().release_stale().unwrap()[0].is_back());
}

#[test]
fn what_is_left_behind_goes_back_before_the_next_bind() {
    let scene = stale();
    // It is half done: on no driver, with an override.
    assert_eq!(scene.fake.device(NVME).unwrap().driver, None);
    let error = scene.bind(Keep::UntilReleased).unwrap_err();
    // The plan was made while it had no driver.
    assert!(matches!(error, BindError::Changed { .. }), "{error}");
    assert_eq!(
        scene.fake.device(NVME).unwrap().driver.as_deref(),
        Some("nvme")
    );
    let binding = scene.bind(Keep::UntilReleased).unwrap();
    let device = scene.fake.device(NVME).unwrap();
    assert_eq!(device.driver.as_deref(), Some("vfio-pci"));
    assert!(binding.release().unwrap()[0].is_back());
    assert_eq!(scene.fake.device(NVME).unwrap().driver_override, None);
}

#[test]
fn what_is_left_behind_is_not_right() {
    let scene = Scene::one();
    scene.fake.fault(2, Fault::CrashAfter);
    assert!(Scene::program(|| scene.bind(Keep::WhileHeld)).is_none());
    // It is on vfio-pci, and the plan says that this is right.
    let plan = scene.plan().unwrap();
    assert_eq!(plan.right.len(), 1);
    let error = scene.binder().bind(&plan, Keep::WhileHeld).unwrap_err();
    assert!(matches!(error, BindError::Changed { .. }), "{error}");
    let binding = scene.bind(Keep::WhileHeld).unwrap();
    assert_eq!(binding.devices(), [name(NVME)]);
    assert!(binding.release().unwrap()[0].is_back());
}

#[test]
fn a_journal_of_another_boot_means_nothing() {
    let scene = stale();
    scene.fake.set_boot_id("second");
    assert!(states(&scene).is_empty());
    let steps = scene.fake.log().len();
    assert!(scene.binder().release_all().unwrap().is_empty());
    assert_eq!(scene.fake.log().len(), steps);
    assert!(scene.journals().is_empty(), "it was removed");
}

#[test]
fn a_journal_that_makes_no_sense_is_told_and_kept() {
    let scene = stale();
    let whole = fs::read_to_string(&scene.journals()[0]).unwrap();
    let folder = scene.run.path().join("bindings");
    for (file, text, reason) in [
        ("1.json", String::new(), "EOF"),
        ("2.json", whole[..whole.len() / 2].to_owned(), "EOF"),
        (
            "3.json",
            whole.replace("\"version\": 1", "\"version\": 2"),
            "of version 2",
        ),
        (
            "4.json",
            whole.replace("\"nvme\"", "\"../nvme\""),
            "no name of a driver",
        ),
        (
            "5.json",
            whole.replace("pci/0000:01:00.0", "pci/.."),
            "names no device",
        ),
    ] {
        fs::write(folder.join(file), text).unwrap();
        let unreadable = scene.binder().unreadable().unwrap();
        let last = unreadable.last().unwrap();
        assert!(last.reason.contains(reason), "{last}");
        assert!(last.to_string().contains(file), "{last}");
    }
    // What was being written when its writer ended.
    fs::write(folder.join("6.new"), "{").unwrap();
    let released = scene.binder().release_all().unwrap();
    assert_eq!(released.len(), 1, "they do not stop the one that is right");
    assert!(released[0].is_back());
    assert_eq!(scene.journals().len(), 5);
    assert_eq!(scene.binder().unreadable().unwrap().len(), 5);
    // And a device of the host can be bound as ever.
    drop(scene.bind(Keep::WhileHeld).unwrap());
    assert_eq!(scene.journals().len(), 5);
}

#[test]
fn nothing_is_done_without_a_journal() {
    let scene = Scene::one();
    fs::write(scene.run.path().join("bindings"), "no folder").unwrap();
    let error = scene.binder().bind(
        &Binder::new(
            Box::new(scene.fake.clone()),
            scene.run.path().join("other").as_path(),
            Duration::from_millis(50),
        )
        .plan(&scene.fake.survey(), &scene.request)
        .unwrap(),
        Keep::UntilReleased,
    );
    let error = error.unwrap_err();
    assert!(matches!(error, BindError::Journal { .. }), "{error}");
    assert!(scene.fake.log().is_empty());
}

#[test]
fn part_of_a_group_can_be_given_back() {
    let scene = Scene::group();
    let before = scene.devices();
    drop(scene.bind(Keep::UntilReleased).unwrap());
    let released = scene.binder().release(&[name(NICS[0])]).unwrap();
    assert_eq!(released.len(), 1);
    assert_eq!(scene.devices()[&name(NICS[0])], before[&name(NICS[0])]);
    assert_eq!(states(&scene), [HeldState::Kept; 2]);
    assert_eq!(scene.binder().release_all().unwrap().len(), 2);
    assert_eq!(scene.devices(), before);
}

#[test]
fn a_device_that_came_by_itself_goes_to_the_host_afterwards() {
    use super::fake::FakeDevice;
    let scene = Scene::group();
    let binding = scene.bind(Keep::WhileHeld).unwrap();
    scene.fake.open(7, "guest", "/dev/vfio/2");
    let new = "0000:02:03.0";
    // The kernel keeps the host's driver away, for the group is a guest's.
    scene
        .fake
        .plug(new, FakeDevice::new("8086:100e", 2, ""), &[]);
    assert_eq!(scene.fake.device(new).unwrap().driver, None);
    let hold = scene
        .binder()
        .hold_hot_added(&name(new), "vfio-pci")
        .unwrap();
    assert_eq!(hold.devices(), [name(new)]);
    let device = scene.fake.device(new).unwrap();
    assert_eq!(device.driver_override.as_deref(), Some("vfio-pci"));
    let held = scene.binder().bindings().unwrap();
    assert!(
        held.iter()
            .any(|held| held.hot_added && held.device == name(new))
    );
    let error = scene
        .binder()
        .hold_hot_added(&name(new), "vfio-pci")
        .unwrap_err();
    assert!(matches!(error, BindError::Taken { .. }), "{error}");
    scene.fake.close(7);
    drop(binding);
    assert_eq!(
        hold.release().unwrap()[0].outcome,
        Outcome::Back {
            driver: Some("e1000".to_owned())
        }
    );
    assert_eq!(scene.fake.device(new).unwrap().driver_override, None);

    // A host driver that was faster keeps it.
    let error = scene
        .binder()
        .hold_hot_added(&name(new), "vfio-pci")
        .unwrap_err();
    assert!(error.to_string().contains("is on e1000"), "{error}");
    assert!(scene.journals().is_empty());
}
