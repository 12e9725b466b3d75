use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use devices::pci::{Change, ConfigTarget, EffectSink, PciAddress};
use event_manager::{EventManager, SubscriberOps};
use passthrough::fake::{FakeDevice, FakeMapper, FakeRouter, FakeSpace, Journal};
use passthrough::inspect::Inspection;
use passthrough::vfio::DeviceBackend;
use passthrough::{Interface, Placement};

use super::*;
use crate::arrival::ConfigGate;
use crate::lines::tests::lines;
use crate::timeline::Timeline;
use crate::topology::add_host_bridge;

const HOST: &str = "0000:41:00.0";
const GUEST: &str = "0000:01:00.0";

#[derive(Debug)]
struct Ignore;

impl EffectSink for Ignore {
    fn apply(&self, _: &RootComplex, _: &[Change]) {}
}

/// A guest with an NVMe that is being opened until the test says what comes of it.
struct Rig {
    gate: ConfigGate,
    arrival: Arc<Arrival>,
    report: Arc<EndReport>,
    newcomers: Newcomers,
    tell: Sender<Result<Opened, OpenError>>,
    opening_ended: Arc<AtomicBool>,
}

fn nvme() -> Arc<dyn DeviceBackend> {
    Arc::new(FakeDevice::nvme(&Journal::default()).unwrap())
}

fn opened() -> Opened {
    Opened {
        space: Arc::new(FakeSpace::new(&Journal::default())),
        devices: vec![nvme()],
        interface: Interface::Iommufd,
    }
}

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn rig(foretold: Placement) -> Rig {
    let root = Arc::new(RootComplex::new(Arc::new(Ignore)));
    add_host_bridge(&root).unwrap();
    let (arrival, report) = (Arrival::new(), EndReport::new(Timeline::start()).unwrap());
    let places = Places::new([(address(HOST), foretold)]).unwrap();
    let identity = Inspection::of_backend(address(HOST), &*nvme(), None).unwrap();
    let answers = places.foretell(&[identity.identity]);
    let gate = ConfigGate::new(Arc::clone(&root), Arc::clone(&arrival), answers);
    let (tell, told) = channel();
    let opening_ended = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&opening_ended);
    let opening = Opening::start(move || {
        let result = told.recv_timeout(Duration::from_millis(200));
        ended.store(true, Ordering::Release);
        result.unwrap_or(Err(OpenError::NoDevices))
    });
    let journal = Journal::default();
    let stand = Stand {
        root,
        ports: Ports {
            router: Arc::new(FakeRouter::new(&journal)),
            lines: lines(true).0,
            mapper: Arc::new(FakeMapper::new(&journal)),
        },
        layout: GuestLayout::new(512 << 20, 39, None).unwrap(),
        stats: StatsHandle::none(),
        guard: None,
        policy: OnViabilityLoss::default(),
        report: Arc::clone(&report),
    };
    let roms = vec![RomSource::Off];
    let newcomers = Newcomers::new(Arc::clone(&arrival), opening.unwrap(), places, roms, stand);
    Rig {
        gate,
        arrival,
        report,
        newcomers,
        tell,
        opening_ended,
    }
}

/// The first BAR as the guest finds it. What a device is, is foretold; this is not.
fn bar(gate: &ConfigGate) -> u32 {
    let mut data = [0; 4];
    gate.config_read(address(GUEST), 0x10, &mut data);
    u32::from_le_bytes(data)
}

fn in_the_loop(newcomers: Newcomers) {
    let mut manager: EventManager<Newcomers> = EventManager::new().unwrap();
    manager.add_subscriber(newcomers);
    assert_eq!(manager.run_with_timeout(5000).unwrap(), 1);
}

#[test]
fn a_guest_waits_for_its_device_and_finds_it() {
    let rig = rig(Placement::BehindPort);
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| bar(&rig.gate));
        rig.tell.send(Ok(opened())).unwrap();
        in_the_loop(rig.newcomers);
        assert_eq!(guest.join().unwrap(), 0xc000_0004, "placed");
    });
    assert!(rig.report.take().is_none());
    let arrived = rig.arrival.take().unwrap();
    assert_eq!(arrived.functions.len(), 1);
}

#[test]
fn a_refusal_ends_the_vm() {
    let rig = rig(Placement::BehindPort);
    let error = OpenError::NoGroup {
        device: address(HOST),
    };
    rig.tell.send(Err(error)).unwrap();
    in_the_loop(rig.newcomers);
    let outcome = rig.report.take().unwrap();
    assert_eq!(outcome.exit_code(), 1);
    assert!(outcome.to_string().contains(HOST), "{outcome}");
    let failure = rig.arrival.take_failure().unwrap();
    assert!(matches!(failure, ArrivalError::Open(_)), "{failure}");
    assert_eq!(bar(&rig.gate), u32::MAX, "there is none");
}

#[test]
fn a_device_that_is_not_as_foretold_ends_the_vm() {
    let rig = rig(Placement::RootBus);
    rig.tell.send(Ok(opened())).unwrap();
    in_the_loop(rig.newcomers);
    assert_eq!(rig.report.take().unwrap().exit_code(), 1);
    let failure = rig.arrival.take_failure().unwrap();
    assert!(failure.to_string().contains(HOST), "{failure}");
}

#[test]
fn what_is_being_opened_is_waited_for_at_the_end() {
    let rig = rig(Placement::BehindPort);
    drop(rig.newcomers);
    assert!(rig.opening_ended.load(Ordering::Acquire));
    assert!(!rig.arrival.is_here());
}
