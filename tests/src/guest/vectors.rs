use std::time::Instant;

use super::{Function, GuestError, Memory, marker};

const MSIX: u8 = 0x11;
/// Message control of the capability (PCIe 6.0 §7.7.2.2), and its bits.
const CONTROL: u64 = 2;
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
const SIZE: u16 = 0x7ff;
/// Where the table is, in the capability.
const TABLE: u64 = 4;
/// An entry of the table (§6.1.4.2): address, its upper half, data, control.
const ENTRY: usize = 16;
const VECTOR_CONTROL: usize = 12;
const MASKED: u32 = 1;
/// The local APIC of CPU 0, and a vector that Linux counts whoever sends it.
const ADDRESS: u32 = 0xfee0_0000;
const DATA: u32 = 0xf2;

/// Enables `count` MSI-X vectors of a function that no driver has, in the order in
/// which Linux does, and disables them: how long each takes, in nanoseconds.
///
/// # Errors
/// [`GuestError`] when the function has fewer, or something can't be mapped.
pub fn vectors(function: &Function, count: usize) -> Result<(), GuestError> {
    let msix = function.capability(MSIX)?;
    let control = function.word(msix + CONTROL)? & !(ENABLE | FUNCTION_MASK);
    let all = usize::from(control & SIZE) + 1;
    if count > all {
        return Err(GuestError::Unexpected(format!(
            "the function has {all} vectors, not {count}"
        )));
    }
    let place = function.dword(msix + TABLE)?;
    let bar = function.bar((place & 7) as u8)?;
    function.decode(true)?;
    let size = (all * ENTRY) as u64;
    let table = Memory::map(bar.start + u64::from(place & !7), size)?;
    let set = |bits: u16| function.write(msix + CONTROL, (control | bits).to_le_bytes());

    let begun = Instant::now();
    set(ENABLE | FUNCTION_MASK)?;
    for vector in 0..all {
        table.write(vector * ENTRY + VECTOR_CONTROL, MASKED)?;
    }
    set(ENABLE)?;
    for entry in (0..count).map(|vector| vector * ENTRY) {
        table.write(entry, ADDRESS)?;
        table.write(entry + 4, 0_u32)?;
        table.write(entry + 8, DATA)?;
        table.write(entry + VECTOR_CONTROL, 0_u32)?;
    }
    let enable = begun.elapsed().as_nanos();
    let begun = Instant::now();
    for vector in 0..count {
        table.write(vector * ENTRY + VECTOR_CONTROL, MASKED)?;
    }
    set(0)?;
    let disable = begun.elapsed().as_nanos();
    marker(
        "vectors",
        &format!("count={count} enable={enable} disable={disable}"),
    );
    Ok(())
}
