use std::process::ExitCode;

use clap::Args as ClapArgs;
use passthrough::host::{Host, Survey};

use super::inventory::Inventory;
use super::style::Style;

/// What `airlock devices` takes.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
GROUP is the IOMMU group, with the number of its devices when there are more than
one: they can reach each other, and go to one guest together or not at all.

Exit status:
  0  the devices are listed
  1  the host can't be surveyed; the reason is on standard error
  2  the command line is wrong")]
pub(super) struct Args {
    /// Draw bridges, the devices behind them, and what shares a group
    #[arg(long, conflicts_with = "json")]
    tree: bool,
    /// Everything that is known, as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let survey = match Survey::read(&Host::system()) {
        Ok(survey) => survey,
        Err(error) => return super::fail(&error),
    };
    let inventory = Inventory::new(&survey);
    let text = if args.json {
        match inventory.json() {
            Ok(text) => text,
            Err(error) => return super::fail(&error),
        }
    } else if args.tree {
        inventory.tree(Style::of_stdout())
    } else {
        inventory.table(Style::of_stdout())
    };
    super::say(&text, ExitCode::SUCCESS)
}
