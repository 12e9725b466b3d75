//! How long an access takes that leaves the guest.

use std::fmt::{self, Formatter};

use serde::Serialize;

use super::error::{At, NumbersError};
use super::field::{Unable, each};
use super::guest::{Given, Guest};
use super::program::Program;
use super::{STEP_LIMIT, tool};
use crate::host::{Host, Step};
use crate::markers::Markers;

/// Single accesses on one monitor, in nanoseconds each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rates {
    /// Which.
    program: Program,
    /// A read of config space by ECAM that never changes.
    pub constant: u64,
    /// One of a register that is the device's.
    pub passed: u64,
    /// A read of the MSI-X table, which is in use.
    pub table_read: u64,
    /// A write there, to a vector that is masked.
    pub table_write: u64,
}

/// Boots a guest on each monitor that measures them with `guest-pci rates`.
pub(super) fn measure(
    host: &Host,
    device: &Given,
    programs: &[Program],
    unable: &mut Vec<Unable>,
) -> Result<Vec<Rates>, NumbersError> {
    let tasks = "task_rates() {\nguest-pci rates 1b36:0010\n}\n";
    let initrd = tool::initrd(host, "rates.cpio", tasks)?;
    let measure = |program| {
        let step = format!("single accesses on {program}");
        // The driver is there once a block has been read.
        let guest = Guest::new("nvme,rates,poweroff")
            .device(device)
            .initrd(&initrd);
        let run = Step::argv(guest.argv(program)).limit(STEP_LIMIT);
        let outcome = host.run(&run).at(&step)?;
        super::guest_has_read(&step, &outcome)?;
        let markers = Markers::of(&outcome.lines);
        let rates = markers.first("rates").and_then(|marker| {
            Some(Rates {
                program,
                constant: marker.number("constant")?,
                passed: marker.number("passed")?,
                table_read: marker.number("table-read")?,
                table_write: marker.number("table-write")?,
            })
        });
        rates.ok_or_else(|| NumbersError::wrong(&step, "the guest told of no rates"))
    };
    each(programs, unable, "have single accesses timed", measure)
}

/// The table.
pub(super) fn show(f: &mut Formatter<'_>, all: &[Rates]) -> fmt::Result {
    writeln!(
        f,
        "\nAn access that leaves the guest, on the same host: ns\n\
         {:<18} {:>14} {:>16} {:>11} {:>12}",
        "", "ECAM, constant", "ECAM, device's", "MSI-X read", "MSI-X write"
    )?;
    for rates in all {
        writeln!(
            f,
            "{:<18} {:>14} {:>16} {:>11} {:>12}",
            rates.program, rates.constant, rates.passed, rates.table_read, rates.table_write
        )?;
    }
    Ok(())
}
