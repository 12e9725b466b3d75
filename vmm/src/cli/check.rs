use std::process::ExitCode;

use clap::Args as ClapArgs;
use passthrough::host::{Host, Survey};
use passthrough::plan::{Plan, Request};

use crate::config::MemorySize;

/// What `airlock check` takes.
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Host addresses, as `lspci -D` prints them
    #[arg(required = true, value_name = "BDF")]
    devices: Vec<String>,
    /// Also check that a guest with this much memory can be mapped
    #[arg(long, value_name = "SIZE")]
    memory: Option<MemorySize>,
    /// Accept a host where a device can forge interrupts (no remapping)
    #[arg(long)]
    allow_unsafe_interrupts: bool,
}

/// 0 when every device can be handed over, 1 when not.
pub(super) fn run(args: &Args) -> ExitCode {
    let survey = match Survey::read(&Host::system()) {
        Ok(survey) => survey,
        Err(error) => return super::fail(&error),
    };
    let request = Request {
        devices: args.devices.clone(),
        memory_bytes: args.memory.map(MemorySize::bytes),
        allow_unsafe_interrupts: args.allow_unsafe_interrupts,
    };
    let plan = Plan::make(&survey, &request);
    println!("{plan}");
    if plan.is_go() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
