use std::io;

use devices::pci::BarIndex;

use super::data::Identity;
use super::from_host::config;
use super::make::{STANDARD, identity};
use crate::assigned::Placement;
use crate::host::{Function, Host};

/// What a guest sees of a device before anything else, known before the device is
/// opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foretold {
    /// Where it belongs ([`Placement::natural`]).
    pub placement: Placement,
    /// What it is.
    pub identity: Identity,
}

impl Foretold {
    /// Foretells `function` by what sysfs shows of it. Nothing without the privilege to
    /// read all of its config space. A device that sleeps is woken.
    ///
    /// # Errors
    /// When config space can't be read for another reason.
    pub fn of(host: &Host, function: &Function) -> io::Result<Option<Self>> {
        let Some((bytes, config)) = config(host, function, STANDARD)? else {
            return Ok(None);
        };
        if bytes.len() < STANDARD {
            return Ok(None);
        }
        let size = |bar: BarIndex| {
            let mut resources = function.resources.iter();
            let resource = resources.find(|resource| resource.index == bar.get());
            resource.map_or(0, |resource| resource.size)
        };
        Ok(Some(Self {
            placement: Placement::natural_by(|at, data| config.read(at, data), size),
            identity: identity(&config),
        }))
    }
}
