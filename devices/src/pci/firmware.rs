//! What firmware does before the guest runs, for a guest that has none.

use thiserror::Error;

use super::address::PciAddress;
use super::bar::{BarInfo, BarKind};
use super::placement::{Layout, Placement, PortWindows};
use super::root_complex::RootComplex;
use super::root_port::register as r;
use super::window::Window;

/// Why the topology could not be programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProgramError {
    /// The function did not take an address.
    #[error("cannot put {} of {function} at {address:#x}: its register reads {read:#x}", bar.index)]
    BarNotTaken {
        /// Whose BAR it is.
        function: PciAddress,
        /// The BAR.
        bar: BarInfo,
        /// The address that was written.
        address: u64,
        /// What the register holds instead.
        read: u64,
    },
    /// The port did not take a bus number or a window.
    #[error(
        "cannot program the port {port}: its register {register:#04x} reads {read:#x} and not \
         {written:#x}"
    )]
    PortNotTaken {
        /// The port.
        port: PciAddress,
        /// The offset in its config space.
        register: u16,
        /// What was written.
        written: u32,
        /// What the register holds instead.
        read: u32,
    },
}

/// Programs bus numbers and windows into the ports, and addresses into the
/// BARs. Decoding is turned off and left off everywhere: the guest's kernel
/// turns it on. A BAR that the layout leaves out keeps address zero.
///
/// # Errors
/// See [`ProgramError`].
pub fn program(root: &RootComplex, layout: &Layout) -> Result<(), ProgramError> {
    for windows in &layout.ports {
        decoding_off(root, windows.port);
        program_port(root, windows)?;
    }
    for (function, _) in root.functions() {
        decoding_off(root, function);
    }
    layout
        .bars
        .iter()
        .try_for_each(|placement| program_bar(root, placement))
}

/// The command register's bits that decode ports and memory
/// (PCIe 6.0 §7.5.1.1.3).
const DECODE: u8 = 3;

fn decoding_off(root: &RootComplex, function: PciAddress) {
    let mut command = [0; 2];
    root.config_read(function, r::COMMAND, &mut command);
    let [low, high] = command;
    if low & DECODE != 0 {
        root.config_write(function, r::COMMAND, &[low & !DECODE, high]);
    }
}

fn program_port(root: &RootComplex, windows: &PortWindows) -> Result<(), ProgramError> {
    let bus = u32::from(windows.bus);
    let (io_base, io_limit) = bounds(windows.io, 0xf000);
    let (base, limit) = bounds(windows.memory, 0xfff0_0000);
    let (wide_base, wide_limit) = bounds(windows.prefetchable, 0xfff0_0000);
    let memory = |base: u64, limit: u64| (base >> 16) as u32 & 0xfff0 | limit as u32 & 0xfff0_0000;
    let upper = |address: u64| (address >> 32) as u32;
    for (register, value, mask) in [
        (r::PRIMARY_BUS, bus << 8 | bus << 16, 0x00ff_ffff),
        (
            r::IO,
            (io_base >> 8) as u32 & 0xf0 | io_limit as u32 & 0xf000,
            0xf0f0,
        ),
        (r::MEMORY, memory(base, limit), 0xfff0_fff0),
        (r::PREFETCHABLE, memory(wide_base, wide_limit), 0xfff0_fff0),
        (r::PREFETCHABLE_BASE_UPPER, upper(wide_base), u32::MAX),
        (r::PREFETCHABLE_LIMIT_UPPER, upper(wide_limit), u32::MAX),
    ] {
        root.config_write(windows.port, register, &value.to_le_bytes());
        let read = read(root, windows.port, register) & mask;
        if read != value {
            return Err(ProgramError::PortNotTaken {
                port: windows.port,
                register,
                written: value,
                read,
            });
        }
    }
    Ok(())
}

/// The first and the last address of a window; for one that is closed, a base
/// above the limit.
fn bounds(window: Option<Window>, closed: u64) -> (u64, u64) {
    let window = window.and_then(|window| Some((window.base, window.last()?)));
    window.unwrap_or((closed, 0))
}

fn program_bar(root: &RootComplex, placement: &Placement) -> Result<(), ProgramError> {
    let Placement {
        function,
        bar,
        address,
    } = *placement;
    let bytes = address.to_le_bytes();
    let (low, high) = bytes.split_at(4);
    let register = bar.index.register();
    root.config_write(function, register, low);
    if bar.kind.is_64_bit() {
        root.config_write(function, register + 4, high);
    }
    let read = read_address(root, function, &bar);
    if read == address {
        return Ok(());
    }
    Err(ProgramError::BarNotTaken {
        function,
        bar,
        address,
        read,
    })
}

fn read_address(root: &RootComplex, function: PciAddress, bar: &BarInfo) -> u64 {
    let register = bar.index.register();
    let low = u64::from(read(root, function, register) & !bar.low_bits());
    match bar.kind {
        BarKind::Memory64 { .. } => low | u64::from(read(root, function, register + 4)) << 32,
        BarKind::Io | BarKind::Rom | BarKind::Memory32 { .. } => low,
    }
}

fn read(root: &RootComplex, function: PciAddress, register: u16) -> u32 {
    let mut bytes = [0; 4];
    root.config_read(function, register, &mut bytes);
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
#[path = "firmware_test.rs"]
mod tests;
