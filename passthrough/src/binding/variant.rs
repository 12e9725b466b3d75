use super::device::DeviceName;
use super::error::BindError;
use super::kernel::{Kernel, same};
use super::plan::Target;
use crate::host::Survey;

/// The drivers that can give `device` to a guest, the best first: the variant
/// that was made for it, for that knows how to migrate it or reset it, then
/// the one for all devices of the bus. `asked` leaves no choice.
pub(super) fn targets(
    kernel: Kernel<'_>,
    survey: &Survey,
    device: &DeviceName,
    asked: Option<&str>,
) -> Result<Vec<Target>, BindError> {
    let mut names = Vec::new();
    match (asked, device.bus()) {
        (Some(driver), _) => names.push(driver.to_owned()),
        (None, "pci") => {
            let function = device.address().and_then(|at| survey.functions.get(&at));
            names.extend(function.map(|function| survey.vfio.driver_for(function)));
            if names.iter().all(|name| !same(name, "vfio_pci")) {
                names.push("vfio-pci".to_owned());
            }
        }
        (None, "platform") => names.push("vfio-platform".to_owned()),
        (None, _) => {
            let device = device.clone();
            return Err(BindError::DriverNeeded { device });
        }
    }
    let targets = names.into_iter().map(|name| {
        Ok(match kernel.driver_named(device.bus(), &name)? {
            Some(driver) => Target {
                driver,
                module: None,
            },
            None => Target {
                module: Some(name.replace('-', "_")),
                driver: name,
            },
        })
    });
    targets.collect()
}
