use std::process::ExitCode;

use clap::Args as ClapArgs;
use passthrough::claim::claim;
use passthrough::host::{Host, Survey};
use passthrough::plan::Plan;

use super::consent::ConsentArgs;
use super::style::Style;
use crate::config::{IommuChoice, MemorySize};
use crate::request::{addresses, request};

/// What `airlock check` takes.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Exit status:
  0  go: every device can be handed over
  1  no-go: the report says why and what to do; or the host can't be surveyed
  2  the command line is wrong")]
pub(super) struct Args {
    /// Host addresses, as `lspci -D` prints them
    #[arg(required = true, value_name = "BDF")]
    devices: Vec<String>,
    /// Also check that a guest with this much memory can be mapped
    #[arg(long, value_name = "SIZE")]
    memory: Option<MemorySize>,
    /// Also take the devices from the kernel for a moment, and say whether it
    /// agrees; they are not reset
    #[arg(long)]
    claim: bool,
    /// By which interface the devices would be taken, as in `airlock run`
    #[arg(long, value_name = "auto|iommufd|type1", default_value = "auto")]
    iommu: IommuChoice,
    /// The plan as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    consent: ConsentArgs,
}

/// 0 when every device can be handed over, 1 when not.
pub(super) fn run(args: &Args) -> ExitCode {
    let survey = match Survey::read(&Host::system()) {
        Ok(survey) => survey,
        Err(error) => return super::fail(&error),
    };
    let consent = args.consent.clone().into();
    let mut request = request(&args.devices, args.memory, &consent);
    request.backend = args.iommu.0;
    let mut plan = Plan::make(&survey, &request);
    if args.claim {
        let proof = claim(&survey, &plan, &addresses(args.memory));
        plan.items.extend(proof);
    }
    let text = if args.json {
        match serde_json::to_string_pretty(&plan) {
            Ok(text) => text,
            Err(error) => return super::fail(&error),
        }
    } else {
        Style::of_stdout().report(&plan.to_string())
    };
    let code = if plan.is_go() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    };
    super::say(&text, code)
}
