use std::time::Instant;

use super::doors::ecam;
use super::{Function, GuestError, Memory, marker};

/// Accesses of a kind: enough to be long against the clock.
const COUNT: u32 = 2000;

const EXPRESS: u8 = 0x10;
/// Device status, whose bits are the device's own (PCIe 6.0 §7.5.3.5).
const DEVICE_STATUS: u64 = 0x0a;
const MSIX: u8 = 0x11;
const TABLE: u64 = 4;
const ENTRY: usize = 16;
const MESSAGE_DATA: usize = 8;

/// Measures single accesses that leave the guest, in nanoseconds each: reads of
/// config space by ECAM, of a register that never changes and of one that is the
/// device's; a read of the MSI-X table, and a write to it, to the last vector,
/// which a driver with few queues leaves masked.
///
/// # Errors
/// [`GuestError`] when the function has no MSI-X, or something can't be mapped.
pub fn rates(function: &Function) -> Result<(), GuestError> {
    let config = ecam(function)?;
    let status = function.capability(EXPRESS)? + DEVICE_STATUS;
    let msix = function.capability(MSIX)?;
    let last = usize::from(function.word(msix + 2)? & 0x7ff);
    let place = function.dword(msix + TABLE)?;
    let bar = function.bar((place & 7) as u8)?;
    let size = (last as u64 + 1) * ENTRY as u64;
    let table = Memory::map(bar.start + u64::from(place & !7), size)?;
    let data = last * ENTRY + MESSAGE_DATA;
    let kept: u32 = table.read(data)?;

    let constant = each(|| config.read::<u32>(0).map(drop))?;
    let passed = each(|| config.read::<u16>(status as usize).map(drop))?;
    let read = each(|| table.read::<u32>(data).map(drop))?;
    let write = each(|| table.write(data, kept))?;
    marker(
        "rates",
        &format!("constant={constant} passed={passed} table-read={read} table-write={write}"),
    );
    Ok(())
}

/// How long one takes, in nanoseconds, after a few that don't count.
fn each(access: impl Fn() -> Result<(), GuestError>) -> Result<u128, GuestError> {
    for _ in 0..COUNT / 10 {
        access()?;
    }
    let begun = Instant::now();
    for _ in 0..COUNT {
        access()?;
    }
    Ok(begun.elapsed().as_nanos() / u128::from(COUNT))
}
