//! What it costs to map a BAR of 16 GiB, for a vCPU and for another device.

use std::fmt::{self, Formatter};

use serde::Serialize;

use super::error::NumbersError;
use super::field::{Unable, excused, limited};
use super::guest::{Given, Guest};
use super::program::Program;
use super::tool;
use crate::host::Host;
use crate::markers::Markers;

/// Memory with a PCI function round it (QEMU's ivshmem).
const FUNCTION: &str = "1af4:1110";

/// How long a guest may take, in seconds: the kernel may look up each page of the BAR.
const SECONDS: u32 = 300;
/// What is tried.
const WHAT: &str = "boot a guest with a BAR of 16 GiB";

/// One monitor's times.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BarCost {
    /// Which.
    program: Program,
    /// When the guest has no other device.
    pub alone: Option<Decoding>,
    /// When its NVMe may reach the BAR.
    pub with_peer: Option<Decoding>,
}

/// How long the guest's write to the command register takes, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Decoding {
    /// That turns memory decoding on.
    pub on: f64,
    /// That turns it off.
    pub off: f64,
}

/// Boots two guests on each monitor. A peer that does not come to the end of one is
/// unable to.
pub(super) fn measure(
    host: &Host,
    (large, disk): (&Given, &Given),
    programs: &[Program],
    unable: &mut Vec<Unable>,
) -> Result<Vec<BarCost>, NumbersError> {
    let tasks = format!("task_decode() {{\nguest-pci decode {FUNCTION}\n}}\n");
    let initrd = tool::initrd(host, "bars.cpio", &tasks)?;
    let mut boot = |program, guest: Guest| {
        let step = format!("a BAR of 16 GiB on {program}");
        let guest = guest.device(large).initrd(&initrd);
        let outcome = limited(host, &step, SECONDS, guest.argv(program))?;
        let told = super::guest_was_well(&step, &outcome).and_then(|()| {
            let told = of(&Markers::of(&outcome.lines));
            told.ok_or_else(|| NumbersError::wrong(&step, "the guest told of no time"))
        });
        excused(program, unable, WHAT, told)
    };
    let mut all = Vec::new();
    for program in programs.iter().copied() {
        let alone = boot(program, Guest::new("decode,poweroff"))?;
        let with_peer = boot(program, Guest::new("nvme,decode,poweroff").device(disk))?;
        all.push(BarCost {
            program,
            alone,
            with_peer,
        });
    }
    Ok(all)
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
        "\nA BAR of 16 GiB: ms that the guest waits to turn it on (and off)\n\
         {:<18} {:>20} {:>20}",
        "", "alone", "beside an NVMe"
    )?;
    for cost in all {
        let told = |one: Option<Decoding>| match one {
            Some(one) => format!("{:.1} ({:.1})", one.on, one.off),
            None => "unable".to_owned(),
        };
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
