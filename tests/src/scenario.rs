use crate::host::{Host, HostError};
use crate::lab::Lab;
use crate::machine::Machine;
use crate::progress::say;

/// Boots `machine` and runs `body` in it: the frame of a test.
///
/// A hang (a boot or step beyond its time limit) and the loss of the nested host
/// are tried once more, with a new machine, and reported on standard error: on a
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
    if let Err(error) = retry_once(machine.name(), attempt) {
        panic!("{error}");
    }
}

fn retry_once(name: &str, attempt: impl Fn() -> Result<(), HostError>) -> Result<(), HostError> {
    match attempt() {
        Err(error @ (HostError::TimeLimit { .. } | HostError::Gone { .. })) => {
            say(&format!(
                "RETRY: scenario '{name}' got stuck and is tried once more: {error}"
            ));
            attempt()
        }
        result => result,
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

    fn run(mut results: Vec<Result<(), HostError>>) -> (Result<(), HostError>, usize) {
        results.reverse();
        let results = Cell::new(results);
        let tries = Cell::new(0);
        let result = retry_once("m", || {
            tries.set(tries.get() + 1);
            let mut left = results.take();
            let next = left.pop().unwrap();
            results.set(left);
            next
        });
        (result, tries.get())
    }

    #[test]
    fn only_a_hang_is_tried_again_and_only_once() {
        assert!(matches!(run(vec![Ok(())]), (Ok(()), 1)));
        assert!(matches!(run(vec![Err(hang()), Ok(())]), (Ok(()), 2)));
        assert!(matches!(
            run(vec![Err(hang()), Err(hang()), Ok(())]),
            (Err(HostError::TimeLimit { .. }), 2)
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
