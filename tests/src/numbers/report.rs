use std::fmt::{self, Formatter};

use serde::Serialize;

use super::program::Program;
use super::{Calls, GUEST_MIB, MapCost, Resident, Start};

/// What cloud-hypervisor makes to boot a guest with one NVMe in this lab: once
/// counted by hand (August 2026), not in this run.
const PEER: (&str, u64, u64) = ("cloud-hypervisor", 3_068, 705);
/// An order of magnitude under it.
const GOAL_IOCTL: u64 = PEER.1.div_ceil(10);
const GOAL_PREAD: u64 = PEER.2.div_ceil(10);
/// Memory beyond guest RAM with one device, in KiB.
const GOAL_KIB: u64 = 5 << 10;
/// How many kinds of requests are told by name.
const REQUESTS: usize = 12;

/// All that was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The release of the nested host's kernel.
    pub kernel: String,
    /// QEMU's version.
    pub qemu: String,
    /// How often each start counts.
    pub rounds: u32,
    /// Memory for devices.
    pub maps: Vec<MapCost>,
    /// From the start of a monitor to its guest's first instruction and read.
    pub starts: Vec<Start>,
    /// System calls of monitors.
    pub calls: Vec<Calls>,
    /// Memory of monitors.
    pub memory: Vec<Resident>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "One nested host: 1 CPU, emulated, Linux {}; one NVMe; QEMU {} beside airlock.\n\
             The same kernel, initrd, command line, memory and device for all.",
            self.kernel, self.qemu
        )?;
        self.show_maps(f)?;
        self.show_starts(f)?;
        self.show_calls(f)?;
        self.show_memory(f)
    }
}

impl Report {
    fn show_maps(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nMemory for a device: ms per GiB, populated first; median (least-most)\n\
             {:<25} {:<8} {:>9} {:>21} {:>21} {:>6}",
            "pages", "by", "populate", "map alone", "unmap alone", "calls"
        )?;
        for cost in &self.maps {
            writeln!(
                f,
                "{:<25} {:<8} {:>9.0} {:>21} {:>21} {:>6}",
                cost.pages,
                cost.backend(),
                cost.populate,
                Fine(cost.map),
                Fine(cost.unmap),
                cost.calls
            )?;
        }
        Ok(())
    }

    fn show_starts(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nFrom the start of the process: ms, median (least-most) of {}, and times {}\n\
             {:<9} {:<16} {:>21} {:>6} {:>23} {:>6}",
            self.rounds,
            Program::BASE,
            "guest",
            "",
            "first vCPU entry",
            "",
            "first NVMe read",
            ""
        )?;
        for start in &self.starts {
            let same = |base: &&Start| {
                base.program() == Program::BASE && base.memory_mib == start.memory_mib
            };
            let Some(base) = self.starts.iter().find(same) else {
                continue;
            };
            writeln!(
                f,
                "{:<9} {:<16} {:>21} {:>6} {:>23} {:>6}",
                format!("{} MiB", start.memory_mib),
                start.program(),
                start.entry,
                times(start.entry.median, base.entry.median),
                start.read,
                times(start.read.median, base.read.median)
            )?;
        }
        let behind = self.starts.iter().filter_map(|start| start.behind_timeline);
        let most = behind.map(|behind| behind.max).fold(0.0, f64::max);
        writeln!(
            f,
            "(seen from outside, at most {most:.1} ms after airlock's own time stamp of it)"
        )
    }

    fn show_calls(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nSystem calls until a guest of {GUEST_MIB} MiB has read and powered off\n\
             {:<18} {:>7} {:>12} {:>8} {:>8} {:>9} {:>7}",
            "", "ioctl", "of them run", "DMA map", "pread64", "pwrite64", "total"
        )?;
        for calls in &self.calls {
            writeln!(
                f,
                "{:<18} {:>7} {:>12} {:>8} {:>8} {:>9} {:>7}",
                calls.program(),
                calls.ioctl,
                calls.run,
                calls.map,
                calls.pread,
                calls.pwrite,
                calls.total
            )?;
        }
        let (name, ioctl, pread) = PEER;
        writeln!(
            f,
            "{name:<18} {ioctl:>7} {:>12} {:>8} {pread:>8} {:>9} {:>7}  \
             not of this run: counted by hand in this lab, August 2026",
            "", "", "", ""
        )?;
        for calls in &self.calls {
            if calls.program() == Program::Qemu {
                continue;
            }
            let verdict = verdict(calls.ioctl < GOAL_IOCTL && calls.pread < GOAL_PREAD);
            writeln!(
                f,
                "{}: goal of fewer than {GOAL_IOCTL} ioctl and {GOAL_PREAD} pread64 {verdict}; \
                 {} ioctl are not KVM_RUN",
                calls.program(),
                calls.ioctl - calls.run
            )?;
            let frequent = calls.frequent();
            let named = frequent.iter().take(REQUESTS);
            let named = named.map(|(name, count)| format!("{count} {name}"));
            let exits = calls.exits.iter();
            let exits = exits.map(|(why, count)| format!("{count} KVM_RUN for {why}"));
            let all: Vec<_> = exits.chain(named).collect();
            writeln!(f, "  {}", all.join(", "))?;
        }
        Ok(())
    }

    fn show_memory(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nMemory beyond guest RAM after the guest's read: KiB (Pss), without BARs\n\
             {:<18} {:>8} {:>18}",
            "", "all", "of them no file's"
        )?;
        for memory in &self.memory {
            let goal = match memory.program() {
                Program::Qemu => String::new(),
                Program::Airlock(_) => format!(
                    "  goal of less than {GOAL_KIB} {}",
                    verdict(memory.kib < GOAL_KIB)
                ),
            };
            writeln!(
                f,
                "{:<18} {:>8} {:>18}{goal}",
                memory.program(),
                memory.kib,
                memory.anonymous_kib
            )?;
        }
        Ok(())
    }
}

/// With a tenth, for what takes a few milliseconds.
struct Fine(super::Spread);

impl fmt::Display for Fine {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let super::Spread { min, median, max } = self.0;
        f.pad(&format!("{median:.1} ({min:.1}-{max:.1})"))
    }
}

fn times(value: f64, base: f64) -> String {
    format!("x{:.2}", value / base)
}

fn verdict(is_met: bool) -> &'static str {
    if is_met { "is met" } else { "is MISSED" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_of_magnitude_is_a_tenth() {
        assert_eq!((GOAL_IOCTL, GOAL_PREAD), (307, 71));
        assert_eq!(times(30.0, 12.0), "x2.50");
        let spread = super::super::Spread::of(&[1.0, 2.25, 4.0]).unwrap();
        assert_eq!(Fine(spread).to_string(), "2.2 (1.0-4.0)");
        assert!(verdict(true) != verdict(false));
    }
}
