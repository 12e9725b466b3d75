use std::fs;

use super::{Function, GuestError, Memory, at, marker};

/// Config space that CF8/CFC reach; the kernel reads it there (its message is
/// "Using configuration type 1 for base access").
const FIRST_DOOR: u64 = 256;
const RESOURCES: &str = "/proc/iomem";

/// Reads config space through the ports and through ECAM, with each width that
/// either has, and tells the bytes and how many accesses gave others.
///
/// # Errors
/// [`GuestError`] when either door is shut.
pub fn doors(function: &Function) -> Result<(), GuestError> {
    let size = function.config_size();
    let address = function.address();
    let ecam = ecam(function)?;
    let mut bytes = Vec::new();
    for offset in (0..size).step_by(4) {
        bytes.extend(ecam.read::<u32>(offset as usize)?.to_le_bytes());
    }
    let mut other = Vec::new();
    let mut compare = |door: &str, offset: u64, found: &[u8]| {
        let from = offset as usize;
        if bytes[from..from + found.len()] != *found {
            other.push(format!("{door}{}@{offset:#x}", found.len()));
        }
    };
    for offset in 0..size {
        let at = offset as usize;
        compare("ecam", offset, &ecam.read::<u8>(at)?.to_le_bytes());
        if offset % 2 == 0 {
            compare("ecam", offset, &ecam.read::<u16>(at)?.to_le_bytes());
        }
        if offset % 8 == 0 {
            compare("ecam", offset, &ecam.read::<u64>(at)?.to_le_bytes());
        }
    }
    for offset in 0..FIRST_DOOR {
        compare("ports", offset, &function.read::<1>(offset)?);
        if offset % 2 == 0 {
            compare("ports", offset, &function.read::<2>(offset)?);
        }
        if offset % 4 == 0 {
            compare("ports", offset, &function.read::<4>(offset)?);
        }
    }
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let first: Vec<_> = other.iter().take(8).map(String::as_str).collect();
    marker(
        "doors",
        &format!(
            "address={address} size={size} other={} first={} bytes={hex}",
            other.len(),
            first.join(",")
        ),
    );
    Ok(())
}

/// The function's config space, memory-mapped.
pub(super) fn ecam(function: &Function) -> Result<Memory, GuestError> {
    let address = function.address();
    let place = u64::from(address.bus()) << 20
        | u64::from(address.device()) << 15
        | u64::from(address.function()) << 12;
    Memory::map(ecam_base()? + place, function.config_size())
}

/// Where ECAM begins, as the kernel lists it.
fn ecam_base() -> Result<u64, GuestError> {
    let text = fs::read_to_string(RESOURCES).map_err(at(RESOURCES))?;
    let is = |line: &&str| line.contains("ECAM") || line.contains("MMCONFIG");
    let line = text.lines().find(is);
    let start = line.and_then(|line| line.trim().split('-').next());
    let start = start.and_then(|start| u64::from_str_radix(start, 16).ok());
    start.ok_or_else(|| GuestError::Unexpected(format!("{RESOURCES} has no ECAM")))
}
