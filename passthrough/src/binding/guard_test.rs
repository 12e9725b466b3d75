use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use super::*;

#[path = "guard_hold_test.rs"]
mod hold;
#[path = "guard_rig.rs"]
mod setup;

use setup::{Messages, Tree, name, rig};

const A: &str = "0000:02:01.0";
const B: &str = "0000:02:02.0";
const NEW: &str = "0000:02:03.0";

const GROUP: GroupId = GroupId(5);

fn leaving(device: &str) -> GuardEvent {
    GuardEvent::Leaving {
        group: GROUP,
        device: name(device),
    }
}

#[test]
fn an_unbind_of_a_held_device_is_told_once() {
    let mut rig = rig(&[A, B]);
    rig.tree.begin_unbind(A);
    let text = format!("remove@/devices/pci0000:00/{A}/vfio-dev/vfio0");
    let events = rig.uevent(&text, "vfio-dev");
    assert_eq!(events, [leaving(A)]);
    assert!(events[0].loses_viability());
    assert_eq!(rig.guard.at_stake(&events[0]), [name(A)], "B stays");
    let text = events[0].to_string();
    for part in [A, "group 5", "unbinding", "unplugging"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(rig.uevent("unbind@/devices/x", "pci"), []);
    assert_eq!(rig.guard.host_wants(&name(A)), None, "known already");
}

#[test]
fn a_device_request_tells_the_same() {
    let mut rig = rig(&[A]);
    assert_eq!(rig.guard.host_wants(&name(A)), Some(leaving(A)));
    assert_eq!(rig.guard.host_wants(&name(A)), None, "every ten seconds");
    assert_eq!(rig.guard.host_wants(&name(B)), None, "not the guest's");
    assert_eq!(rig.guard.host_wants(&name(NEW)), None);
    rig.tree.begin_unbind(A);
    assert_eq!(rig.uevent("remove@/devices/vfio0", "vfio-dev"), []);
}

#[test]
fn messages_alone_prove_nothing() {
    let mut rig = rig(&[A, B]);
    // As root can have them sent again, by `udevadm trigger`.
    for action in ["add", "remove", "bind", "unbind", "change"] {
        let text = format!("{action}@/devices/pci0000:00/{A}");
        assert_eq!(rig.uevent(&text, "pci"), [], "{action}");
    }
    rig.tree.begin_unbind(A);
    assert_eq!(rig.uevent("add@/devices/virtual/net/tap0", "net"), []);
    assert_eq!(rig.uevent("change@/devices/x", "pci"), []);
    assert_eq!(rig.uevent("online@/devices/x", "pci"), []);
    let foreign = Ok(Received::Foreign);
    rig.messages.0.lock().unwrap().push_back(foreign);
    assert_eq!(rig.all(), []);
    // A member that is the host's own business is none of the guard's.
    rig.guard.let_go(&name(A));
    rig.tree.begin_unbind(A);
    assert_eq!(rig.uevent("unbind@/devices/x", "pci"), []);
}

#[test]
fn lost_messages_make_it_look_anew() {
    let mut rig = rig(&[A, B]);
    rig.tree.begin_unbind(B);
    rig.tree.device(NEW, Some("e1000"), "0x020000");
    rig.messages.0.lock().unwrap().push_back(Ok(Received::Lost));
    let events = rig.all();
    assert_eq!(events[0], leaving(B), "what can't wait comes first");
    assert!(matches!(&events[1], GuardEvent::Joined { .. }));
}

#[test]
fn an_end_of_the_messages_is_told_once() {
    let mut rig = rig(&[A]);
    rig.tree.begin_unbind(A);
    rig.messages
        .0
        .lock()
        .unwrap()
        .push_back(Err(io::Error::from_raw_os_error(libc::EBADF)));
    let events = rig.all();
    assert!(matches!(&events[0], GuardEvent::Deaf { reason } if reason.contains("Bad file")));
    assert_eq!(events[1..], [leaving(A)], "a last look");
    assert!(rig.guard.is_done());
    assert_eq!(rig.all(), []);
}

#[test]
fn what_changed_before_the_first_turn_is_seen() {
    let tree = Tree::new();
    let messages = Messages(Arc::default(), Arc::new(File::open("/dev/null").unwrap()));
    let binder = Binder::new(
        Box::new(tree.clone()),
        std::path::Path::new("/nonexistent"),
        Duration::ZERO,
    );
    let mut guard = Guard::with_source(Box::new(messages), binder, &[name(A)]).unwrap();
    tree.begin_unbind(A);
    assert_eq!(guard.turn(), [leaving(A)]);
}

#[test]
fn a_host_driver_in_the_group_is_told() {
    let mut rig = rig(&[A]);
    // Harmless: it has no driver, then one that leaves DMA alone.
    rig.tree.begin_unbind(B);
    assert_eq!(rig.uevent("unbind@/devices/x", "pci"), []);
    rig.tree.driver(B, Some("pci-stub"));
    assert_eq!(rig.uevent("bind@/devices/x", "pci"), []);
    rig.tree.driver(B, Some("e1000"));
    let events = rig.uevent("bind@/devices/x", "pci");
    let driver = "e1000".to_owned();
    let (group, device) = (GROUP, name(B));
    let expected = GuardEvent::HostDriver {
        group,
        device,
        driver,
    };
    assert_eq!(events, [expected]);
    assert_eq!(rig.guard.at_stake(&events[0]), [name(A)]);
    let text = events[0].to_string();
    assert!(text.contains("'e1000'") && text.contains(B), "{text}");
    assert_eq!(rig.uevent("bind@/devices/x", "pci"), [], "told already");
    rig.tree.driver(B, Some("mlx5_vfio_pci"));
    assert_eq!(rig.uevent("bind@/devices/x", "pci"), []);
    rig.tree.driver(B, Some("e1000"));
    assert_eq!(rig.uevent("bind@/devices/x", "pci").len(), 1, "news again");
}

#[test]
fn a_driver_that_vfio_knows_is_one_of_its_own() {
    let mut rig = rig(&[A]);
    rig.tree.driver(B, Some("nobody-knows-it"));
    assert_eq!(
        rig.uevent("bind@/devices/x", "pci"),
        [],
        "it has a vfio-dev"
    );
}

fn fate(events: &[GuardEvent]) -> &Fate {
    let [GuardEvent::Joined { device, fate, .. }] = events else {
        panic!("{events:?}");
    };
    assert_eq!(device.name(), NEW);
    fate
}

#[test]
fn a_hot_added_device_that_a_host_driver_has() {
    let mut rig = rig(&[A, B]);
    rig.tree.device(NEW, Some("e1000"), "0x020000");
    let events = rig.uevent("add@/devices/x", "pci");
    let driver = "e1000".to_owned();
    assert_eq!(*fate(&events), Fate::Taken { driver });
    assert_eq!(rig.guard.at_stake(&events[0]), [name(A), name(B)]);
    assert_eq!(rig.uevent("bind@/devices/x", "pci"), [], "told already");
    assert!(rig.tree.state().writes.is_empty());
}

#[test]
fn a_hot_added_bridge_is_left_to_the_kernel() {
    let mut rig = rig(&[A]);
    rig.tree.device(NEW, None, "0x060400");
    let events = rig.uevent("add@/devices/x", "pci");
    assert_eq!(*fate(&events), Fate::Harmless { driver: None });
    assert!(!events[0].loses_viability());
    rig.tree.driver(NEW, Some("pcieport"));
    assert_eq!(rig.uevent("bind@/devices/x", "pci"), []);
    assert!(rig.tree.state().writes.is_empty());
}

#[test]
fn a_hot_added_device_that_cant_be_held() {
    let mut rig = rig(&[A]);
    rig.tree.state().refuse_writes = true;
    rig.tree.device(NEW, None, "0x020000");
    let events = rig.uevent("add@/devices/x", "pci");
    assert!(matches!(fate(&events), Fate::NotHeld { .. }));
    assert!(!events[0].loses_viability(), "the kernel keeps drivers off");
    assert!(events[0].to_string().contains("EBUSY"), "{}", events[0]);
    // And gone again.
    rig.tree.remove(NEW);
    let events = rig.uevent("remove@/devices/x", "pci");
    let (group, device) = (GROUP, name(NEW));
    assert_eq!(events, [GuardEvent::Left { group, device }]);
    assert!(events[0].to_string().contains(NEW));
}

#[test]
fn a_device_that_comes_and_goes_at_once() {
    let mut rig = rig(&[A]);
    rig.tree.device(NEW, None, "0x020000");
    rig.messages.send("add@/devices/x", "pci");
    rig.tree.begin_unbind(A);
    assert_eq!(rig.guard.turn(), [leaving(A)]);
    rig.tree.remove(NEW);
    rig.messages.send("remove@/devices/x", "pci");
    let (group, device) = (GROUP, name(NEW));
    assert_eq!(rig.all(), [GuardEvent::Left { group, device }]);
}

#[test]
fn a_held_device_that_has_left_stays_at_stake_until_it_is_let_go() {
    let mut rig = rig(&[A, B]);
    rig.tree.remove(A);
    let events = rig.uevent("remove@/devices/x", "pci");
    let (group, device) = (GROUP, name(A));
    assert_eq!(events, [leaving(A), GuardEvent::Left { group, device }]);
    assert_eq!(rig.guard.at_stake(&events[0]), [name(A)]);
    assert_eq!(rig.uevent("remove@/devices/x", "pci"), []);
    rig.guard.let_go(&name(A));
    assert_eq!(rig.uevent("remove@/devices/x", "pci"), []);
    assert!(!rig.guard.is_done(), "B is there");
    rig.guard.let_go(&name(B));
    assert!(rig.guard.is_done());
    rig.tree.driver(B, Some("e1000"));
    let events = rig.uevent("bind@/devices/x", "pci");
    assert_eq!(events, [], "the host may have it");
}

#[test]
fn a_group_that_cant_be_listed_is_told_once() {
    let mut rig = rig(&[A]);
    rig.tree.state().broken = Some(format!("{GROUPS}/5/devices"));
    let events = rig.uevent("add@/devices/x", "pci");
    assert!(matches!(&events[..], [GuardEvent::Unseen { .. }]));
    assert!(!events[0].loses_viability());
    assert_eq!(rig.uevent("add@/devices/x", "pci"), []);
    rig.tree.begin_unbind(A);
    rig.tree.state().broken = None;
    assert_eq!(rig.uevent("add@/devices/x", "pci"), [leaving(A)]);
}

#[test]
fn a_device_in_no_group_cant_be_guarded() {
    let tree = Tree::new();
    let messages = Messages(Arc::default(), Arc::new(File::open("/dev/null").unwrap()));
    let folder = std::path::Path::new("/nonexistent");
    let binder = Binder::new(Box::new(tree), folder, Duration::ZERO);
    let error = Guard::with_source(Box::new(messages), binder, &[name("0000:09:00.0")]);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("0000:09:00.0"), "{error}");
}

