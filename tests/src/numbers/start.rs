//! How long a guest waits for its first instruction, and for its first block.

use serde::Serialize;

use super::PROBE;
use super::error::{At, NumbersError};
use super::field::{Devices, Unable, excused, limited};
use super::guest::Guest;
use super::inside::Watched;
use super::program::Program;
use super::spread::Spread;
use super::stage::Stage;
use crate::host::Outcome;
use crate::markers::Markers;
use crate::timeline::{Point, Timeline};

/// The guests that are booted: their memory in MiB, and what they are given.
const GUESTS: [(u64, Devices); 6] = [
    (512, Devices::Nothing),
    (2048, Devices::Nothing),
    (512, Devices::Nvme),
    (2048, Devices::Nvme),
    (4096, Devices::Nvme),
    (512, Devices::NvmeAndNic),
];

const TIMELINE: &str = "/run/lab/numbers-timeline.json";
/// How exact the watcher is, in milliseconds.
const WATCHED_MS: f64 = 1.0;
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
    /// What was assigned.
    pub devices: Devices,
    /// Until its first vCPU had been in the guest.
    pub entry: Spread,
    /// Until the guest's first program ran.
    pub init: Spread,
    /// Until the guest had read a block of the assigned NVMe.
    pub read: Option<Spread>,
    /// Until the guest had switched itself off and the monitor had ended.
    pub exit: Spread,
    /// How much later than airlock itself the watcher saw the entry.
    pub behind_timeline: Option<Spread>,
    /// airlock's own time stamps, in order.
    pub milestones: Vec<(String, Spread)>,
}

impl Start {
    pub(super) fn program(&self) -> Program {
        self.program
    }

    /// How far rounds are apart at most, as a part of what they measure, where, and at
    /// what. What the watcher sees is right to a millisecond only.
    pub(super) fn most_apart(&self) -> Option<(f64, &Self, &'static str)> {
        let ends = [
            ("the first entry", Some(self.entry)),
            ("the guest's init", Some(self.init)),
            ("the first read", self.read),
            ("the end", Some(self.exit)),
        ];
        let apart = |(what, spread): (&'static str, Option<Spread>)| {
            let spread = spread?;
            let apart = spread.max - spread.min;
            let seen = if apart <= WATCHED_MS { 0.0 } else { apart };
            Some((seen / spread.median, self, what))
        };
        let all = ends.into_iter().filter_map(apart);
        all.max_by(|a, b| a.0.total_cmp(&b.0))
    }

    #[cfg(test)]
    pub(super) fn for_test(memory_mib: u64, devices: Devices, ends: [Spread; 4]) -> Self {
        let [entry, init, read, exit] = ends;
        Self {
            program: Program::BASE,
            memory_mib,
            devices,
            entry,
            init,
            read: Some(read),
            exit,
            behind_timeline: None,
            milestones: Vec::new(),
        }
    }
}

#[derive(Debug, Default)]
struct Samples {
    entry: Vec<f64>,
    init: Vec<f64>,
    read: Vec<f64>,
    exit: Vec<f64>,
    behind: Vec<f64>,
    milestones: Vec<(String, Vec<f64>)>,
}

impl Samples {
    fn add(&mut self, one: One) {
        self.entry.push(one.entry);
        self.init.push(one.init);
        self.read.extend(one.read);
        self.exit.push(one.exit);
        self.behind.extend(one.behind);
        for (name, ms) in one.milestones {
            match self.milestones.iter_mut().find(|(known, _)| *known == name) {
                Some((_, all)) => all.push(ms),
                None => self.milestones.push((name, vec![ms])),
            }
        }
    }

    fn milestones(self) -> Vec<(String, Spread)> {
        let spread = |(name, ms): (String, Vec<f64>)| Some((name, Spread::of(&ms)?));
        self.milestones.into_iter().filter_map(spread).collect()
    }
}

/// Boots each guest on each monitor, in turns, `rounds` times after one that
/// does not count. Adds to `all` what is known of each guest as soon as it is, and leaves
/// out those that are there.
pub(super) fn measure(
    stage: &Stage,
    rounds: u32,
    all: &mut Vec<Start>,
    unable: &mut Vec<Unable>,
) -> Result<(), NumbersError> {
    for (memory_mib, devices) in GUESTS {
        let is_it = |start: &Start| (start.memory_mib, start.devices) == (memory_mib, devices);
        if all.iter().any(is_it) {
            continue;
        }
        let guest = stage.guest(devices);
        let programs = stage.field.able(devices);
        let guest = guest.memory_mib(memory_mib);
        let mut samples: Vec<_> = programs
            .into_iter()
            .map(|program| (program, Samples::default()))
            .collect();
        for round in 0..=rounds {
            let mut failed = Vec::new();
            for (program, samples) in &mut samples {
                let what = format!("boot a guest of {memory_mib} MiB with {devices} again");
                let step = format!("start of {program}, round {round}");
                let booted = boot(stage, &step, &guest, *program);
                match excused(*program, unable, &what, booted)? {
                    Some(one) if round > 0 => samples.add(one),
                    Some(_) => {}
                    None => failed.push(*program),
                }
            }
            samples.retain(|(program, _)| !failed.contains(program));
        }
        let mut starts = Vec::with_capacity(samples.len());
        for (program, samples) in samples {
            let step = format!("start of {program} with {memory_mib} MiB and {devices}");
            let spread = |samples: &[f64]| {
                Spread::of(samples).ok_or_else(|| NumbersError::wrong(&step, "no round counts"))
            };
            starts.push(Start {
                program,
                memory_mib,
                devices,
                entry: spread(&samples.entry)?,
                init: spread(&samples.init)?,
                read: Spread::of(&samples.read),
                exit: spread(&samples.exit)?,
                behind_timeline: Spread::of(&samples.behind),
                milestones: samples.milestones(),
            });
        }
        all.extend(starts);
    }
    Ok(())
}

