use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use devices::bus::Bus;
use devices::pci::PciFunction;
use event_manager::{EventManager, SubscriberOps};
use passthrough::AssignOptions;
use passthrough::binding::{AccessError, Binder, Sysfs, Write};
use passthrough::fake::{FakeDevice, FakeMapper, FakeRouter, FakeSpace, Journal};
use passthrough::host::{Holders, Received, UeventSource};
use passthrough::vfio::DeviceBackend;

use super::*;
use crate::memory::GuestRange;
use crate::timeline::Timeline;
use crate::wiring::{AnsweringRanges, Wiring};

const BAR: u32 = 0xc000_0000;
const DEVICES: [&str; 2] = ["0000:01:00.0", "0000:01:00.1"];

/// Two devices on vfio-pci in group 7; the drivers of those in `drivers`.
#[derive(Clone, Debug)]
struct Tree(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Sysfs for Tree {
    fn read(&self, _: &str) -> io::Result<Option<String>> {
        Ok(None)
    }
    fn read_locked(&self, _: &str, _: Duration) -> Result<Option<String>, AccessError> {
        Ok(None)
    }
    fn link(&self, path: &str) -> io::Result<Option<String>> {
        let drivers = self.0.lock().unwrap();
        Ok(match path.rsplit_once('/') {
            Some((_, "iommu_group")) => Some("7".to_owned()),
            Some((_, "subsystem")) => Some("pci".to_owned()),
            Some((folder, "driver")) => {
                let name = folder.rsplit('/').next().unwrap_or_default();
                drivers.get(name).cloned()
            }
            _ => None,
        })
    }
    fn list(&self, path: &str) -> io::Result<Option<Vec<String>>> {
        let names = DEVICES.map(str::to_owned).to_vec();
        Ok(path.ends_with("/iommu_groups/7/devices").then_some(names))
    }
    fn write(&self, _: &Write, _: &[Write], _: Duration) -> Result<(), AccessError> {
        Err(io::Error::from_raw_os_error(libc::EACCES).into())
    }
    fn load_module(&self, _: &str, _: Duration) -> Result<(), AccessError> {
        Ok(())
    }
    fn holders(&self) -> Holders {
        Holders::default()
    }
}

/// Says that messages were lost, whenever the test wants the guard to look.
#[derive(Debug)]
struct Source(EventFd);

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        sys::borrow(&self.0)
    }
}

impl UeventSource for Source {
    fn receive(&mut self) -> io::Result<Option<Received>> {
        Ok(self.0.read().is_ok().then_some(Received::Lost))
    }
}

/// No memory of a hypervisor's to keep in line.
#[derive(Debug)]
struct NoSlots;

impl AnsweringRanges for NoSlots {
    fn set_answering(&self, _: &[GuestRange]) {}
}

struct Rig {
    tree: Tree,
    look: EventFd,
    mmio: Arc<Bus>,
    report: Arc<EndReport>,
    /// One journal and one function a device.
    journals: Vec<Journal>,
    devices: Vec<Removable>,
    hosts: VecDeque<Arc<FakeDevice>>,
    _pio: Arc<Bus>,
    watch: GuardWatch,
}

/// Two devices of one group at work in a guest.
fn rig(policy: OnViabilityLoss) -> Rig {
    let drivers = DEVICES.map(|name| (name, "vfio-pci".to_owned()));
    let tree = Tree(Arc::new(Mutex::new(BTreeMap::from(drivers))));
    let look = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
    let folder = std::path::Path::new("/nonexistent");
    let binder = Binder::new(Box::new(tree.clone()), folder, Duration::ZERO);
    let names = DEVICES.map(|name| name.parse().unwrap());
    let source = Source(look.try_clone().unwrap());
    let guard = Guard::with_source(Box::new(source), binder, &names).unwrap();

    let report = EndReport::new(Timeline::start()).unwrap();
    let (mmio, pio) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
    let wiring = Wiring::new(&mmio, &pio, Arc::new(NoSlots), None, Arc::clone(&report));
    let root = Arc::new(RootComplex::new(wiring));
    let (mut journals, mut devices, mut hosts) = (Vec::new(), Vec::new(), VecDeque::new());
    for (name, slot) in DEVICES.iter().zip(1u8..) {
        let journal = Journal::default();
        let host = Arc::new(FakeDevice::nvme(&journal).unwrap());
        let function = AssignedDevice::new(
            name.parse().unwrap(),
            Arc::clone(&host) as Arc<dyn DeviceBackend>,
            AssignOptions::default(),
            Arc::new(FakeRouter::new(&journal)),
            Arc::new(FakeMapper::new(&journal)),
            Arc::new(FakeSpace::new(&journal)),
        );
        let removable = Removable {
            host: name.parse().unwrap(),
            guest: PciAddress::new(0, 0, slot, 0).unwrap(),
            function: Arc::new(Mutex::new(function.unwrap())),
        };
        let address = BAR + u32::from(slot) * 0x1_0000;
        let function = Arc::clone(&removable.function);
        root.add(removable.guest, function).unwrap();
        root.config_write(removable.guest, 0x10, &address.to_le_bytes());
        root.config_write(removable.guest, 4, &[6, 0]);
        journals.push(journal);
        devices.push(removable);
        hosts.push_back(host);
    }
    let watch = GuardWatch::new(guard, policy, devices.clone(), root, Arc::clone(&report));
    for journal in &journals {
        journal.take();
    }
    Rig {
        tree,
        look,
        mmio,
        report,
        journals,
        devices,
        hosts,
        _pio: pio,
        watch,
    }
}

