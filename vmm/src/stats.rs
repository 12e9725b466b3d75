//! What a VM has cost and what went wrong in it, in numbers.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use devices::pci::PciAddress;
use passthrough::{AssignedDevice, InterruptStats};
use serde::Serialize;

use crate::interrupts::{Router, RouterStats};

/// The numbers of a VM at one moment. They begin when it is built.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Interrupt routing.
    pub routing: RouterStats,
    /// Each assigned device.
    pub devices: Vec<DeviceStats>,
}

/// The numbers of one assigned device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceStats {
    /// Its address on the host.
    pub host: PciAddress,
    /// Its interrupts.
    pub interrupts: InterruptStats,
}

/// Where a VM's numbers can be read, while it runs and after. Cloning gives
/// another handle; none keeps the VM's devices.
#[derive(Clone, Debug)]
pub struct StatsHandle(Arc<Mutex<Source>>);

#[derive(Debug)]
enum Source {
    Running {
        router: Router,
        devices: Vec<Weak<Mutex<AssignedDevice>>>,
    },
    Ended(Stats),
}

impl StatsHandle {
    /// The numbers of `router`, as long as it lives.
    pub(crate) fn new(router: Router) -> Self {
        let devices = Vec::new();
        Self(Arc::new(Mutex::new(Source::Running { router, devices })))
    }

    /// Those of a VM that has none.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self(Arc::new(Mutex::new(Source::Ended(Stats::default()))))
    }

    /// Counts those of `devices`, too, as long as they live.
    pub(crate) fn count<'a>(&self, new: impl Iterator<Item = &'a Arc<Mutex<AssignedDevice>>>) {
        let mut source = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Source::Running { devices, .. } = &mut *source {
            devices.extend(new.map(Arc::downgrade));
        }
    }

    /// The present numbers, or those at the VM's end. Waits for what vCPUs are
    /// doing with the devices.
    pub fn read(&self) -> Stats {
        let source = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        source.read()
    }

    /// Keeps the present numbers, as all else is about to go.
    pub(crate) fn end(&self) {
        let mut source = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *source = Source::Ended(source.read());
    }
}

impl Source {
    fn read(&self) -> Stats {
        match self {
            Self::Ended(stats) => stats.clone(),
            Self::Running { router, devices } => Stats {
                routing: router.stats(),
                devices: devices
                    .iter()
                    .filter_map(Weak::upgrade)
                    .map(|device| {
                        let device = device.lock().unwrap_or_else(PoisonError::into_inner);
                        DeviceStats {
                            host: device.host_address(),
                            interrupts: device.interrupt_stats(),
                        }
                    })
                    .collect(),
            },
        }
    }
}

impl fmt::Display for Stats {
    /// Lines for people, without a newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RouterStats {
            routes,
            gsis,
            tables,
            table_entries,
            irqfds,
            irqfds_removed,
            promotions,
            injections,
            untaken,
            spurious,
            lost,
        } = self.routing;
        writeln!(
            f,
            "interrupt routes: {routes} made, {promotions} got an irqfd as they fired; {gsis} GSIs in use"
        )?;
        writeln!(
            f,
            "  routing tables: {tables}, with {table_entries} entries in all; irqfds: {irqfds} made, {irqfds_removed} taken away"
        )?;
        write!(
            f,
            "  injected by user space: {injections}, {untaken} of them taken by no CPU; wake-ups for nothing: {spurious}; lost: {lost}"
        )?;
        for device in &self.devices {
            write!(f, "\n{device}")?;
        }
        Ok(())
    }
}

impl fmt::Display for DeviceStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let InterruptStats {
            set_irqs,
            refused,
            short_allocations,
            armed,
            silent,
            trapped_ends,
            lost,
            pba_reads,
            trapped_pages,
        } = &self.interrupts;
        writeln!(
            f,
            "device {}: {set_irqs} SET_IRQS calls, {refused} refused, {short_allocations} of them short of vectors",
            self.host
        )?;
        write!(
            f,
            "  vectors and pin: {armed} armed; {silent} times one stayed silent; lost: {lost}; pending bits read {pba_reads} times"
        )?;
        if *trapped_ends > 0 {
            write!(
                f,
                "\n  interrupts of the pin ended by an access: {trapped_ends}"
            )?;
        }
        for page in trapped_pages {
            let (bar, offset, traps) = (page.bar, page.offset, page.traps);
            write!(
                f,
                "\n  page {offset:#x} of BAR {bar}: {traps} accesses trapped"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use passthrough::TrappedPage;

    #[test]
    fn numbers_for_people() {
        let interrupts = InterruptStats {
            set_irqs: 4,
            armed: 3,
            trapped_pages: vec![TrappedPage {
                bar: 0,
                offset: 0x2000,
                traps: 17,
            }],
            ..InterruptStats::default()
        };
        let stats = Stats {
            routing: RouterStats {
                routes: 3,
                tables: 2,
                table_entries: 83,
                ..RouterStats::default()
            },
            devices: vec![DeviceStats {
                host: "0000:01:00.0".parse().unwrap(),
                interrupts,
            }],
        };
        let text = stats.to_string();
        for part in [
            "interrupt routes: 3 made",
            "routing tables: 2, with 83 entries",
            "device 0000:01:00.0: 4 SET_IRQS calls",
            "3 armed",
            "page 0x2000 of BAR 0: 17 accesses",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.ends_with('\n'));
        let json = serde_json::to_value(&stats).unwrap();
        assert_eq!(json["routing"]["table_entries"], 83);
        assert_eq!(json["devices"][0]["interrupts"]["armed"], 3);
    }
}
