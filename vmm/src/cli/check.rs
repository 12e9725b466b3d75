use std::process::ExitCode;

use clap::Args as ClapArgs;
use passthrough::claim::claim;
use passthrough::host::{Host, Survey};
use passthrough::iommu::IovaRange;
use passthrough::plan::{Plan, Request};

use super::style::Style;
use crate::config::MemorySize;
use crate::memory::GuestLayout;

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
    /// The plan as JSON
    #[arg(long)]
    json: bool,
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

/// Where `memory` lies in the guest. The CPU's reach is another question.
fn addresses(memory: Option<MemorySize>) -> Vec<IovaRange> {
    const EVERY_BIT: u8 = 64;
    let layout = memory.and_then(|size| GuestLayout::new(size.bytes(), EVERY_BIT, None).ok());
    let ram = layout.map(|layout| layout.ram).unwrap_or_default();
    let ranges = ram.iter().map(|range| IovaRange {
        start: range.start,
        last: range.end() - 1,
    });
    ranges.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_leaves_out_the_hole_below_4_gib() {
        assert_eq!(addresses(None), []);
        let ranges = addresses(Some("4G".parse().unwrap()));
        let expected = [(0, 0xbfff_ffff), (0x1_0000_0000, 0x1_3fff_ffff)];
        assert_eq!(
            ranges,
            expected.map(|(start, last)| IovaRange { start, last })
        );
    }
}
