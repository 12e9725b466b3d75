use std::process::ExitCode;

use clap::Args as ClapArgs;
use passthrough::binding::{BindPlan, BindRequest, Binder, Binding, DeviceName, Keep};
use passthrough::host::{Host, Survey};
use serde::Serialize;

use super::release;
use crate::event_loop::Signals;
use crate::outcome::Outcome;

/// What `airlock bind` takes.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
All named devices are bound, or none: what was begun is taken back when one fails.
`airlock release` gives them back. What they go back to is kept in /run/airlock.

Exit status:
  0      every device is on its VFIO driver
  1      none was touched, or all went back; the reason is on standard error
  2      the command line is wrong
  128+N  signal N came; all went back")]
pub(super) struct Args {
    /// Host addresses, as `lspci -D` prints them, or BUS/NAME for other buses
    #[arg(required = true, value_name = "BDF")]
    devices: Vec<DeviceName>,
    /// And every other endpoint of their IOMMU groups
    #[arg(long)]
    group: bool,
    /// The driver to use, instead of the VFIO driver that fits best
    #[arg(long, value_name = "NAME")]
    driver: Option<String>,
    /// Disable a PF's VFs first; they are enabled again when it goes back
    #[arg(long)]
    disable_vfs: bool,
    /// Take this device though the host still needs it; may be given several times
    #[arg(long, value_name = "BDF")]
    force: Vec<DeviceName>,
    /// Only print each write to sysfs, in order
    #[arg(long)]
    dry_run: bool,
    /// What was done (or would be), as JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` says once it is done.
#[derive(Serialize)]
struct Done<'a> {
    bound: &'a [DeviceName],
    already_right: &'a [passthrough::binding::AlreadyRight],
    notes: &'a [String],
}

pub(super) fn run(args: &Args) -> ExitCode {
    match bind(args) {
        Ok(code) => code,
        Err(error) => super::fail(&*error),
    }
}

fn bind(args: &Args) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let request = BindRequest {
        devices: args.devices.clone(),
        whole_group: args.group,
        driver: args.driver.clone(),
        disable_vfs: args.disable_vfs,
        force: args.force.clone(),
    };
    let binder = Binder::system();
    if args.dry_run {
        let plan = binder.plan(&Survey::read(&Host::system())?, &request)?;
        let text = if args.json {
            serde_json::to_string_pretty(&plan)?
        } else {
            plan.to_string().trim_end().to_owned()
        };
        return Ok(super::say(&text, ExitCode::SUCCESS));
    }
    let signals = Signals::take_over()?;
    release::stale(&binder);
    let plan = binder.plan(&Survey::read(&Host::system())?, &request)?;
    let binding = binder.bind(&plan, Keep::UntilReleased)?;
    if let Some(signal) = signals.arrived() {
        for released in binding.release()? {
            eprintln!("airlock: {released}");
        }
        let signal = Some(signal);
        return Ok(ExitCode::from(Outcome::Stopped { signal }.exit_code()));
    }
    let text = if args.json {
        serde_json::to_string_pretty(&Done {
            bound: binding.devices(),
            already_right: binding.right(),
            notes: binding.notes(),
        })?
    } else {
        told(&plan, &binding)
    };
    Ok(super::say(&text, ExitCode::SUCCESS))
}

/// What was done, for reading.
fn told(plan: &BindPlan, binding: &Binding) -> String {
    let right = binding.right().iter();
    let right = right.map(|right| format!("{} is on {} already", right.device, right.driver));
    let drivers = binding.drivers();
    let bound = drivers.map(|(device, driver)| format!("{device} is on {driver} now"));
    let warnings = plan.warnings.iter().chain(binding.notes());
    let warnings = warnings.map(|warning| format!("! {warning}"));
    let lines: Vec<_> = right.chain(bound).chain(warnings).collect();
    lines.join("\n")
}
