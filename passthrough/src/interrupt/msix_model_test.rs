//! Every order of what a guest can do with a vector and what the device does,
//! held against the specification (PCIe 6.0 §6.1.4).
//!
//! The search visits every state that can be reached, by replaying the
//! shortest way to it. The device fires between two steps, and inside of a
//! step before every call to the host. Then the outcome must be one of those
//! that it could have if the device had fired before the step or after it.

use std::collections::{HashSet, VecDeque};

use super::*;

/// One vector of two is looked at; the other one keeps MSI-X's set busy.
const VECTOR: u16 = 1;
const OTHER: u16 = 0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Fire,
    Mask(bool),
    Program(u32),
    Control(u16),
    Sleep(bool),
    Reset,
    UnmaskOther,
}

const STEPS: [Step; 14] = [
    Step::Fire,
    Step::Mask(false),
    Step::Mask(true),
    Step::Program(1),
    Step::Program(2),
    Step::Control(0),
    Step::Control(FUNCTION_MASK),
    Step::Control(ENABLE),
    Step::Control(ENABLE_MASKED),
    Step::Sleep(true),
    Step::Sleep(false),
    Step::Reset,
    Step::UnmaskOther,
    // Twice the same is a step too.
    Step::Control(ENABLE),
];

const FUNCTION_MASK: u16 = 0x4000;

/// A vector of a real device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Real {
    masked: bool,
    control: u16,
    asleep: bool,
    message: u32,
    pending: bool,
    /// What was delivered in the last step.
    delivered: Option<u32>,
}

impl Real {
    const RESET: Self = Self {
        masked: true,
        control: 0,
        asleep: false,
        message: 0,
        pending: false,
        delivered: None,
    };

    fn take(&mut self, step: Step) {
        match step {
            Step::Fire => self.pending = true,
            Step::Mask(masked) => self.masked = masked,
            Step::Program(message) => self.message = message,
            Step::Control(control) => self.control = control,
            Step::Sleep(asleep) => self.asleep = asleep,
            Step::Reset => {
                *self = Self {
                    asleep: self.asleep,
                    delivered: self.delivered,
                    ..Self::RESET
                }
            }
            Step::UnmaskOther => {}
        }
        let speaks = self.control == ENABLE && !self.masked && !self.asleep;
        if speaks && std::mem::take(&mut self.pending) {
            self.delivered = Some(self.message);
        }
    }

    /// The outcomes that a step may have, with the device firing inside of it
    /// or not: as if before all or after all. A reset may forget it, too.
    fn outcomes(self, step: Step, fires: bool) -> Vec<Self> {
        let mut start = self;
        start.delivered = None;
        let run = |steps: &[Step]| {
            let mut real = start;
            steps.iter().for_each(|step| real.take(*step));
            real
        };
        match fires {
            false => vec![run(&[step])],
            true if step == Step::Reset => vec![
                run(&[Step::Fire, step]),
                run(&[step]),
                run(&[step, Step::Fire]),
            ],
            true => vec![run(&[Step::Fire, step]), run(&[step, Step::Fire])],
        }
    }
}

/// The state of the code under test, as far as the future depends on it.
type Host = (bool, bool, bool, bool, Option<usize>);

struct Pair {
    setup: Setup,
    real: Real,
}

type Path = Vec<(Step, Option<usize>)>;

impl Pair {
    fn new(no_resize: bool) -> Self {
        Self {
            setup: setup_of(2, |device| resizing(device, no_resize)),
            real: Real::RESET,
        }
    }

    /// Takes a step, in which the device fires before the given call. Answers
    /// how many calls there were, or what is wrong.
    fn take(&mut self, step: Step, fires_before: Option<usize>) -> Result<usize, String> {
        let Setup {
            journal, device, ..
        } = &self.setup;
        journal.take();
        let fired = Arc::new(std::sync::atomic::AtomicBool::new(false));
        if let Some(call) = fires_before {
            let (device, fired) = (Arc::clone(device), Arc::clone(&fired));
            journal.meanwhile(call, move || {
                device.raise(VECTOR.into());
                fired.store(true, std::sync::atomic::Ordering::Relaxed);
            });
        }
        match step {
            Step::Fire => drop(self.setup.device.raise(VECTOR.into())),
            Step::Mask(masked) => self.setup.mask(VECTOR, masked),
            Step::Program(message) => self.setup.program(VECTOR, message),
            Step::Control(control) => self.setup.msix.write_control(control),
            Step::Sleep(asleep) => self.setup.msix.set_asleep(asleep),
            Step::Reset => {
                self.setup.msix.reset();
                let _ = self.setup.device.reset();
                // As its owner does.
                self.setup.device.region_write(7, 4, &[0x06, 0]).unwrap();
            }
            Step::UnmaskOther => self.setup.mask(OTHER, false),
        }
        let calls = self.setup.journal.take().len();
        let fired = fired.load(std::sync::atomic::Ordering::Relaxed);
        if fires_before.is_some() && !fired {
            return Ok(0);
        }
        let delivered = self.setup.delivered();
        if delivered.len() > 1 {
            return Err(format!("delivered {delivered:?}"));
        }
        let pending = self.setup.pending(VECTOR);
        let outcomes = self.real.outcomes(step, fired);
        let same =
            |real: &&Real| real.pending == pending && real.delivered.as_slice() == &delivered[..];
        match outcomes.iter().find(same) {
            Some(real) => self.real = *real,
            None => {
                return Err(format!(
                    "{delivered:?}, pending {pending}, not {outcomes:?}"
                ));
            }
        }
        Ok(calls)
    }

    fn state(&self) -> (Real, Host) {
        let vectors = &self.setup.msix.vectors;
        let real = Real {
            delivered: None,
            ..self.real
        };
        let host = (
            vectors.is_on(),
            vectors.is_armed(VECTOR),
            vectors.is_armed(OTHER),
            vectors.is_pending(VECTOR),
            self.setup.device.host_vectors(),
        );
        (real, host)
    }
}

fn replay(no_resize: bool, path: &Path) -> Pair {
    let mut pair = Pair::new(no_resize);
    for (step, fires_before) in path {
        pair.take(*step, *fires_before).unwrap();
    }
    pair
}

#[test]
fn a_vector_does_what_the_specification_says() {
    for no_resize in [false, true] {
        let mut seen = HashSet::from([Pair::new(no_resize).state()]);
        let mut frontier = VecDeque::from([Path::new()]);
        let mut transitions = 0;
        while let Some(path) = frontier.pop_front() {
            for step in STEPS {
                let mut calls = 0;
                let mut fires_before = None;
                loop {
                    let mut pair = replay(no_resize, &path);
                    let mut path = path.clone();
                    path.push((step, fires_before));
                    match pair.take(step, fires_before) {
                        Ok(made) if fires_before.is_none() => calls = made,
                        Ok(_) => {}
                        Err(error) => panic!("{path:?}: {error}"),
                    }
                    transitions += 1;
                    if seen.insert(pair.state()) {
                        frontier.push_back(path);
                    }
                    let next = fires_before.map_or(0, |call| call + 1);
                    if next >= calls || step == Step::Fire {
                        break;
                    }
                    fires_before = Some(next);
                }
            }
        }
        eprintln!("{} states, {transitions} steps", seen.len());
        // All that can be: pending in the device, in the event, remembered.
        let pending = |on, armed| {
            seen.iter()
                .any(|(real, host)| real.pending && (host.0, host.1) == (on, armed))
        };
        assert!(pending(true, true) && pending(true, false) && pending(false, false));
        assert!(seen.len() > 100, "{} states", seen.len());
    }
}
