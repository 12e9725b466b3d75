use std::os::unix::fs::FileExt;

use super::{Function, GuestError, Memory, at, marker};

/// Reads a register of an Intel NIC through its memory, and through its ports:
/// its address is written to one of them and its value read from the next
/// (82574 datasheet §10.2.2).
///
/// # Errors
/// [`GuestError`] when it has no such BARs.
pub fn ports(function: &Function, memory: u8, ports: u8, register: u32) -> Result<(), GuestError> {
    let bar = function.bar(ports)?;
    let name = format!("resource{ports}");
    let file = function.file(&name)?;
    let mut found = [0; 4];
    file.write_all_at(&register.to_le_bytes(), 0)
        .and_then(|()| file.read_exact_at(&mut found, 4))
        .map_err(at(name))?;
    let mut address = [0; 4];
    file.read_exact_at(&mut address, 0).map_err(at("ports"))?;
    let mapped = Memory::map(function.bar(memory)?.start, 4096)?;
    marker(
        "ports",
        &format!(
            "address={function} size={} register={} by-ports={} by-memory={}",
            bar.size,
            u32::from_le_bytes(address),
            u32::from_le_bytes(found),
            mapped.read::<u32>(register as usize)?,
        ),
    );
    Ok(())
}
