//! `cargo demo`; see `lab::demo`.

use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    match lab::demo::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = io::stderr().write_all(format!("\ndemo: {error}\n").as_bytes());
            ExitCode::FAILURE
        }
    }
}
