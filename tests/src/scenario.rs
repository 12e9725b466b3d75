use crate::host::{Host, HostError};
use crate::lab::Lab;
use crate::machine::Machine;
use crate::progress::say;

/// Boots `machine` and runs `body` in it: the frame of a test.
///
/// A hang (a boot or step beyond its time limit) is tried once more, the loss of
/// the nested host twice, with a new machine, and reported on standard error: on a
/// busy machine the emulation sometimes fails. Nothing else is tried again.
///
/// # Panics
/// When the lab cannot be set up, the machine does not boot, or `body` fails:
/// this is what makes a test fail.
pub fn scenario(machine: &Machine, body: impl Fn(&Host) -> Result<(), HostError>) {
    let lab = Lab::shared().unwrap_or_else(|error| panic!("{error}"));
    let attempt = || {
        let host = lab.boot(machine)?;
        body(&host)?;
        host.shutdown()
    };
    if let Err(error) = retry(machine.name(), attempt) {
        panic!("{error}");
    }
}

/// How often a scenario is tried again when it hangs, and when the nested host
/// dies: QEMU 7.2 loses some of those with two CPUs, see [`Machine::cpus`].
const AFTER_A_HANG: usize = 1;
const AFTER_A_LOSS: usize = 2;

fn retry(name: &str, attempt: impl Fn() -> Result<(), HostError>) -> Result<(), HostError> {
    let (mut hangs, mut losses) = (0, 0);
    loop {
        let error = match attempt() {
            Err(error) => error,
            Ok(()) => return Ok(()),
        };
        let tries_left = match &error {
            HostError::TimeLimit { .. } => {
                hangs += 1;
                hangs <= AFTER_A_HANG
            }
            HostError::Gone { .. } => {
                losses += 1;
                losses <= AFTER_A_LOSS
            }
            _ => false,
        };
        if !tries_left {
            return Err(error);
        }
        say(&format!(
            "RETRY: scenario '{name}' got stuck and is tried once more: {error}"
        ));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::*;

    fn hang() -> HostError {
        HostError::TimeLimit {
            machine: "m".into(),
            title: "step".into(),
            limit: Duration::from_secs(1),
            tails: Box::default(),
        }
    }

    fn loss() -> HostError {
        HostError::Gone {
            machine: "m".into(),
            title: "step".into(),
            reason: "gone".into(),
            tails: Box::default(),
        }
    }

    fn run(mut results: Vec<Result<(), HostError>>) -> (Result<(), HostError>, usize) {
        results.reverse();
        let results = Cell::new(results);
        let tries = Cell::new(0);
        let result = retry("m", || {
            tries.set(tries.get() + 1);
            let mut left = results.take();
            let next = left.pop().unwrap();
            results.set(left);
            next
        });
        (result, tries.get())
    }

    #[test]
    fn only_a_hang_and_a_loss_are_tried_again() {
        assert!(matches!(run(vec![Ok(())]), (Ok(()), 1)));
        assert!(matches!(run(vec![Err(hang()), Ok(())]), (Ok(()), 2)));
        assert!(matches!(
            run(vec![Err(hang()), Err(hang()), Ok(())]),
            (Err(HostError::TimeLimit { .. }), 2)
        ));
        assert!(matches!(
            run(vec![Err(loss()), Err(loss()), Ok(())]),
            (Ok(()), 3)
        ));
        assert!(matches!(
            run(vec![Err(loss()), Err(loss()), Err(loss()), Ok(())]),
            (Err(HostError::Gone { .. }), 3)
        ));
        let failure = HostError::NoDevice {
            machine: "m".into(),
            name: "x".into(),
        };
        assert!(matches!(
            run(vec![Err(failure), Ok(())]),
            (Err(HostError::NoDevice { .. }), 1)
        ));
    }
}