struct One {
    entry: f64,
    init: f64,
    read: Option<f64>,
    exit: f64,
    behind: Option<f64>,
    milestones: Vec<(String, f64)>,
}

fn boot(stage: &Stage, step: &str, guest: &Guest, program: Program) -> Result<One, NumbersError> {
    let host = &stage.host;
    let command = match program {
        Program::Airlock(backend) => guest.argv_with_timeline(backend, TIMELINE),
        Program::Peer(_) => guest.argv(program),
    };
    // At once when it's time to look, but not the monitor that it starts.
    let watcher = ["chrt", "--reset-on-fork", "--fifo", "1"];
    let words = watcher.into_iter().chain([PROBE, "inside", "watch", "--"]);
    let words = words.map(str::to_owned).chain(command).collect();
    let outcome = limited(host, step, stage.seconds, words)?;
    let wrong = |reason: String| NumbersError::wrong(step, reason);
    let watched = answer(&outcome).map_err(wrong)?;
    let after = |marker| marker_after(&outcome, marker, watched.started).map_err(wrong);
    let read = match guest.devices() {
        [_, ..] => {
            super::guest_has_read(step, &outcome)?;
            Some(after("nvme-first-read")?)
        }
        [] => {
            super::guest_was_well(step, &outcome)?;
            None
        }
    };
    let own = match program {
        Program::Airlock(_) => {
            let text = host
                .shell(&format!("cat {TIMELINE}; rm {TIMELINE}"))
                .at(step)?;
            Some(Timeline::parse(&text).map_err(|error| wrong(error.to_string()))?)
        }
        Program::Peer(_) => None,
    };
    let behind = own.as_ref().map(|own| behind(watched, own)).transpose();
    let stamp = |point: &Point| (point.name.clone(), milliseconds(watched.started, point.ns));
    let milestones = own.iter().flat_map(Timeline::points).map(stamp).collect();
    Ok(One {
        entry: milliseconds(watched.started, watched.entered),
        init: after("init")?,
        read,
        exit: milliseconds(watched.started, watched.ended),
        behind: behind.map_err(wrong)?,
        milestones,
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
    if watched.entered <= watched.started || watched.ended <= watched.entered {
        return Err(format!("the guest ran before its monitor: {watched:?}"));
    }
    Ok(watched)
}

fn marker_after(outcome: &Outcome, name: &str, started: u64) -> Result<f64, String> {
    let markers = Markers::of(&outcome.lines);
    let marker = markers.first(name);
    let marker = marker.ok_or_else(|| format!("the guest never said '{name}'"))?;
    Ok(milliseconds(started, marker.ns))
}

/// How much later than airlock the watcher saw the entry, in milliseconds.
fn behind(watched: Watched, timeline: &Timeline) -> Result<f64, String> {
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
        ended: 20_000_000,
    };

    fn timeline(ns: u64) -> Timeline {
        let mut timeline = Timeline::default();
        timeline.add("first-vcpu-entry", ns);
        timeline
    }

    #[test]
    fn rounds_are_told_apart_beyond_what_the_watcher_sees() {
        let spread = |min: f64, max: f64| Spread::of(&[min, max]).unwrap();
        let ends = [
            spread(7.0, 8.0),
            spread(99.0, 101.0),
            spread(200.0, 202.0),
            spread(400.0, 400.5),
        ];
        let start = Start::for_test(512, Devices::Nvme, ends);
        let (apart, _, what) = start.most_apart().unwrap();
        assert_eq!((apart, what), (0.02, "the guest's init"));
    }

    #[test]
    fn the_watcher_is_held_against_the_timeline() {
        assert_eq!(behind(WATCHED, &timeline(7_500_000)), Ok(1.5));
        let error = behind(WATCHED, &timeline(9_500_000)).unwrap_err();
        assert!(error.contains("0.5 ms before"), "{error}");
        assert!(behind(WATCHED, &Timeline::default()).is_err());
    }
}
