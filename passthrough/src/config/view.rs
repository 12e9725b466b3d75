use std::ops::Range;

use devices::pci::{BarInfo, CONFIG_SPACE_SIZE, ConfigSpace, Register};

use super::msi::MsiPlace;
use super::msix::MsixCapability;
use super::rule::{Rule, Treatment};
use super::{ConfigError, extended, header, standard};
use crate::vfio::{DeviceBackend, DeviceError};

/// VFIO's region of config space.
const REGION: u32 = 7;

/// Config space as the guest sees it.
///
/// ```text
///  guest  <-- space: what is answered here: constants, and what is the guest's
///         <-- device, bits it may write: what goes to the device each time
/// ```
///
/// Purely the bytes: what a write means is seen to by the device that owns
/// the view.
#[derive(Debug)]
pub(crate) struct ConfigView {
    space: ConfigSpace,
    /// `space` after reset.
    initial: ConfigSpace,
    /// Bytes that are read from the device.
    device: Box<[bool; CONFIG_SPACE_SIZE]>,
    /// Bits whose writes reach the device.
    writable: Box<[u8; CONFIG_SPACE_SIZE]>,
    /// The power management capability, for its control register.
    pub(crate) power: Option<u16>,
    /// The PCI Express capability, and whether it offers a reset.
    pub(crate) express: Option<(u16, bool)>,
    /// The MSI capability.
    pub(crate) msi: Option<MsiPlace>,
    /// The MSI-X capability.
    pub(crate) msix: Option<MsixCapability>,
}

/// Which kinds of a device's interrupts can be delivered to the guest.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deliverable {
    pub(crate) pin: bool,
    pub(crate) msi: bool,
    pub(crate) msix: bool,
}

/// Reads all of a device's config space.
///
/// # Errors
/// [`DeviceError::Region`].
pub(crate) fn snapshot(backend: &dyn DeviceBackend) -> Result<ConfigSpace, DeviceError> {
    let size = backend.region(REGION).map_or(0, |region| region.size);
    let mut bytes = [0; CONFIG_SPACE_SIZE];
    let size = usize::try_from(size).unwrap_or(CONFIG_SPACE_SIZE);
    let bytes = &mut bytes[..size.min(CONFIG_SPACE_SIZE)];
    backend.region_read(REGION, 0, bytes)?;
    let mut snapshot = ConfigSpace::new();
    snapshot.set(0, bytes);
    Ok(snapshot)
}

impl ConfigView {
    /// The view of a device whose config space was `snapshot` at the start.
    ///
    /// # Errors
    /// When the device can't be shown to a guest.
    pub(crate) fn new(
        snapshot: &ConfigSpace,
        bars: &[BarInfo],
        can_reset: bool,
        deliverable: Deliverable,
    ) -> Result<Self, ConfigError> {
        let mut view = Self {
            space: ConfigSpace::new(),
            initial: ConfigSpace::new(),
            device: Box::new([false; CONFIG_SPACE_SIZE]),
            writable: Box::new([0; CONFIG_SPACE_SIZE]),
            power: None,
            express: None,
            msi: None,
            msix: None,
        };
        view.apply(
            snapshot,
            0..0x40,
            &header::rules(snapshot, bars, deliverable.pin)?,
        );
        for bar in bars {
            bar.define(&mut view.space);
        }
        let standard = standard::build(snapshot, bars, can_reset, deliverable)?;
        for (place, rules) in &standard.rules {
            view.apply(snapshot, place.clone(), rules);
        }
        if standard.has_list() {
            view.space.define(Register::constant(
                standard::STATUS,
                2,
                u32::from(view.space.u16(standard::STATUS)) | standard::STATUS_LIST,
            ));
        }
        // Conventional PCI has no extended space.
        if standard.express.is_some() {
            for (place, rules) in extended::build(snapshot) {
                view.apply(snapshot, place, &rules);
            }
        }
        view.power = standard.power;
        view.express = standard.express;
        view.msi = standard.msi;
        view.msix = standard.msix;
        view.initial = view.space.clone();
        Ok(view)
    }

