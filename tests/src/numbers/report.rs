use std::fmt::{self, Formatter};

use serde::Serialize;

use super::program::Program;
use super::{
    Calls, Chart, Exits, GUEST_MIB, MapCost, Rates, Reads, Resident, Spread, Start, VectorCalls,
    VectorTimes, exits, reads, vectors,
};

/// What cloud-hypervisor makes to boot a guest with one NVMe in this lab: once
/// counted by hand (August 2026), not in this run.
const PEER: (&str, u64, u64) = ("cloud-hypervisor", 3_068, 705);
/// An order of magnitude under it.
const GOAL_IOCTL: u64 = PEER.1.div_ceil(10);
const GOAL_PREAD: u64 = PEER.2.div_ceil(10);
/// Memory beyond guest RAM with one device, in KiB.
const GOAL_KIB: u64 = 5 << 10;
/// How far two rounds may be apart where time is instructions, of what they measure.
const AGREE: f64 = 0.02;
/// How many kinds of requests are told by name.
const REQUESTS: usize = 12;

/// All that was measured; what was not is empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// The release of the nested host's kernel.
    pub kernel: String,
    /// The versions of other monitors, by name.
    pub peers: Vec<(String, String)>,
    /// How often each start counts.
    pub rounds: u32,
    /// Memory for devices.
    pub maps: Vec<MapCost>,
    /// From the start of a monitor to its guest's first instruction and read.
    pub starts: Vec<Start>,
    /// How often each start counts where time is instructions.
    pub counted_rounds: u32,
    /// The same starts where each instruction takes a nanosecond.
    pub counted: Vec<Start>,
    /// Single accesses of guests, on the same host.
    pub rates: Vec<Rates>,
    /// Vectors by their number, on the same host.
    pub vector_times: Vec<VectorTimes>,
    /// What guests get of their devices.
    pub reads: Vec<Reads>,
    /// Exits of guests.
    pub exits: Vec<Exits>,
    /// System calls for vectors by their number.
    pub vector_calls: Vec<VectorCalls>,
    /// System calls of monitors.
    pub calls: Vec<Calls>,
    /// Memory of monitors.
    pub memory: Vec<Resident>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let peers = self.peers.iter();
        let peers: Vec<_> = peers
            .map(|(name, version)| format!("{name} {version}"))
            .collect();
        writeln!(
            f,
            "One nested host: 1 CPU, emulated, Linux {}; one NVMe; beside airlock {}.\n\
             The same kernel, initrd, command line, memory and device for all.",
            self.kernel,
            peers.join(", ")
        )?;
        if !self.maps.is_empty() {
            self.show_maps(f)?;
        }
        if !self.starts.is_empty() {
            self.show_starts(f)?;
        }
        if !self.counted.is_empty() {
            self.show_counted(f)?;
        }
        if !self.calls.is_empty() {
            self.show_calls(f)?;
        }
        if !self.exits.is_empty() {
            exits::show(f, &self.exits)?;
        }
        if !self.vector_calls.is_empty() {
            vectors::show_calls(f, &self.vector_calls)?;
        }
        if !self.reads.is_empty() {
            reads::show(f, &self.reads)?;
        }
        if !self.memory.is_empty() {
            self.show_memory(f)?;
        }
        Ok(())
    }
}