impl Rig {
    fn unbind(&mut self, device: usize) {
        self.tree.0.lock().unwrap().remove(DEVICES[device]);
        self.look.write(1).unwrap();
        self.watch.turn();
    }

    /// What the guest reads at the trapped page of its BAR.
    fn bar(&self, device: usize) -> [u8; 4] {
        let address = u64::from(BAR) + (device as u64 + 1) * 0x1_0000;
        let mut data = [0; 4];
        self.mmio.read(address + 0x2000 + 12, &mut data);
        data
    }

    fn vendor(&self, device: usize) -> [u8; 2] {
        let mut data = [0; 2];
        let function = &self.devices[device].function;
        function.lock().unwrap().config_read(0, &mut data);
        data
    }

    fn closed(&self, device: usize) -> bool {
        let calls = self.journals[device].take();
        calls.last().is_some_and(|call| call == "close")
    }
}

/// A masked vector of the table.
const MASKED: [u8; 4] = [1, 0, 0, 0];
const ABSENT: [u8; 4] = [0xff; 4];

#[test]
fn stop_ends_the_vm_and_says_why() {
    let mut rig = rig(OnViabilityLoss::Stop);
    rig.unbind(0);
    let outcome = rig.report.take().unwrap();
    assert_eq!(outcome.exit_code(), 6);
    let text = outcome.to_string();
    for part in [
        "device 0000:01:00.0 of IOMMU group 7",
        "unbinding it",
        "Start the VM again without it",
        "--on-viability-loss release",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(rig.bar(0), MASKED, "the guest's until the end");
}

#[test]
fn stop_says_how_to_mend_a_group() {
    let mut rig = rig(OnViabilityLoss::Stop);
    rig.tree
        .0
        .lock()
        .unwrap()
        .insert(DEVICES[1], "e1000".into());
    rig.look.write(1).unwrap();
    rig.watch.turn();
    let text = rig.report.take().unwrap().to_string();
    for part in ["'e1000' has taken", "airlock bind", "Then start the VM"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn warn_changes_nothing() {
    let mut rig = rig(OnViabilityLoss::Warn);
    rig.unbind(0);
    assert!(rig.report.take().is_none());
    assert_eq!(rig.bar(0), MASKED);
    assert_eq!(rig.vendor(0), [0x36, 0x1b]);
    assert_eq!(rig.journals[0].take(), [""; 0]);
}

#[test]
fn release_takes_away_what_is_wanted_and_no_more() {
    let mut rig = rig(OnViabilityLoss::Release);
    rig.hosts.clear();
    assert_eq!(rig.bar(0), MASKED);
    rig.unbind(0);
    assert!(rig.report.take().is_none(), "the guest goes on");
    assert!(rig.closed(0));
    assert_eq!((rig.bar(0), rig.vendor(0)), (ABSENT, [0xff; 2]));
    assert_eq!((rig.bar(1), rig.vendor(1)), (MASKED, [0x36, 0x1b]));
    assert!(!rig.closed(1));
    rig.unbind(1);
    assert!(rig.closed(1));
    assert_eq!(rig.bar(1), ABSENT);
    assert!(rig.report.take().is_none());
    assert!(rig.watch.guard.is_done(), "no group is left");
}

#[test]
fn a_group_that_is_lost_takes_all_its_devices_along() {
    let mut rig = rig(OnViabilityLoss::Release);
    rig.hosts.clear();
    let driver = "e1000".to_owned();
    rig.tree.0.lock().unwrap().insert(DEVICES[1], driver);
    rig.look.write(1).unwrap();
    rig.watch.turn();
    assert!(rig.closed(0) && rig.closed(1));
    assert!(rig.report.take().is_none());
}

#[test]
fn a_release_that_fails_falls_back_to_stop() {
    let mut rig = rig(OnViabilityLoss::Release);
    // Somebody has the second one still.
    rig.hosts.pop_front();
    rig.unbind(0);
    assert!(rig.report.take().is_none());
    rig.unbind(1);
    let outcome = rig.report.take().unwrap();
    assert_eq!(outcome.exit_code(), 6);
    let text = outcome.to_string();
    assert!(text.contains("could not be taken away"), "{text}");
    assert!(text.contains(DEVICES[1]), "{text}");
    assert_eq!(rig.vendor(1), [0xff; 2], "the guest has lost it anyway");
}

#[test]
fn in_the_loop_events_and_requests_wake_it() {
    let mut rig = rig(OnViabilityLoss::Release);
    rig.hosts.clear();
    let (request, device) = &rig.watch.requests[1];
    assert_eq!(device.name(), DEVICES[1]);
    let request = request.try_clone().unwrap();
    let mut manager: EventManager<GuardWatch> = EventManager::new().unwrap();
    // What happened before the loop runs is seen at its start.
    rig.tree.0.lock().unwrap().remove(DEVICES[0]);
    manager.add_subscriber(rig.watch);
    assert_eq!(rig.journals[0].take().last().unwrap(), "close");
    // The device request comes alone, with kernels before 6.1.
    request.write(1).unwrap();
    assert_eq!(manager.run_with_timeout(1000).unwrap(), 1);
    assert_eq!(rig.journals[1].take().last().unwrap(), "close");
    // Nothing is left to be minded: messages don't wake it any more.
    rig.look.write(1).unwrap();
    assert_eq!(manager.run_with_timeout(0).unwrap(), 0);
    assert!(rig.report.take().is_none());
}
