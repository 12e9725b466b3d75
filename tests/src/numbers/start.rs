//! How long a guest waits for its first instruction, and for its first block.

use serde::Serialize;

use super::error::{At, NumbersError};
use super::inside::Watched;
use super::program::{Guest, Program};
use super::spread::Spread;
use super::{PROBE, STEP_LIMIT};
use crate::host::{Host, Outcome, Step};
use crate::markers::Markers;
use crate::timeline::Timeline;

/// The guests that are booted.
const SIZES_MIB: [u64; 3] = [512, 2048, 4096];

const TIMELINE: &str = "/run/lab/numbers-timeline.json";
/// What the watcher writes before its answer.
pub(super) const ANSWER: &str = "watched: ";

/// The start of one monitor with one size of guest, in milliseconds after its
/// process was started.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Start {
    /// Which.
    program: Program,
    /// Of guest RAM.
    pub memory_mib: u64,
    /// Until its first vCPU had been in the guest.
    pub entry: Spread,
    /// Until the guest had read a block of the assigned NVMe.
    pub read: Spread,
    /// How much later than airlock itself the watcher saw the entry.
    pub behind_timeline: Option<Spread>,
}

impl Start {
    pub(super) fn program(&self) -> Program {
        self.program
    }
}

#[derive(Debug, Default)]
struct Samples {
    entry: Vec<f64>,
    read: Vec<f64>,
    behind: Vec<f64>,
}

/// Boots each size on each monitor, in turns, `rounds` times after one that
/// does not count.
pub(super) fn measure(host: &Host, device: &str, rounds: u32) -> Result<Vec<Start>, NumbersError> {
    let mut all = Vec::new();
    for memory_mib in SIZES_MIB {
        let guest = Guest {
            tasks: "nvme,poweroff",
            memory_mib,
            device: device.to_owned(),
        };
        let mut samples: [Samples; 3] = Default::default();
        for round in 0..=rounds {
            for (program, samples) in Program::ALL.into_iter().zip(&mut samples) {
                let step = format!("start of {program} with {memory_mib} MiB, round {round}");
                let one = boot(host, &step, &guest, program)?;
                if round == 0 {
                    continue;
                }
                samples.entry.push(one.entry);
                samples.read.push(one.read);
                samples.behind.extend(one.behind);
            }
        }
        for (program, samples) in Program::ALL.into_iter().zip(samples) {
            let step = format!("start of {program} with {memory_mib} MiB");
            let spread = |samples: &[f64]| {
                Spread::of(samples).ok_or_else(|| NumbersError::wrong(&step, "no round counts"))
            };
            all.push(Start {
                program,
                memory_mib,
                entry: spread(&samples.entry)?,
                read: spread(&samples.read)?,
                behind_timeline: Spread::of(&samples.behind),
            });
        }
    }
    Ok(all)
}

struct One {
    entry: f64,
    read: f64,
    behind: Option<f64>,
}

fn boot(host: &Host, step: &str, guest: &Guest, program: Program) -> Result<One, NumbersError> {
    let command = match program {
        Program::Airlock(backend) => guest.argv_with_timeline(backend, TIMELINE),
        Program::Qemu => guest.argv(program),
    };
    // At once when it's time to look, but not the monitor that it starts.
    let watcher = ["chrt", "--reset-on-fork", "--fifo", "1"];
    let words = watcher.into_iter().chain([PROBE, "inside", "watch", "--"]);
    let words = words.map(str::to_owned).chain(command);
    let outcome = host.run(&Step::argv(words).limit(STEP_LIMIT)).at(step)?;
    super::guest_was_well(step, &outcome)?;
    let wrong = |reason: String| NumbersError::wrong(step, reason);
    let watched = answer(&outcome).map_err(wrong)?;
    let first_read = read_after(&outcome, watched.started).map_err(wrong)?;
    let behind = match program {
        Program::Airlock(_) => {
            let text = host
                .shell(&format!("cat {TIMELINE}; rm {TIMELINE}"))
                .at(step)?;
            Some(behind(watched, &text).map_err(wrong)?)
        }
        Program::Qemu => None,
    };
    Ok(One {
        entry: milliseconds(watched.started, watched.entered),
        read: first_read,
        behind,
    })
}

/// What the watcher saw.
fn answer(outcome: &Outcome) -> Result<Watched, String> {
    let line = outcome
        .stderr
        .lines()
        .find_map(|line| line.strip_prefix(ANSWER));
    let line = line.ok_or("the watcher saw nothing")?;
    let watched: Watched = serde_json::from_str(line).map_err(|error| error.to_string())?;
    if watched.entered <= watched.started {
        return Err(format!("the guest ran before its monitor: {watched:?}"));
    }
    Ok(watched)
}

fn read_after(outcome: &Outcome, started: u64) -> Result<f64, String> {
    let markers = Markers::of(&outcome.lines);
    let marker = markers.first("nvme-first-read");
    let marker = marker.ok_or("the guest never told of its first read")?;
    Ok(milliseconds(started, marker.ns))
}

/// How much later than airlock the watcher saw the entry, in milliseconds.
fn behind(watched: Watched, timeline: &str) -> Result<f64, String> {
    let timeline = Timeline::parse(timeline).map_err(|error| error.to_string())?;
    let own = timeline.ns("first-vcpu-entry");
    let own = own.ok_or("airlock's timeline has no first vCPU entry")?;
    let behind = milliseconds(own, watched.entered);
    // airlock notes it just before it enters.
    if behind < 0.0 {
        return Err(format!(
            "the watcher saw the guest run {} ms before airlock entered it",
            -behind
        ));
    }
    Ok(behind)
}

fn milliseconds(from: u64, to: u64) -> f64 {
    // Exact below 2^53 ns.
    (to as f64 - from as f64) / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    const WATCHED: Watched = Watched {
        started: 1_000_000,
        entered: 9_000_000,
    };

    fn timeline(ns: u64) -> String {
        format!(r#"{{"events":[{{"name":"first-vcpu-entry","monotonic_ns":{ns}}}]}}"#)
    }

    #[test]
    fn the_watcher_is_held_against_the_timeline() {
        assert_eq!(behind(WATCHED, &timeline(7_500_000)), Ok(1.5));
        let error = behind(WATCHED, &timeline(9_500_000)).unwrap_err();
        assert!(error.contains("0.5 ms before"), "{error}");
        assert!(behind(WATCHED, r#"{"events":[]}"#).is_err());
        assert!(behind(WATCHED, "").is_err());
    }
}