impl Report {
    /// The start of the smallest guest with a device where time is instructions.
    pub fn chart(&self) -> Chart<'_> {
        Chart::new(&self.counted, GUEST_MIB)
    }

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
            "\nFrom the start of the process: ms, median (least-most) of {}, and times {}",
            self.rounds,
            Program::BASE,
        )?;
        show_starts(f, &self.starts)?;
        let behind = self.starts.iter().filter_map(|start| start.behind_timeline);
        let most = behind.map(|behind| behind.max).fold(0.0, f64::max);
        writeln!(
            f,
            "(the entry is seen from outside, at most {most:.1} ms after airlock's own time stamp of it)"
        )
    }

    fn show_counted(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nFrom the start of the process where an instruction takes a nanosecond: ms, \
             median (least-most) of {}",
            self.counted_rounds
        )?;
        show_starts(f, &self.counted)?;
        if let Some((most, start, what)) = self
            .counted
            .iter()
            .filter_map(Start::most_apart)
            .max_by(|a, b| a.0.total_cmp(&b.0))
        {
            writeln!(
                f,
                "(rounds differ by at most {:.1} %, or a millisecond, at which the watcher looks: goal \
                 of {:.0} % {}; most for {what} of {}, {} MiB)",
                most * 100.0,
                AGREE * 100.0,
                verdict(most <= AGREE),
                start.program(),
                start.memory_mib
            )?;
        }
        writeln!(
            f,
            "\nAn access that leaves the guest, on the same host: ns\n\
             {:<18} {:>14} {:>16} {:>11} {:>12}",
            "", "ECAM, constant", "ECAM, device's", "MSI-X read", "MSI-X write"
        )?;
        for rates in &self.rates {
            writeln!(
                f,
                "{:<18} {:>14} {:>16} {:>11} {:>12}",
                rates.program(),
                rates.constant,
                rates.passed,
                rates.table_read,
                rates.table_write
            )?;
        }
        vectors::show_times(f, &self.vector_times)
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
        for calls in &self.calls {
            for added in &calls.added {
                writeln!(
                    f,
                    "{}: {} {} more add {} ioctl, {} of them run, and {} calls in all",
                    calls.program(),
                    added.count,
                    added.what,
                    added.ioctl,
                    added.run,
                    added.total
                )?;
            }
        }
        let (name, ioctl, pread) = PEER;
        writeln!(
            f,
            "{name:<18} {ioctl:>7} {:>12} {:>8} {pread:>8} {:>9} {:>7}  \
             not of this run: counted by hand in this lab, August 2026",
            "", "", "", ""
        )?;
        for calls in &self.calls {
            if matches!(calls.program(), Program::Peer(_)) {
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
             {:<18} {:>8} {:>18} {:>8} {:>13}",
            "", "all", "of them no file's", "threads", "program, KiB"
        )?;
        for memory in &self.memory {
            let goal = match memory.program() {
                Program::Peer(_) => String::new(),
                Program::Airlock(_) => format!(
                    "  goal of less than {GOAL_KIB} {}",
                    verdict(memory.kib < GOAL_KIB)
                ),
            };
            writeln!(
                f,
                "{:<18} {:>8} {:>18} {:>8} {:>13}{goal}",
                memory.program(),
                memory.kib,
                memory.anonymous_kib,
                memory.threads,
                memory.file_kib
            )?;
        }
        Ok(())
    }
}

fn show_starts(f: &mut Formatter<'_>, starts: &[Start]) -> fmt::Result {
    writeln!(
        f,
        "{:<15} {:<15} {:>18} {:>6} {:>18} {:>6} {:>18} {:>6} {:>20} {:>6}",
        "guest", "", "first vCPU entry", "", "guest's init", "", "NVMe read", "", "ended", ""
    )?;
    for start in starts {
        let same = |base: &&Start| {
            base.program() == Program::BASE
                && (base.memory_mib, base.device) == (start.memory_mib, start.device)
        };
        let Some(base) = starts.iter().find(same) else {
            continue;
        };
        let device = if start.device { "NVMe" } else { "none" };
        let guest = format!("{} MiB, {device}", start.memory_mib);
        write!(f, "{guest:<15} {:<15}", start.program())?;
        let times = |value: Spread, base: Spread| times(value.median, base.median);
        for (value, base) in [(start.entry, base.entry), (start.init, base.init)] {
            write!(f, " {value:>18} {:>6}", times(value, base))?;
        }
        match (start.read, base.read) {
            (Some(value), Some(base)) => write!(f, " {value:>18} {:>6}", times(value, base))?,
            _ => write!(f, " {:>18} {:>6}", "", "")?,
        }
        let (value, base) = (start.exit, base.exit);
        writeln!(f, " {value:>20} {:>6}", times(value, base))?;
    }
    for start in starts.iter().filter(|start| start.device) {
        let stamps = start.milestones.iter();
        let stamps: Vec<_> = stamps
            .map(|(name, at)| format!("{name} {:.0}", at.median))
            .collect();
        if !stamps.is_empty() {
            let (memory, program) = (start.memory_mib, start.program());
            writeln!(f, "{program}, {memory} MiB: {}", stamps.join(", "))?;
        }
    }
    Ok(())
}

/// With a tenth, for what takes a few milliseconds.
struct Fine(Spread);

impl fmt::Display for Fine {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Spread { min, median, max } = self.0;
        f.pad(&format!("{median:.1} ({min:.1}-{max:.1})"))
    }
}

pub(super) fn times(value: f64, base: f64) -> String {
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
        let spread = Spread::of(&[1.0, 2.25, 4.0]).unwrap();
        assert_eq!(Fine(spread).to_string(), "2.2 (1.0-4.0)");
        assert!(verdict(true) != verdict(false));
    }
}
