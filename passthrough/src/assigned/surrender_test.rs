use super::*;
use crate::assigned::{SurrenderError, give_back};
use crate::iommu::{MapError, Peers, SpaceLimits};
use crate::ports::HostMemory;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// A device at work: BAR mapped, bus master, vector 1 armed.
fn at_work() -> Setup {
    let mut setup = plain_decoded();
    let bar = setup.bar();
    let _ = setup.command(MEMORY | MASTER);
    setup.settle_alone();
    let _ = setup.write(0x42, &0x8000_u16.to_le_bytes());
    let message = 0xfee0_0000_u64.to_le_bytes();
    setup.device.bar_write(bar, 0x2010, &message);
    let vector = 0x41_u64.to_le_bytes();
    setup.device.bar_write(bar, 0x2018, &vector);
    assert!(setup.host.raise(1), "the vector is armed");
    setup.journal.take();
    setup
}

/// The guest's view of a function that is not there.
fn is_absent(device: &mut AssignedDevice) -> bool {
    let bar = BarIndex::new(0).unwrap();
    [(0, 4), (4, 2), (0x0e, 1), (0x10, 4), (0x42, 2), (0xffc, 4)]
        .iter()
        .all(|(offset, size)| {
            let mut data = vec![0; *size];
            device.config_read(*offset, &mut data);
            data.iter().all(|byte| *byte == 0xff)
        })
        && [0, 0x2000, 0x2800].iter().all(|offset| {
            let mut data = [0; 8];
            device.bar_read(bar, *offset, &mut data);
            data == [0xff; 8]
        })
}

#[test]
fn everything_is_let_go_in_its_order() {
    let setup = at_work();
    let Setup {
        journal,
        host,
        mut device,
        router: _router,
        mapper: _mapper,
        space: _space,
    } = setup;
    // As after the start: nobody else has the device.
    drop(host);
    device.surrender().unwrap();
    let expected = [
        "disable_irqs Msix",
        "route 0 drop",
        "write 7 0x4 [2, 4]",
        "dma unmap 0xc0000000",
        "dma unmap 0xc0003000",
        "guest unmap 0xc0000000",
        "guest unmap 0xc0003000",
        "close",
    ];
    assert_eq!(journal.take(), expected);

    assert!(is_absent(&mut device));
    device.surrender().unwrap();
    drop(device);
    assert_eq!(journal.take(), [""; 0], "nothing is left to be done");
}

#[test]
fn what_the_guest_writes_afterwards_goes_nowhere() {
    let mut setup = at_work();
    let bars = setup.device.bars();
    let stats = setup.device.interrupt_stats();
    assert!(stats.armed > 0, "{stats:?}");
    // The test itself has the device still.
    let error = setup.device.surrender().unwrap_err();
    let device = "0000:01:00.0".parse().unwrap();
    assert_eq!(error, SurrenderError::Open { device });
    setup.journal.take();

    assert_eq!(setup.command(MEMORY | MASTER), Effects::NONE);
    setup.place(0xd000_0000);
    let _ = setup.write(0x42, &0x8000_u16.to_le_bytes());
    let bar = setup.bar();
    setup.device.bar_write(bar, 0x2010, &[0; 8]);
    setup.device.bar_write(bar, 0x10, &[1]);
    // A function level reset, and sleep.
    let _ = setup.write(0x68, &0x8000_u16.to_le_bytes());
    let _ = setup.write(0x54, &3_u16.to_le_bytes());
    setup.settle_alone();
    assert_eq!(setup.journal.take(), [""; 0]);
    assert!(setup.device.decoded().is_empty());
    assert_eq!(setup.device.bars(), bars, "what it was stays known");
    assert_eq!(setup.device.interrupt_stats(), stats, "and what it cost");
    assert!(is_absent(&mut setup.device));
    assert!(!setup.host.raise(1), "no interrupt is armed");
}

#[test]
fn memory_that_stays_mapped_is_told() {
    let setup = at_work();
    let Setup {
        host,
        mut device,
        space,
        journal: _journal,
        ..
    } = setup;
    drop(host);
    space.refuse_unmap(true);
    let error = device.surrender().unwrap_err();
    assert!(matches!(error, SurrenderError::Mapped { areas: 2, .. }));
    assert!(error.to_string().contains("end the VM"), "{error}");
    assert!(is_absent(&mut device), "the guest has lost it all the same");
}

