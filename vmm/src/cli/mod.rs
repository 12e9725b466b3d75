//! The command line: one file a command.

mod bind;
mod bindings;
mod check;
mod columns;
mod consent;
mod devices;
mod given;
mod inspect;
mod inventory;
mod lease;
mod names;
mod release;
mod run;
mod style;

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Gives PCI devices to Linux/KVM guests, safely.
#[derive(Debug, Parser)]
#[command(name = "airlock", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What is logged to standard error: error, warn, info or debug
    #[arg(long, global = true, value_name = "LEVEL", default_value = "warn")]
    log: log::LevelFilter,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the host's PCI devices, and what is isolated from what
    Devices(devices::Args),
    /// Say whether devices can be handed to a guest, and if not, why
    Check(check::Args),
    /// Take devices from the host's drivers for VFIO, so that each can go back
    Bind(bind::Args),
    /// Give devices back to the host's drivers
    Release(release::Args),
    /// List what is bound, by whom, and what it goes back to
    Bindings(bindings::Args),
    /// Show a device's config space, and what a guest would see of it
    Inspect(inspect::Args),
    /// Boot a guest
    Run(run::Args),
}

/// Runs the command that the user typed.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let start = std::time::Instant::now();
    env_logger::Builder::new()
        .filter_level(cli.log)
        .format(move |out, record| {
            let since = start.elapsed();
            let level = record.level().as_str().to_lowercase();
            // The guest's console may have left the cursor mid-line, in raw mode.
            writeln!(
                out,
                "airlock [{:>4}.{:06}] {level}: {}",
                since.as_secs(),
                since.subsec_micros(),
                record.args()
            )
        })
        .init();
    match cli.command {
        Command::Devices(args) => devices::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Bind(args) => bind::run(&args),
        Command::Release(args) => release::run(&args),
        Command::Bindings(args) => bindings::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Run(args) => run::run(args),
    }
}

/// Tells the user why the command failed.
fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("airlock: {}", crate::outcome::Chain(error));
    ExitCode::FAILURE
}

/// Writes `text` and a line end to standard output. A reader that has seen
/// enough is no failure.
fn say(text: &str, code: ExitCode) -> ExitCode {
    match writeln!(io::stdout(), "{text}") {
        Ok(()) => code,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => code,
        Err(error) => {
            eprintln!("airlock: cannot write to standard output: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let parse = |words: &str| Cli::try_parse_from(words.split(' '));
        assert!(parse("airlock inspect 01:00.0 --open --raw").is_ok());
        assert!(parse("airlock inspect 01:00.0 --json --raw").is_err());
        assert!(parse("airlock inspect 01:00.8").is_err());
        assert!(parse("airlock run --kernel k --device 01:00.0,rom=off").is_ok());
        let error = parse("airlock run --kernel k --device 01:00.0,rom").unwrap_err();
        assert!(
            error.to_string().contains("after a comma rom=FILE"),
            "{error}"
        );
        assert!(parse("airlock run --kernel k --iommu type1 --fd iommufd=3").is_ok());
        assert!(parse("airlock run --kernel k --iommu type2").is_err());
        assert!(parse("airlock run --kernel k --fd iommu=3").is_err());
    }
}
