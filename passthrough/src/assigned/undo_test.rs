//! Every step of a device's life fails once: what was made before is undone,
//! and a second try works.

use super::life::{HOST, hit};
use super::*;
use crate::assigned::SurrenderError;
use crate::vfio::Holder;
use std::collections::BTreeMap;

/// What a guest does with its device, and how it loses it.
#[derive(Clone, Copy, Debug)]
struct Life {
    /// The host's device can be reset by itself.
    can_reset: bool,
    /// It is taken away, not dropped.
    surrendered: bool,
}

const LIVES: [Life; 2] = [
    Life {
        can_reset: true,
        surrendered: false,
    },
    Life {
        can_reset: false,
        surrendered: true,
    },
];

/// The host and its monitor, which outlive a device that fails.
struct Rig {
    journal: Journal,
    host: Arc<FakeDevice>,
    router: Arc<FakeRouter>,
    mapper: Arc<FakeMapper>,
    space: Arc<FakeSpace>,
}

impl Rig {
    fn new(life: Life) -> Self {
        let mut registers = EVERYTHING.to_vec();
        registers.push((POWER, 4, 0));
        let journal = Journal::default();
        // Small ones: each life has resets that clear them.
        let bars: Vec<_> = (bars().into_iter())
            .map(|bar| BarInfo {
                size: if bar.size > 0x4000 { 0x1000 } else { bar.size },
                ..bar
            })
            .collect();
        let host = FakeDevice::new(&config(&registers), 4096, &bars, &journal).unwrap();
        let host = host.with_hot_reset(&[hit(HOST, Holder::This)]);
        let host = match life.can_reset {
            true => host,
            false => host.without_reset(),
        };
        Self {
            host: Arc::new(host),
            router: Arc::new(FakeRouter::new(&journal)),
            mapper: Arc::new(FakeMapper::new(&journal)),
            space: Arc::new(FakeSpace::new(&journal)),
            journal,
        }
    }

    fn assign(&self) -> Result<Setup, AssignError> {
        let options = AssignOptions {
            placement: Placement::BehindPort,
            ..AssignOptions::default()
        };
        let device = AssignedDevice::new(
            HOST.parse().unwrap(),
            Arc::clone(&self.host) as Arc<dyn DeviceBackend>,
            options,
            Arc::clone(&self.router) as Arc<dyn InterruptRouter>,
            Arc::clone(&self.mapper) as Arc<dyn MemoryMapper>,
            Arc::clone(&self.space) as Arc<dyn AddressSpace>,
        )?;
        Ok(Setup {
            journal: self.journal.clone(),
            host: Arc::clone(&self.host),
            router: Arc::clone(&self.router),
            mapper: Arc::clone(&self.mapper),
            space: Arc::clone(&self.space),
            device,
        })
    }
}

/// Without taking lines out of the journal, as [`Setup::start`] does.
fn start(setup: &mut Setup) {
    let _ = setup.write(0x10, &0x4_0000_0000_u64.to_le_bytes());
    let _ = setup.write(0x18, &(TABLE_BAR as u32).to_le_bytes());
    let _ = setup.put(4, 7);
    setup.settle_alone();
    let _ = setup.put(MSI_CONTROL, 1);
    let _ = setup.put(MSI_CONTROL, 0);
    let table = BarIndex::new(2).unwrap();
    let entry = [0xfee0_0000_u32, 0, 0x41, 0].map(u32::to_le_bytes).concat();
    setup.device.bar_write(table, 0x2000, &entry[..8]);
    setup.device.bar_write(table, 0x2008, &entry[8..]);
    let _ = setup.put(MSIX_CONTROL, 0x8000);
}

/// Starts it, lets it sleep, resets it in both ways, each time with a start
/// after it.
fn live(setup: &mut Setup) {
    start(setup);
    let _ = setup.put(POWER, 3);
    setup.settle_alone();
    let _ = setup.put(POWER, 0);
    setup.settle_alone();
    start(setup);
    for way in [Way::Function, Way::Bus] {
        match way {
            Way::Function => drop(setup.put(DEVICE_CONTROL, 0x8000)),
            _ => drop(setup.device.reset()),
        }
        setup.settle_alone();
        start(setup);
    }
}

