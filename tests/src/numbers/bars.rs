//! What it costs to map a BAR of 16 GiB, for a vCPU and for another device.

use std::fmt::{self, Formatter};

use serde::Serialize;

use super::error::{At, NumbersError};
use super::guest::{Given, Guest};
use super::program::Program;
use super::{STEP_LIMIT, tool};
use crate::host::{Host, Step};
use crate::markers::Markers;

/// Memory with a PCI function round it (QEMU's ivshmem).
const FUNCTION: &str = "1af4:1110";

/// One monitor's times, where an instruction takes a nanosecond.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BarCost {
    /// Which.
    program: Program,
    /// When the guest has no other device.
    pub alone: Decoding,
    /// When its NVMe may reach the BAR.
    pub with_peer: Decoding,
}

/// How long the guest's write to the command register takes, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Decoding {
    /// That turns memory decoding on.
    pub on: f64,
    /// That turns it off.
    pub off: f64,
}

/// Boots two guests on each monitor.
pub(super) fn measure(
    host: &Host,
    (large, disk): (&Given, &Given),
    programs: &[Program],
) -> Result<Vec<BarCost>, NumbersError> {
    let tasks = format!("task_decode() {{\nguest-pci decode {FUNCTION}\n}}\n");
    let initrd = tool::initrd(host, "bars.cpio", &tasks)?;
    let boot = |program, guest: Guest| {
        let step = format!("a BAR of 16 GiB on {program}");
        let guest = guest.device(large).initrd(&initrd);
        let run = Step::argv(guest.argv(program)).limit(STEP_LIMIT);
        let outcome = host.run(&run).at(&step)?;
        super::guest_was_well(&step, &outcome)?;
        let told = of(&Markers::of(&outcome.lines));
        told.ok_or_else(|| NumbersError::wrong(&step, "the guest told of no time"))
    };
    let measure = |program| {
        Ok(BarCost {
            program,
            alone: boot(program, Guest::new("decode,poweroff"))?,
            with_peer: boot(program, Guest::new("nvme,decode,poweroff").device(disk))?,
        })
    };
    programs.iter().copied().map(measure).collect()
}

fn of(markers: &Markers) -> Option<Decoding> {
    let marker = markers.first("decode")?;
    // Exact below 2^53 ns.
    let milliseconds = |key| Some(marker.number(key)? as f64 / 1e6);
    Some(Decoding {
        on: milliseconds("on")?,
        off: milliseconds("off")?,
    })
}

/// The table.
pub(super) fn show(f: &mut Formatter<'_>, all: &[BarCost]) -> fmt::Result {
    writeln!(
        f,
        "\nA BAR of 16 GiB on the same host: ms that the guest waits to turn it on (and off)\n\
         {:<18} {:>20} {:>20}",
        "", "alone", "beside an NVMe"
    )?;
    for cost in all {
        let told = |one: Decoding| format!("{:.2} ({:.2})", one.on, one.off);
        let (alone, with_peer) = (told(cost.alone), told(cost.with_peer));
        writeln!(f, "{:<18} {alone:>20} {with_peer:>20}", cost.program)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Line, Stream};

    #[test]
    fn nanoseconds_become_milliseconds() {
        let markers = |text: &str| {
            Markers::of(&[Line {
                ns: 1,
                stream: Stream::Stdout,
                text: text.to_owned(),
            }])
        };
        let told = of(&markers("lab: decode uptime=1 on=2500000 off=500000"));
        assert_eq!(told, Some(Decoding { on: 2.5, off: 0.5 }));
        assert_eq!(of(&markers("lab: decode uptime=1 on=2500000")), None);
    }
}