#[test]
fn a_device_that_answers_no_more_is_surrendered_too() {
    let setup = at_work();
    let Setup {
        host, mut device, ..
    } = setup;
    host.refuse(Operation::DisableIrqs, libc::ENODEV);
    host.refuse(Operation::Write, libc::EIO);
    drop(host);
    device.surrender().unwrap();
    assert!(is_absent(&mut device));
}

#[test]
fn the_host_can_ask_for_it() {
    let setup = plain();
    let event = crate::sys::event().unwrap();
    setup.journal.take();
    assert!(setup.device.signal_request(event.as_fd()).unwrap());
    assert_eq!(setup.journal.take(), ["set_irqs Request 0 x"]);
    setup.host.refuse(Operation::SetIrqs, libc::EINVAL);
    setup.device.signal_request(event.as_fd()).unwrap_err();
}

#[test]
fn accesses_of_the_guest_may_race_with_it() {
    let setup = at_work();
    let Setup { host, device, .. } = setup;
    drop(host);
    let device = Arc::new(Mutex::new(device));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for cpu in 0..3_u64 {
            let (device, done) = (&device, &done);
            scope.spawn(move || {
                let bar = BarIndex::new(0).unwrap();
                let mut data = [0; 4];
                while !done.load(Ordering::SeqCst) {
                    let lock = || device.lock().unwrap();
                    let command = if cpu == 0 { MEMORY } else { MEMORY | MASTER };
                    let _ = lock().config_write(4, &command.to_le_bytes());
                    let reach = Reach {
                        answering: lock().decoded(),
                        bus_master: true,
                    };
                    lock().settle(&reach).unwrap();
                    lock().bar_read(bar, 0x2000 + cpu * 16, &mut data);
                    lock().bar_write(bar, 0x200c + cpu * 16, &[0; 4]);
                    let _ = lock().config_write(0x42, &0x8000_u16.to_le_bytes());
                }
            });
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        let result = device.lock().unwrap().surrender();
        std::thread::sleep(std::time::Duration::from_millis(20));
        done.store(true, Ordering::SeqCst);
        result.unwrap();
    });
    assert!(is_absent(&mut device.lock().unwrap()));
}

/// A space that is looked at when it is cleared.
#[derive(Debug)]
struct Watched {
    space: FakeSpace,
    /// Of each device.
    journals: Vec<Journal>,
    cleared: AtomicBool,
}

impl AddressSpace for Watched {
    fn limits(&self) -> &SpaceLimits {
        self.space.limits()
    }
    fn map(&self, iova: u64, memory: Arc<dyn HostMemory>) -> Result<(), MapError> {
        self.space.map(iova, memory)
    }
    fn unmap(&self, iova: u64) -> Result<(), MapError> {
        self.space.unmap(iova)
    }
    fn unmap_all(&self) -> Result<(), MapError> {
        for journal in &self.journals {
            let lines = journal.lines();
            assert!(
                lines.iter().any(|line| line == "write 7 0x4 [2, 4]"),
                "a bus master still: {lines:?}"
            );
        }
        self.cleared.store(true, Ordering::Release);
        self.space.unmap_all()
    }
    fn peers(&self) -> &Peers {
        self.space.peers()
    }
}

#[test]
fn no_device_is_a_bus_master_when_memory_goes_and_all_are_closed() {
    let setups = [at_work(), at_work()];
    let journals: Vec<_> = setups.iter().map(|setup| setup.journal.clone()).collect();
    let space = Arc::new(Watched {
        space: FakeSpace::new(&Journal::default()),
        journals: journals.clone(),
        cleared: AtomicBool::new(false),
    });
    let mut functions = Vec::new();
    let mut rest = Vec::new();
    for setup in setups {
        let Setup {
            device,
            router,
            mapper,
            space,
            ..
        } = setup;
        functions.push(Arc::new(Mutex::new(device)));
        rest.push((router, mapper, space));
    }
    give_back(
        functions.clone(),
        Arc::clone(&space) as Arc<dyn AddressSpace>,
    );
    assert!(space.cleared.load(Ordering::Acquire));
    for (function, journal) in functions.iter().zip(&journals) {
        assert_eq!(journal.take().last().unwrap(), "close");
        assert!(is_absent(&mut function.lock().unwrap()));
    }
}