/// What is made and never taken away, by kind.
fn left_over(lines: &[String]) -> BTreeMap<String, i32> {
    let mut left = BTreeMap::new();
    for line in lines {
        let words: Vec<_> = line.split(' ').collect();
        let (what, change) = match words[..] {
            ["route", number, "new"] => (format!("route {number}"), 1),
            ["route", number, "drop"] => (format!("route {number}"), -1),
            ["line", _, "new"] => ("line".to_owned(), 1),
            ["line", "drop"] => ("line".to_owned(), -1),
            ["guest", "map", address, _] => (format!("guest map {address}"), 1),
            ["guest", "unmap", address] => (format!("guest map {address}"), -1),
            _ => continue,
        };
        *left.entry(what).or_default() += change;
    }
    left.retain(|_, count| *count != 0);
    left
}

/// Nothing of a device is left with the host and the monitor but what the step
/// that failed was to take away.
fn assert_undone(rig: &Rig, lines: &[String], failed: &str, told: &str) {
    assert_eq!(left_over(lines), BTreeMap::new(), "{told}");
    if failed != "dma unmap" {
        assert_eq!(rig.space.mapped(), [], "{told}");
    }
    if failed != "DisableIrqs" {
        assert_eq!(rig.host.kind_on(), None, "{told}");
    }
    if failed != "Write" {
        assert_eq!(rig.host.config(4) & 4, 0, "{told}: no bus master");
    }
    if failed != "LowPower" {
        assert!(!rig.host.is_in_low_power(), "{told}");
    }
}

/// As closing the device's file does.
fn close(host: &FakeDevice) {
    for kind in [IrqIndex::Intx, IrqIndex::Msi, IrqIndex::Msix] {
        host.disable_irqs(kind).unwrap();
    }
    host.leave_low_power().unwrap();
}

/// Has the step after `steps` fail in a life, and says which it was; nothing
/// when there are no more.
fn fail(life: Life, steps: usize) -> Option<String> {
    let rig = Rig::new(life);
    rig.journal.fail_after(steps);
    let told = |failed: &str| format!("{life:?}, {failed} after {steps}");
    if let Ok(mut setup) = rig.assign() {
        live(&mut setup);
        if let Some(failed) = rig.journal.failed() {
            // The guest's driver tries again.
            let _ = setup.device.reset();
            setup.settle_alone();
            start(&mut setup);
            assert_works(&mut setup, &told(&failed));
        }
        if life.surrendered {
            // The rig has the device still.
            let error = setup.device.surrender().unwrap_err();
            assert!(
                !matches!(error, SurrenderError::Mapped { .. }) || rig.journal.failed().is_some()
            );
        }
    }
    let failed = rig.journal.failed()?;
    assert_undone(&rig, &rig.journal.take(), &failed, &told(&failed));
    close(&rig.host);
    let mut again = rig.assign().unwrap();
    start(&mut again);
    assert_works(&mut again, &told(&failed));
    Some(failed)
}

fn assert_works(setup: &mut Setup, told: &str) {
    assert_eq!(setup.device.decoded().len(), 2, "{told}");
    assert_eq!(setup.host.config(4) & 7, 7, "{told}");
    setup.device.bar_write(setup.bar(), 0x10, &[0x5a]);
    assert_eq!(setup.read(0x10, 1), [0x5a], "{told}");
    setup.router.delivered();
    assert!(setup.host.raise(0), "{told}: armed");
    assert_eq!(setup.router.delivered().len(), 1, "{told}: delivered");
}

#[test]
fn every_step_of_a_life_may_fail_once() {
    for life in LIVES {
        let mut kinds = BTreeMap::new();
        let mut steps = 0;
        while let Some(failed) = fail(life, steps) {
            *kinds.entry(failed).or_insert(0) += 1;
            steps += 1;
        }
        // Each kind of step is among them, besides the reset that it lacks.
        assert_eq!(kinds.len(), 16, "{life:?}: {kinds:?}");
        assert!(steps > 100, "{steps}");
    }
}
