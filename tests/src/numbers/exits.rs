//! Why vCPUs leave the guest, by KVM's own count.

use std::collections::BTreeMap;
use std::fmt::{self, Formatter};

use serde::Serialize;

use super::STEP_LIMIT;
use super::error::{At, NumbersError};
use super::field::{Unable, each};
use super::guest::{Given, Guest};
use super::program::Program;
use crate::host::{Host, Step};

/// All vCPUs' counts, a file each (virt/kvm/kvm_main.c, arch/x86/kvm/x86.c): all exits;
/// ports, whoever answers; memory that user space answers; interrupts of the host; the
/// guest idle; instructions that KVM carries out.
const DIRECTORY: &str = "/sys/kernel/debug/kvm";
const KINDS: [&str; 6] = [
    "exits",
    "io_exits",
    "mmio_exits",
    "irq_exits",
    "halt_exits",
    "insn_emulation",
];

/// The guest stands still for two seconds at each look.
const TASKS: &str = "
task_look() { marker look; sleep 2; }
";
const READS: u64 = 1000;

/// The exits of one monitor's guest, by kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exits {
    /// Which.
    program: Program,
    /// From the start to the guest's init.
    pub until_init: BTreeMap<&'static str, u64>,
    /// For 1,000 reads of 4 KiB off its NVMe.
    pub reads: BTreeMap<&'static str, u64>,
}

/// Boots a guest on each monitor, and looks when it has come to its init, before
/// its reads and after them.
pub(super) fn measure(
    host: &Host,
    device: &Given,
    programs: &[Program],
    unable: &mut Vec<Unable>,
) -> Result<Vec<Exits>, NumbersError> {
    let initrd = host
        .guest_initrd("exits.cpio", &[], TASKS)
        .at("an initramfs with tasks that stand still")?;
    let measure = |program| {
        let step = format!("exits of {program}");
        let guest = Guest::new("look,nvme,look,reads,look,poweroff")
            .device(device)
            .initrd(&initrd);
        let start = Step::argv(guest.argv(program)).limit(STEP_LIMIT);
        let mut process = host.start(&start).at(&step)?;
        let mut look = || {
            process.wait_line("lab: look", STEP_LIMIT).at(&step)?;
            let told = host.shell(&format!("cd {DIRECTORY} && cat {}", KINDS.join(" ")));
            counts(&told.at(&step)?).map_err(|reason| NumbersError::wrong(&step, reason))
        };
        let (until_init, before, mut reads) = (look()?, look()?, look()?);
        let outcome = process.wait().at(&step)?;
        super::guest_has_read(&step, &outcome)?;
        for (kind, count) in &mut reads {
            *count = count.saturating_sub(before[kind]);
        }
        Ok(Exits {
            program,
            until_init,
            reads,
        })
    };
    each(programs, unable, "have its exits counted", measure)
}

/// A line each, in the order of [`KINDS`].
fn counts(told: &str) -> Result<BTreeMap<&'static str, u64>, String> {
    let counts: BTreeMap<_, _> = KINDS
        .into_iter()
        .zip(told.lines().filter_map(|line| line.trim().parse().ok()))
        .collect();
    match counts.len() == KINDS.len() && counts["exits"] > 0 {
        true => Ok(counts),
        false => Err(format!("KVM counts no exits: '{told}'")),
    }
}

/// The table.
pub(super) fn show(f: &mut Formatter<'_>, all: &[Exits]) -> fmt::Result {
    writeln!(
        f,
        "\nExits until the guest's init, and for {READS} reads of 4 KiB then, by KVM's count\n\
         {:<18} {:>18} {:>18} {:>18} {:>18} {:>18} {:>18}",
        "", "all", "ports", "MMIO by monitor", "host interrupts", "idle", "emulated by KVM"
    )?;
    for exits in all {
        write!(f, "{:<18}", exits.program)?;
        for kind in KINDS {
            let told = format!("{}, {}", exits.until_init[kind], exits.reads[kind]);
            write!(f, " {told:>18}")?;
        }
        writeln!(f)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_told_in_order_or_refused() {
        let told = counts("9\n8\n7\n6\n5\n4\n").unwrap();
        assert_eq!((told["exits"], told["insn_emulation"]), (9, 4));
        assert!(counts("9\n8\n7\n6\n5\n").is_err());
        assert!(counts("0\n0\n0\n0\n0\n0\n").is_err());
    }
}
