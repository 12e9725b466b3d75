//! `airlock inspect`: a device, and what a guest would see of it.

mod dump;
mod report;

use std::process::ExitCode;

use clap::Args as ClapArgs;
use devices::pci::PciAddress;
use passthrough::host::{Host, Survey, SurveyError};
use passthrough::inspect::{InspectError, Inspection};
use passthrough::plan::{Plan, Request};
use passthrough::{OpenError, OpenRequest};
use thiserror::Error;

use super::names::{Names, class_name};
use super::style::{Style, Tone};

/// What `airlock inspect` takes.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
The device may be in use, by a driver of the host or by a guest: only sysfs is
asked. Without root it gives the first 64 bytes of config space and no more. A
device that sleeps is woken to be read.

The guest's view is what a guest finds before its first write. Where the device
will stand in the guest's topology is taken from the device, as `run` does it.

Exit status:
  0  the device is shown, also when no guest can have it
  1  it can't be read; the reason is on standard error
  2  the command line is wrong")]
pub(super) struct Args {
    /// Host address, as `lspci -D` prints it
    #[arg(value_name = "BDF")]
    device: PciAddress,
    /// Everything that is known, as JSON: also the rule of each register
    #[arg(long, conflicts_with = "raw")]
    json: bool,
    /// Config space byte by byte, the host's and the guest's side by side
    #[arg(long)]
    raw: bool,
    /// Ask VFIO, as `run` would. THIS RESETS THE DEVICE, which must be on a
    /// VFIO driver and not be in use
    #[arg(long)]
    open: bool,
}

/// Why a device can't be inspected.
#[derive(Debug, Error)]
enum Failure {
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error("cannot survey the host's devices")]
    Survey(#[from] SurveyError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("cannot write the inspection as JSON")]
    Json(#[from] serde_json::Error),
}

/// 0 when the device could be read, 1 when not.
pub(super) fn run(args: &Args) -> ExitCode {
    let text = inspect(args).and_then(|inspection| text(args, &inspection));
    match text {
        Ok(text) => super::say(&text, ExitCode::SUCCESS),
        Err(failure) => super::fail(&failure),
    }
}

fn inspect(args: &Args) -> Result<Inspection, Failure> {
    if !args.open {
        return Ok(Inspection::of_host(&Host::system(), args.device, None)?);
    }
    let survey = Survey::read(&Host::system())?;
    let request = Request {
        devices: vec![args.device.to_string()],
        ..Request::default()
    };
    let backend = Plan::make(&survey, &request).backend;
    let opened = passthrough::open(OpenRequest::new(&[args.device], backend))?;
    // As many as were asked for, or an error.
    let backend = opened.devices.first().ok_or(OpenError::NoDevices)?;
    Ok(Inspection::of_backend(args.device, &**backend, None)?)
}

fn text(args: &Args, inspection: &Inspection) -> Result<String, Failure> {
    let style = Style::of_stdout();
    if args.json {
        return Ok(serde_json::to_string_pretty(inspection)?);
    }
    if args.raw {
        return Ok(dump::write(inspection, style));
    }
    let ids = (inspection.identity.vendor, inspection.identity.device);
    let names = Names::look_up(&[ids].into());
    Ok(report::write(inspection, &names, style))
}

#[cfg(test)]
mod sample;
