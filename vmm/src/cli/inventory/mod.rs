//! The host's PCI functions as a user reads them.

mod json;
mod table;
mod tree;

use std::collections::BTreeSet;

use passthrough::host::{Function, GroupId, Survey};
use passthrough::viability::is_vfio_driver;

use super::names::{Names, class_name};
use super::style::{Style, Tone};

/// The functions of a survey with their names.
#[derive(Debug)]
pub(super) struct Inventory<'a> {
    survey: &'a Survey,
    names: Names,
}

impl<'a> Inventory<'a> {
    /// With the names that the system's list has.
    pub(super) fn new(survey: &'a Survey) -> Self {
        let ids = survey
            .functions
            .values()
            .filter_map(|function| function.ids);
        let wanted: BTreeSet<_> = ids.map(|ids| (ids.vendor, ids.device)).collect();
        Self {
            survey,
            names: Names::look_up(&wanted),
        }
    }

    /// A line for each function.
    pub(super) fn table(&self, style: Style) -> String {
        table::draw(self, style)
    }

    /// Functions below their bridges, those of one group joined.
    pub(super) fn tree(&self, style: Style) -> String {
        tree::draw(self, style)
    }

    /// Everything that is known of them.
    ///
    /// # Errors
    /// None that is known: the data has nothing that JSON can't hold.
    pub(super) fn json(&self) -> serde_json::Result<String> {
        json::write(self)
    }

    fn class(&self, function: &Function) -> &'static str {
        function.ids.map_or("unknown", |ids| class_name(ids.class))
    }

    /// Maker and name, if the list has at least the maker.
    fn name(&self, function: &Function) -> Option<String> {
        let ids = function.ids?;
        self.names.full(ids.vendor, ids.device)
    }

    /// How many devices a group has.
    fn group_size(&self, group: GroupId) -> usize {
        let group = self.survey.groups.get(&group);
        group.map_or(0, |group| group.members.len())
    }

    /// What a function's group is to the reader: its own, shared, none.
    fn group_tone(&self, function: &Function) -> Tone {
        match function.group {
            None => Tone::Bad,
            Some(group) if self.group_size(group) > 1 => Tone::Caution,
            Some(_) => Tone::Good,
        }
    }
}

/// Vendor and device in hexadecimal, as `lspci -n` has them.
fn id(function: &Function) -> String {
    match function.ids {
        Some(ids) => format!("{:04x}:{:04x}", ids.vendor, ids.device),
        None => "-".to_owned(),
    }
}

fn driver(function: &Function) -> &str {
    function.driver.as_deref().unwrap_or("-")
}

fn driver_tone(function: &Function) -> Option<Tone> {
    let driver = function.driver.as_deref()?;
    is_vfio_driver(driver, function.vfio_device.as_deref()).then_some(Tone::Good)
}

/// What the PCIe link runs at now, or can do where that is not known.
fn link(function: &Function) -> String {
    let Some(link) = function.link else {
        return "-".to_owned();
    };
    let rate = link.current.unwrap_or(link.max);
    if rate.speed == 0 || rate.width == 0 {
        return "-".to_owned();
    }
    let (whole, tenth) = (rate.speed / 1000, rate.speed % 1000 / 100);
    let speed = match tenth {
        0 => whole.to_string(),
        _ => format!("{whole}.{tenth}"),
    };
    format!("{speed} GT/s x{}", rate.width)
}

#[cfg(test)]
mod sample;
