//! Kernels of a few instructions.

use std::io::Write;

/// Where the code is loaded and entered, in 32-bit mode.
pub(crate) const LOAD: u32 = 0x10_0000;

/// Ends the guest by ACPI: SLP_EN with SLP_TYP 5 to the sleep control port.
pub(crate) const POWER_OFF: &[u8] = &[0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee];
/// Waits for interrupts that never come.
pub(crate) const HALT: &[u8] = &[0xf4, 0xeb, 0xfd];

/// An ELF kernel with a PVH note, that is `code` at [`LOAD`].
pub(crate) fn kernel(code: &[u8]) -> Vec<u8> {
    const NOTE: usize = 0x100;
    const CODE: usize = 0x200;
    let mut file = vec![0; CODE];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &2u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(24, &u64::from(LOAD).to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &64u16.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &2u16.to_le_bytes());
    let header = |kind: u32, offset: usize, address: u32, size: usize| {
        let mut header = Vec::new();
        header.extend(kind.to_le_bytes());
        header.extend(7u32.to_le_bytes());
        for field in [
            offset as u64,
            address.into(),
            address.into(),
            size as u64,
            size as u64,
            4,
        ] {
            header.extend(field.to_le_bytes());
        }
        header
    };
    put(64, &header(1, CODE, LOAD, code.len()));
    put(120, &header(4, NOTE, 0, 20));
    for (index, word) in [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), LOAD]
        .into_iter()
        .enumerate()
    {
        put(NOTE + index * 4, &u32::to_le_bytes(word));
    }
    file.extend(code);
    file
}

/// Code that sends `text` to the first serial port.
pub(crate) fn say(text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    for byte in text.bytes() {
        code.extend([0xb0, byte, 0xee]);
    }
    code
}

/// Whether guests can run here. Where they can't, it is said: the test runner
/// swallows what `eprintln!` prints, so not by that.
pub(crate) fn has_kvm() -> bool {
    match std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        Ok(_) => true,
        Err(error) => {
            let _ = writeln!(
                std::io::stderr(),
                "NOT RUN: a tiny guest needs /dev/kvm: {error}"
            );
            false
        }
    }
}
