use std::process::ExitCode;

use clap::Args as ClapArgs;
use passthrough::binding::{Binder, DeviceName, Released};

use crate::event_loop::Signals;

/// What `airlock release` takes.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Each device goes back to the driver, the driver_override, the power setting and the
VFs that it had. One that can't go back now is still held, and can be released again.

Exit status:
  0  every device is back, or there was none
  1  one is not; the reason is on standard error
  2  the command line is wrong")]
pub(super) struct Args {
    /// Host addresses of devices that `airlock bind` has bound
    #[arg(
        required_unless_present_any = ["all", "stale"],
        conflicts_with_all = ["all", "stale"],
        value_name = "BDF"
    )]
    devices: Vec<DeviceName>,
    /// All that is bound, but for what a running airlock holds
    #[arg(long)]
    all: bool,
    /// All that was left behind by an airlock that came to a sudden end
    #[arg(long, conflicts_with = "all")]
    stale: bool,
    /// What became of each device, as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> ExitCode {
    match release(args) {
        Ok(code) => code,
        Err(error) => super::fail(&*error),
    }
}

fn release(args: &Args) -> Result<ExitCode, Box<dyn std::error::Error>> {
    // A signal must not cut a device off between two drivers.
    let _signals = Signals::take_over()?;
    let binder = Binder::system();
    let released = if args.all {
        binder.release_all()?
    } else if args.stale {
        binder.release_stale()?
    } else {
        binder.release(&args.devices)?
    };
    let unreadable = binder.unreadable()?;
    for journal in &unreadable {
        eprintln!("airlock: {journal}");
    }
    for failed in released.iter().filter(|released| !released.is_back()) {
        eprintln!("airlock: {failed}");
    }
    let all_known = unreadable.is_empty() || !(args.all || args.stale);
    let code = if all_known && released.iter().all(Released::is_back) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    };
    if args.json {
        return Ok(super::say(&serde_json::to_string_pretty(&released)?, code));
    }
    let back = released.iter().filter(|released| released.is_back());
    let lines: Vec<_> = back.map(ToString::to_string).collect();
    if lines.is_empty() {
        return Ok(code);
    }
    Ok(super::say(&lines.join("\n"), code))
}

/// Gives back what an airlock has left that came to a sudden end, before
/// anything else is bound. Failing is no reason not to go on.
pub(super) fn stale(binder: &Binder) {
    match binder.release_stale() {
        Ok(released) => {
            for released in released {
                log::warn!("an earlier airlock came to a sudden end: {released}");
            }
        }
        Err(error) => log::warn!("{}", crate::outcome::Chain(&error)),
    }
}
