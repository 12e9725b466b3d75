use std::fmt::{self, Formatter};

use serde::Serialize;

use super::program::Program;
use super::{
    BarCost, Calls, Chart, Exits, GUEST_MIB, MapCost, Rates, Reads, Resident, Start, Unable,
    VectorCalls, VectorTimes, bars, calls, exits, maps, rates, reads, resident, timetable, vectors,
};

/// All that was measured; what was not is empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// The release of the nested host's kernel.
    pub kernel: String,
    /// The versions of other monitors, by name.
    pub peers: Vec<(String, String)>,
    /// The command line of each, for a guest with an NVMe.
    pub(super) commands: Vec<(Program, String)>,
    /// Peers that can't boot a guest.
    pub unable: Vec<Unable>,
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
    /// A BAR of 16 GiB.
    pub bars: Vec<BarCost>,
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
        for unable in &self.unable {
            writeln!(f, "{unable}")?;
        }
        if !self.maps.is_empty() {
            maps::show(f, &self.maps)?;
        }
        if !self.starts.is_empty() {
            timetable::show(f, &self.starts, self.rounds)?;
        }
        if !self.counted.is_empty() {
            timetable::show_counted(f, &self.counted, self.counted_rounds)?;
        }
        if !self.rates.is_empty() {
            rates::show(f, &self.rates)?;
        }
        if !self.vector_times.is_empty() {
            vectors::show_times(f, &self.vector_times)?;
        }
        if !self.bars.is_empty() {
            bars::show(f, &self.bars)?;
        }
        if !self.calls.is_empty() {
            calls::show(f, &self.calls)?;
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
            resident::show(f, &self.memory)?;
        }
        writeln!(f, "\nThe command lines, for a guest with an NVMe:")?;
        for (program, words) in &self.commands {
            writeln!(f, "{program}: {words}")?;
        }
        Ok(())
    }
}

impl Report {
    /// The start of the smallest guest with a device where time is instructions.
    pub fn chart(&self) -> Chart<'_> {
        Chart::new(&self.counted, GUEST_MIB)
    }
}

pub(super) fn times(value: f64, base: f64) -> String {
    format!("x{:.2}", value / base)
}

pub(super) fn verdict(is_met: bool) -> &'static str {
    if is_met { "is met" } else { "is MISSED" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_measured_is_told() {
        let told = Report::default().to_string();
        assert!(
            !told.contains("Memory") && !told.contains("KVM_RUN"),
            "{told}"
        );
        assert_eq!(times(30.0, 12.0), "x2.50");
        assert!(verdict(true) != verdict(false));
    }
}
