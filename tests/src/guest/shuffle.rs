use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Bar, Function, GuestError, Memory, NOTHING, marker};

/// How often the plan is gone through.
const ROUNDS: u64 = 10;
/// How many stable reads of other CPUs are waited for after each write.
const READS: u64 = 8;
/// How long for them at most.
const PATIENCE: Duration = Duration::from_secs(5);
/// Memory window of a bridge (PCIe 6.0 §7.5.1.3.6), in units of 1 MiB.
const WINDOW: u64 = 0x20;
const MIB: u64 = 1 << 20;

/// A BAR that moves, with the value of the register that is read of it.
#[derive(Debug)]
struct Mover {
    function: Function,
    bar: Bar,
    value: u32,
}

/// An address where a BAR may be, and whether accesses get there.
#[derive(Debug)]
struct Place {
    address: u64,
    reachable: bool,
    memory: Memory,
}

/// What is written to config space.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Mover so and so goes to place so and so.
    Move(usize, usize),
    /// Its memory decoding.
    Decode(usize, bool),
}

/// Where a mover is, and whether it decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    place: usize,
    decodes: bool,
}

/// Swaps the places of a memory BAR of two functions while another CPU reads
/// both: through a moment in which both are at one place, and back by a third.
///
/// # Errors
/// [`GuestError`] when one of them has no such BAR.
pub fn swap(one: Function, other: Function, index: u8) -> Result<(), GuestError> {
    let mut movers = Vec::new();
    for (function, value) in [(one, 0x1111_aaaa), (other, 0x2222_bbbb)] {
        let bar = function.bar(index)?;
        function.decode(true)?;
        let memory = Memory::map(bar.start, 4096)?;
        memory.write::<u32>(0, value)?;
        movers.push(Mover {
            function,
            bar,
            value,
        });
    }
    let (a, b) = (movers[0].bar, movers[1].bar);
    // Behind both, aligned as they are.
    let spare = a.start.max(b.start) + a.size.max(b.size);
    let places = [a.start, b.start, spare].map(|address| (address, true));
    let plan = [
        Step::Move(0, 1),
        Step::Move(1, 0),
        Step::Decode(1, false),
        Step::Move(0, 0),
        Step::Decode(1, true),
        Step::Move(0, 2),
        Step::Move(1, 1),
        Step::Decode(0, false),
        Step::Move(0, 0),
        Step::Decode(0, true),
    ];
    let start = [0, 1].map(|place| State {
        place,
        decodes: true,
    });
    shuffle("swap", &movers, &places, 0, &start, &plan)
}

/// Moves BAR 0 of a function behind a port about in the port's window, and
/// outside of it, while another CPU reads a register at all places.
///
/// # Errors
/// [`GuestError`] when it has no BAR 0, or is behind no port.
pub fn wander(function: Function, register: usize) -> Result<(), GuestError> {
    let port = function.parent()?;
    let port = port.ok_or_else(|| function.none("port above it".to_owned()))?;
    let limit = u64::from(port.word(WINDOW + 2)? & 0xfff0) << 16;
    function.decode(true)?;
    let bar = function.bar(0)?;
    let value = Memory::map(bar.start, 4096)?.read(register)?;
    let mover = Mover {
        function,
        bar,
        value,
    };
    let within = (bar.start & !(MIB - 1)) + MIB - bar.size;
    let places = [
        (bar.start, true),
        (within, true),
        (vacant(limit + MIB, register)?, false),
    ];
    let plan = [
        Step::Move(0, 1),
        Step::Move(0, 2),
        Step::Decode(0, false),
        Step::Move(0, 1),
        Step::Decode(0, true),
        Step::Move(0, 0),
    ];
    let start = [State {
        place: 0,
        decodes: true,
    }];
    shuffle("wander", &[mover], &places, register, &start, &plan)
}

/// The first address from `behind` on, in steps of 1 MiB, where nothing answers.
fn vacant(behind: u64, register: usize) -> Result<u64, GuestError> {
    for address in (behind..behind + 64 * MIB).step_by(MIB as usize) {
        let memory = Memory::map(address, 4096)?;
        if memory.read::<u32>(0)? == NOTHING && memory.read::<u32>(register)? == NOTHING {
            return Ok(address);
        }
    }
    let none = format!("nothing is vacant behind {behind:#x}");
    Err(GuestError::Unexpected(none))
}

/// Whether `found` may be read at a place. Of several that answer there it may
/// be any one's.
fn fits(movers: &[Mover], states: &[State], place: (usize, bool), found: u32) -> bool {
    let mut nobody = true;
    for (mover, state) in movers.iter().zip(states) {
        if state.decodes && state.place == place.0 && place.1 {
            nobody = false;
            if found == mover.value {
                return true;
            }
        }
    }
    nobody && found == NOTHING
}

/// The states in a number, for other threads.
fn pack(states: &[State]) -> u64 {
    let one = |state: &State| (state.place as u64) << 1 | u64::from(state.decodes);
    states
        .iter()
        .rev()
        .fold(0, |sum, state| sum << 8 | one(state))
}