#[test]
fn a_flood_of_messages_ends_in_one_look() {
    let mut rig = rig(&[A]);
    for _ in 0..2 * MESSAGES_AT_ONCE {
        rig.messages.send("add@/devices/x", "pci");
    }
    rig.tree.begin_unbind(A);
    assert_eq!(rig.guard.turn(), [leaving(A)]);
    assert!(!rig.messages.0.lock().unwrap().is_empty(), "bounded");
    assert_eq!(rig.all(), []);
}

mod any {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever happens, in whatever order it is told: no panic, nothing is
        /// told twice, and a held device that lost its driver is told.
        #[test]
        fn history_does(steps in proptest::collection::vec((0..8_u8, any::<bool>()), 0..40)) {
            let mut rig = rig(&[A, B]);
            let mut events = Vec::new();
            for (step, tell) in steps {
                match step {
                    0 => rig.tree.begin_unbind(A),
                    1 => rig.tree.driver(B, Some("e1000")),
                    2 => rig.tree.begin_unbind(B),
                    3 => rig.tree.device(NEW, None, "0x060400"),
                    4 => rig.tree.device(NEW, Some("e1000"), "0x020000"),
                    5 => rig.tree.remove(NEW),
                    6 => rig.tree.remove(B),
                    _ => rig.guard.let_go(&name(B)),
                }
                if tell {
                    events.extend(rig.uevent("bind@/devices/x", "pci"));
                }
            }
            rig.tree.begin_unbind(A);
            events.extend(rig.uevent("unbind@/devices/x", "pci"));
            let count = |event: &GuardEvent| events.iter().filter(|e| *e == event).count();
            prop_assert_eq!(count(&leaving(A)), 1);
            prop_assert!(count(&leaving(B)) <= 1);
        }
    }
}
