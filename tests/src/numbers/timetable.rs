//! The starts as tables.

use std::fmt::{self, Formatter};

use super::program::Program;
use super::report::{times, verdict};
use super::{Spread, Start};

/// How far two rounds may be apart where time is instructions, of what they measure.
const AGREE: f64 = 0.02;

/// Those in time as it goes by.
pub(super) fn show(f: &mut Formatter<'_>, all: &[Start], rounds: u32) -> fmt::Result {
    writeln!(
        f,
        "\nFrom the start of the process: ms, median (least-most) of {}, and times {}",
        rounds,
        Program::BASE,
    )?;
    rows(f, all)?;
    let behind = all.iter().filter_map(|start| start.behind_timeline);
    let most = behind.map(|behind| behind.max).fold(0.0, f64::max);
    writeln!(
        f,
        "(the entry is seen from outside, at most {most:.1} ms after airlock's own time stamp of it)"
    )
}

/// Those where time is instructions.
pub(super) fn show_counted(f: &mut Formatter<'_>, all: &[Start], rounds: u32) -> fmt::Result {
    writeln!(
        f,
        "\nFrom the start of the process where an instruction takes a nanosecond: ms, \
         median (least-most) of {}",
        rounds
    )?;
    rows(f, all)?;
    if let Some((most, start, what)) = all
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
    Ok(())
}

fn rows(f: &mut Formatter<'_>, starts: &[Start]) -> fmt::Result {
    writeln!(
        f,
        "{:<27} {:<16} {:>18} {:>6} {:>18} {:>6} {:>18} {:>6} {:>20} {:>6}",
        "guest", "", "first vCPU entry", "", "guest's init", "", "NVMe read", "", "ended", ""
    )?;
    for start in starts {
        let same = |base: &&Start| {
            base.program() == Program::BASE
                && (base.memory_mib, base.devices) == (start.memory_mib, start.devices)
        };
        let Some(base) = starts.iter().find(same) else {
            continue;
        };
        let guest = format!("{} MiB, {}", start.memory_mib, start.devices);
        write!(f, "{guest:<27} {:<16}", start.program())?;
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
    for start in starts {
        let stamps = start.milestones.iter();
        let stamps: Vec<_> = stamps
            .map(|(name, at)| format!("{name} {:.1}", at.median))
            .collect();
        if !stamps.is_empty() {
            let (memory, program) = (start.memory_mib, start.program());
            let (devices, stamps) = (start.devices, stamps.join(", "));
            writeln!(f, "{program}, {memory} MiB, {devices}: {stamps}")?;
        }
    }
    Ok(())
}