fn unpack(packed: u64, count: usize) -> Vec<State> {
    let one = |number: usize| {
        let byte = packed >> (number * 8) & 0xff;
        State {
            place: (byte >> 1) as usize,
            decodes: byte & 1 != 0,
        }
    };
    (0..count).map(one).collect()
}

/// What the CPU that writes and the one that reads know of each other.
#[derive(Debug, Default)]
struct Shared {
    /// Odd while a write is under way.
    phase: AtomicU64,
    states: AtomicU64,
    done: AtomicBool,
    /// Reads of the other CPU between two writes, and during one.
    stable: AtomicU64,
    during: AtomicU64,
}

fn shuffle(
    name: &str,
    movers: &[Mover],
    places: &[(u64, bool)],
    register: usize,
    start: &[State],
    plan: &[Step],
) -> Result<(), GuestError> {
    let place = |&(address, reachable): &(u64, bool)| {
        let memory = Memory::map(address, 4096)?;
        Ok(Place {
            address,
            reachable,
            memory,
        })
    };
    let places: Vec<_> = places
        .iter()
        .map(place)
        .collect::<Result<_, GuestError>>()?;
    let shared = Shared::default();
    shared.states.store(pack(start), Ordering::SeqCst);
    let scene = Scene {
        movers,
        places: &places,
        register,
        shared: &shared,
    };
    let (written, read) = thread::scope(|scope| {
        let reader = scope.spawn(|| scene.watch());
        let written = scene.act(start, plan);
        shared.done.store(true, Ordering::SeqCst);
        (written, reader.join())
    });
    let read = read.map_err(|_| GuestError::Unexpected("the reader panicked".to_owned()))??;
    let (writes, own) = written?;
    let first = own.first().or(read.first());
    marker(
        name,
        &format!(
            "writes={writes} stable={} during={} wrong-own={} wrong={} first={}",
            shared.stable.into_inner(),
            shared.during.into_inner(),
            own.len(),
            read.len(),
            first.map_or("none", String::as_str),
        ),
    );
    Ok(())
}

#[derive(Debug)]
struct Scene<'a> {
    movers: &'a [Mover],
    places: &'a [Place],
    register: usize,
    shared: &'a Shared,
}

impl Scene<'_> {
    /// Writes, looks, and waits for the other CPU to have looked. Gives the
    /// number of writes and what was wrong.
    fn act(&self, start: &[State], plan: &[Step]) -> Result<(u64, Vec<String>), GuestError> {
        let Shared { phase, stable, .. } = self.shared;
        let mut states = start.to_vec();
        let (mut writes, mut wrong) = (0, Vec::new());
        for step in (0..ROUNDS).flat_map(|_| plan) {
            phase.fetch_add(1, Ordering::SeqCst);
            match *step {
                Step::Move(who, place) => {
                    let Mover { function, bar, .. } = &self.movers[who];
                    function.move_bar(bar.index, self.places[place].address)?;
                    states[who].place = place;
                }
                Step::Decode(who, on) => {
                    self.movers[who].function.decode(on)?;
                    states[who].decodes = on;
                }
            }
            self.shared.states.store(pack(&states), Ordering::SeqCst);
            phase.fetch_add(1, Ordering::SeqCst);
            writes += 1;
            for (number, place) in self.places.iter().enumerate() {
                let found = place.memory.read(self.register)?;
                if !fits(self.movers, &states, (number, place.reachable), found) {
                    wrong.push(format!("{step:?}:place{number}:{found:#x}").replace(' ', ""));
                }
            }
            let (seen, begun) = (stable.load(Ordering::SeqCst), Instant::now());
            while stable.load(Ordering::SeqCst) < seen + READS {
                if begun.elapsed() > PATIENCE {
                    let stuck = format!("nobody reads any more after {step:?}");
                    return Err(GuestError::Unexpected(stuck));
                }
                thread::yield_now();
            }
        }
        Ok((writes, wrong))
    }

    /// Reads all places in turn until the writer is done; gives what was wrong.
    /// During a write any of the movers may answer or nobody, but nothing else.
    fn watch(&self) -> Result<Vec<String>, GuestError> {
        let shared = self.shared;
        let mut wrong = Vec::new();
        while !shared.done.load(Ordering::SeqCst) {
            for (number, place) in self.places.iter().enumerate() {
                let before = shared.phase.load(Ordering::SeqCst);
                let states = shared.states.load(Ordering::SeqCst);
                let found = place.memory.read(self.register)?;
                let after = shared.phase.load(Ordering::SeqCst);
                let right = if before == after && before.is_multiple_of(2) {
                    shared.stable.fetch_add(1, Ordering::SeqCst);
                    let states = unpack(states, self.movers.len());
                    fits(self.movers, &states, (number, place.reachable), found)
                } else {
                    shared.during.fetch_add(1, Ordering::SeqCst);
                    let known = self.movers.iter().any(|mover| mover.value == found);
                    known || found == NOTHING
                };
                if !right && wrong.len() < 1000 {
                    wrong.push(format!("reader:{before}:place{number}:{found:#x}"));
                }
            }
        }
        Ok(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_go_through_a_number() {
        let state = |place, decodes| State { place, decodes };
        let states = [state(2, false), state(1, true), state(0, true)];
        assert_eq!(unpack(pack(&states), 3), states);
    }
}
