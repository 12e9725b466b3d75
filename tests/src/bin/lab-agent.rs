//! Runs in the nested host and obeys the lab; see `lab::agent`.

use std::path::Path;
use std::process::ExitCode;

use lab::agent::{open_port, serve};

fn main() -> ExitCode {
    let served = open_port(Path::new("/sys"), Path::new("/dev")).and_then(|port| {
        let events = port
            .try_clone()
            .map_err(|source| lab::agent::AgentError::Port {
                path: lab::agent::protocol::PORT_NAME.into(),
                source,
            })?;
        serve(port, events)
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-agent: {error}");
            ExitCode::FAILURE
        }
    }
}
