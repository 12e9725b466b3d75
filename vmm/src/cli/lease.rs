use clap::ValueEnum;
use passthrough::binding::{BindError, BindRequest, Binder, Binding, DeviceNameError, Keep};
use passthrough::binding::{DeviceName, Released};
use passthrough::host::{Host, Survey, SurveyError};
use thiserror::Error;

use super::release;
use crate::config::VmConfig;

/// What `airlock run --bind` binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum BindScope {
    /// The devices of the VM.
    Device,
    /// And every other endpoint of their groups.
    Group,
}

/// Why devices could not be bound for a VM, or not given back after it.
#[derive(Debug, Error)]
pub(super) enum LeaseError {
    /// A device's name.
    #[error(transparent)]
    Name(#[from] DeviceNameError),
    /// The host could not be surveyed.
    #[error("cannot survey the host's devices")]
    Survey(#[from] SurveyError),
    /// They could not be bound; the host is as it was.
    #[error("cannot bind the devices for the VM")]
    Bind(#[source] Box<BindError>),
    /// Giving back could not be begun.
    #[error("cannot give the devices back; `airlock release --stale` tries again")]
    Release(#[source] Box<BindError>),
    /// Some are not back.
    #[error("{}; `airlock release --stale` tries again", list(.0))]
    NotBack(Vec<Released>),
}

fn list(released: &[Released]) -> String {
    let texts: Vec<_> = released.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// Devices that are bound for the life of a VM. When the process unwinds they
/// are given back too; when it is killed, by the next airlock.
#[derive(Debug)]
pub(super) struct Lease(Binding);

impl Lease {
    /// Binds the devices of `config`.
    pub(super) fn take(config: &VmConfig, scope: BindScope) -> Result<Self, LeaseError> {
        let names = |list: &[String]| -> Result<Vec<DeviceName>, DeviceNameError> {
            list.iter().map(|name| name.trim().parse()).collect()
        };
        let request = BindRequest {
            devices: names(&config.addresses())?,
            whole_group: scope == BindScope::Group,
            driver: None,
            disable_vfs: false,
            force: names(&config.consent.force)?,
        };
        let binder = Binder::system();
        release::stale(&binder);
        let survey = Survey::read(&Host::system())?;
        let refused = |error| LeaseError::Bind(Box::new(error));
        let plan = binder.plan(&survey, &request).map_err(refused)?;
        let binding = binder.bind(&plan, Keep::WhileHeld).map_err(refused)?;
        for note in plan.warnings.iter().chain(binding.notes()) {
            log::warn!("{note}");
        }
        for (device, driver) in binding.drivers() {
            log::info!("{device} is on {driver} for the life of the VM");
        }
        Ok(Self(binding))
    }

    /// Gives them back.
    pub(super) fn end(self) -> Result<(), LeaseError> {
        let unbegun = |error| LeaseError::Release(Box::new(error));
        let released = self.0.release().map_err(unbegun)?;
        for device in &released {
            log::info!("{device}");
        }
        let failed: Vec<_> = released.into_iter().filter(|d| !d.is_back()).collect();
        if failed.is_empty() {
            Ok(())
        } else {
            Err(LeaseError::NotBack(failed))
        }
    }
}
