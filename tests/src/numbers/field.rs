//! Who takes part in what. A peer that can't boot a guest is left out where that
//! guest is measured, and the report says so. airlock is never left out.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::error::{At, NumbersError};
use super::guest::Guest;
use super::peer::PeerKind;
use super::program::Program;
use super::{STEP_LIMIT, guest_has_read, guest_was_well};
use crate::host::{Exit, Host, HostError, Outcome, Step};
use crate::markers::Markers;
use crate::progress::say;

/// How `timeout` says that it was too long.
const TOO_LONG: Exit = Exit::Status(124);

/// What a guest is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Devices {
    /// Nothing.
    Nothing,
    /// An NVMe.
    Nvme,
    /// An NVMe and a network card.
    NvmeAndNic,
    /// An NVMe with as many MSI-X vectors as a function may have.
    Vectors,
}

impl Devices {
    pub(super) const ALL: [Self; 4] = [Self::Nothing, Self::Nvme, Self::NvmeAndNic, Self::Vectors];
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nothing => "no device",
            Self::Nvme => "an NVMe",
            Self::NvmeAndNic => "an NVMe and a NIC",
            Self::Vectors => "an NVMe with 2,048 vectors",
        })
    }
}

/// A peer that can't do something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unable {
    program: Program,
    /// What it can't.
    pub what: String,
    /// How it ended, and the last that it said.
    pub reason: String,
}

impl Unable {
    /// Says it at once, too.
    fn new(program: Program, what: &str, error: &NumbersError) -> Self {
        let unable = Self {
            program,
            what: what.to_owned(),
            reason: reason(error),
        };
        say(&format!("numbers: {unable}"));
        unable
    }
}

impl fmt::Display for Unable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            program,
            what,
            reason,
        } = self;
        write!(f, "{program} can't {what}: {reason}")
    }
}

/// The monitors that can boot each guest.
#[derive(Debug, Default)]
pub(super) struct Field {
    able: Vec<(Devices, Vec<Program>)>,
    pub(super) unable: Vec<Unable>,
}

impl Field {
    /// Boots each of `guests` once on each of `peers`, in at most so many seconds.
    pub(super) fn try_out(
        host: &Host,
        seconds: u32,
        peers: &[PeerKind],
        guests: &[(Devices, Guest)],
    ) -> Result<Self, NumbersError> {
        let mut field = Self::default();
        for (devices, guest) in guests {
            let mut able = Program::own();
            for program in peers.iter().copied().map(Program::Peer) {
                let step = format!("first guest of {program} with {devices}");
                let outcome = limited(host, &step, seconds, guest.argv(program))?;
                let well = match devices {
                    Devices::Nothing => guest_has_begun(&step, &outcome),
                    Devices::Nvme | Devices::NvmeAndNic | Devices::Vectors => {
                        guest_has_read(&step, &outcome)
                    }
                };
                let what = format!("boot a guest with {devices}");
                if excused(program, &mut field.unable, &what, well)?.is_some() {
                    able.push(program);
                }
            }
            field.able.push((*devices, able));
        }
        Ok(field)
    }

    /// Who can boot a guest with these.
    pub(super) fn able(&self, devices: Devices) -> Vec<Program> {
        let found = self.able.iter().find(|(known, _)| *known == devices);
        found.map_or_else(Program::own, |(_, able)| able.clone())
    }
}

/// How much longer the nested host's seconds may take than those here, when it counts
/// instructions and a guest spins.
const SLOWER: u32 = 30;

/// Runs a command that may not come to its end in so many seconds.
pub(super) fn limited(
    host: &Host,
    step: &str,
    seconds: u32,
    command: Vec<String>,
) -> Result<Outcome, NumbersError> {
    let timeout = ["timeout", "-k", "5", &seconds.to_string()].map(str::to_owned);
    let limit = Duration::from_secs(u64::from(seconds * SLOWER)).min(STEP_LIMIT);
    let run = Step::argv(timeout.into_iter().chain(command)).limit(limit);
    host.run(&run).at(step)
}

/// The monitor ended well, and its guest's init ran.
fn guest_has_begun(step: &str, outcome: &Outcome) -> Result<(), NumbersError> {
    guest_was_well(step, outcome)?;
    match Markers::of(&outcome.lines).first("init") {
        Some(_) => Ok(()),
        None => Err(NumbersError::wrong(step, "the guest never said 'init'")),
    }
}

/// Measures each of `programs`. A peer that does not do `what` is unable to, and left
/// out.
pub(super) fn each<T>(
    programs: &[Program],
    unable: &mut Vec<Unable>,
    what: &str,
    mut measure: impl FnMut(Program) -> Result<T, NumbersError>,
) -> Result<Vec<T>, NumbersError> {
    let mut all = Vec::new();
    for program in programs.iter().copied() {
        all.extend(excused(program, unable, what, measure(program))?);
    }
    Ok(all)
}

/// What `program` did, or nothing when it is a peer that was unable to.
///
/// # Errors
/// What airlock did not do, and what is the nested host's failure.
pub(super) fn excused<T>(
    program: Program,
    unable: &mut Vec<Unable>,
    what: &str,
    result: Result<T, NumbersError>,
) -> Result<Option<T>, NumbersError> {
    match (result, program) {
        (Ok(one), _) => Ok(Some(one)),
        (Err(error), Program::Peer(_)) if error.is_of_monitor() => {
            unable.push(Unable::new(program, what, &error));
            Ok(None)
        }
        (Err(error), _) => Err(error),
    }
}

fn reason(error: &NumbersError) -> String {
    let outcome = match error {
        NumbersError::Host {
            source: HostError::Failed(outcome),
            ..
        } => outcome,
        NumbersError::Wrong { reason, .. } => return reason.clone(),
        other => return other.to_string(),
    };
    let said = outcome.lines.iter().rev().map(|line| line.text.trim());
    let last = said.into_iter().find(|text| !text.is_empty());
    let last = last.unwrap_or("it said nothing");
    match &outcome.exit {
        &TOO_LONG => format!("not at its end in time; the last line: {last}"),
        exit => format!("{exit:?}; the last line: {last}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_unable_is_left_out_of_that_guest_alone() {
        let qemu = Program::Peer(PeerKind::Qemu);
        let mut all = Program::own();
        all.push(qemu);
        let field = Field {
            able: vec![(Devices::Nothing, all.clone())],
            unable: Vec::new(),
        };
        assert_eq!(field.able(Devices::Nothing), all);
        assert_eq!(field.able(Devices::Nvme), Program::own());
        let unable = Unable {
            program: qemu,
            what: "boot a guest with an NVMe".to_owned(),
            reason: "no".to_owned(),
        };
        assert_eq!(
            unable.to_string(),
            "QEMU can't boot a guest with an NVMe: no"
        );
    }
}