    fn apply(&mut self, snapshot: &ConfigSpace, place: Range<u16>, rules: &[Rule]) {
        for rule in rules {
            let Some(start) = place.start.checked_add(rule.offset) else {
                continue;
            };
            let end = start.saturating_add(rule.size).min(place.end);
            log::trace!(
                "{start:#05x}-{end:#05x}: {:x?}: {}",
                rule.treatment,
                rule.what
            );
            for at in start..end {
                let shift = (at - start) % 4 * 8;
                self.apply_byte(snapshot, at, rule.treatment, shift);
            }
        }
    }

    fn apply_byte(&mut self, snapshot: &ConfigSpace, at: u16, treatment: Treatment, shift: u16) {
        let byte = |word: u32| (word >> shift) as u8;
        let (value, guest, device) = match treatment {
            Treatment::Constant(keep) => (snapshot.u8(at) & byte(keep), 0, None),
            Treatment::Value(value) => (byte(value), 0, None),
            Treatment::Guest { value, writable } => (byte(value), byte(writable), None),
            Treatment::Device { writable } => (0, 0, Some(byte(writable))),
        };
        self.space
            .define(Register::writable(at, 1, value.into(), guest.into()));
        if let Some(flag) = self.device.get_mut(usize::from(at)) {
            *flag = device.is_some();
            self.writable[usize::from(at)] = device.unwrap_or(0);
        }
    }

    /// The guest reads. At most one call to the device, none for constants;
    /// what it does not answer reads as ones.
    pub(crate) fn read(&self, backend: &dyn DeviceBackend, offset: u16, data: &mut [u8]) {
        self.space.read(offset, data);
        let from_device = |at: &usize| self.device.get(usize::from(offset) + at) == Some(&true);
        let Some(first) = (0..data.len()).find(from_device) else {
            return;
        };
        let last = (0..data.len()).rfind(from_device).unwrap_or(first);
        let mut bytes = vec![0xff; last - first + 1];
        let at = u64::from(offset) + first as u64;
        if let Err(error) = backend.region_read(REGION, at, &mut bytes) {
            log::debug!("{error}");
            bytes.fill(0xff);
        }
        for index in (first..=last).filter(from_device) {
            data[index] = bytes[index - first];
        }
    }

    /// The guest writes.
    pub(crate) fn write(&mut self, backend: &dyn DeviceBackend, offset: u16, data: &[u8]) {
        self.space.write(offset, data);
        let mut index = 0;
        while index < data.len() {
            let run = data[index..]
                .iter()
                .zip(usize::from(offset) + index..CONFIG_SPACE_SIZE)
                .take_while(|(_, at)| self.writable[*at] != 0)
                .count();
            if run > 0 {
                let at = offset.saturating_add(index as u16);
                if let Err(error) = self.write_device(backend, at, &data[index..index + run]) {
                    log::debug!("{error}");
                }
            }
            index += run.max(1);
        }
    }

    /// Writes bytes to the device, of which some bits may have to stay.
    fn write_device(
        &self,
        backend: &dyn DeviceBackend,
        offset: u16,
        data: &[u8],
    ) -> Result<(), DeviceError> {
        let start = usize::from(offset);
        let masks = &self.writable[start..start + data.len()];
        if masks.iter().all(|mask| *mask == 0xff) {
            return backend.region_write(REGION, offset.into(), data);
        }
        let mut merged = vec![0; data.len()];
        backend.region_read(REGION, offset.into(), &mut merged)?;
        for ((byte, new), mask) in merged.iter_mut().zip(data).zip(masks) {
            *byte = (*byte & !mask) | (new & mask);
        }
        backend.region_write(REGION, offset.into(), &merged)
    }

    /// Back to the state after reset.
    pub(crate) fn reset(&mut self) {
        self.space = self.initial.clone();
    }

    /// The registers that are answered here.
    pub(crate) fn space(&self) -> &ConfigSpace {
        &self.space
    }

    /// As [`Self::space`], to change what the guest reads.
    pub(crate) fn space_mut(&mut self) -> &mut ConfigSpace {
        &mut self.space
    }
}

#[cfg(test)]
#[path = "view_test.rs"]
mod tests;
