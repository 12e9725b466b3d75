use clap::Args as ClapArgs;

use crate::config::Consent;

/// What `airlock check` and `airlock run` take alike.
#[derive(Clone, Debug, ClapArgs)]
pub(super) struct ConsentArgs {
    /// Accept a host where a device can forge interrupts (no remapping)
    #[arg(long)]
    allow_unsafe_interrupts: bool,
    /// Ask for devices that no IOMMU confines; the report says why not
    #[arg(long, hide = true)]
    allow_noiommu: bool,
    /// Take this device though the host still needs it; may be given several times
    #[arg(long, value_name = "BDF")]
    force: Vec<String>,
}

impl From<ConsentArgs> for Consent {
    fn from(args: ConsentArgs) -> Self {
        Self {
            unsafe_interrupts: args.allow_unsafe_interrupts,
            noiommu: args.allow_noiommu,
            force: args.force,
        }
    }
}
