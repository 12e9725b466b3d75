use acpi_tables::Aml;
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;

use super::platform::Platform;
use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// ACPI 6.4's and 6.5's revision. The library's own MADT says 1, which knows no x2APICs.
const REVISION: u8 = 5;
/// Bytes of the common header.
const HEADER: u32 = 36;
/// Flags: there are 8259s besides, which the guest must mask.
const PCAT_COMPAT: u32 = 1;
/// Processors from this APIC id on are described as x2APICs (ACPI 6.5 §5.2.12.12).
const FIRST_X2APIC_ID: u32 = 255;
/// A processor local x2APIC structure, and its size.
const X2APIC: [u8; 2] = [9, 16];
/// Flags of a processor: ready for use.
const ENABLED: u32 = 1;

/// The interrupt controllers (ACPI 6.5 §5.2.12).
pub(super) fn madt(platform: &Platform) -> Sdt {
    let mut body = Vec::new();
    body.extend_from_slice(&platform.local_apic.to_le_bytes());
    body.extend_from_slice(&PCAT_COMPAT.to_le_bytes());
    for (uid, id) in (0_u32..).zip(&platform.apic_ids) {
        processor(uid, *id, &mut body);
    }
    // Id 0 is the in-kernel one's. It lives on another bus than the CPUs'.
    IoApic::new(0, platform.io_apic, 0).to_aml_bytes(&mut body);
    let mut table = Sdt::new(
        *b"APIC",
        HEADER,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(&body);
    table
}

fn processor(uid: u32, id: u32, body: &mut Vec<u8>) {
    match (u8::try_from(uid), u8::try_from(id)) {
        (Ok(short_uid), Ok(short_id)) if id < FIRST_X2APIC_ID => {
            ProcessorLocalApic::new(short_uid, short_id, EnabledStatus::Enabled).to_aml_bytes(body);
        }
        _ => {
            body.extend_from_slice(&X2APIC);
            body.extend_from_slice(&[0; 2]);
            for field in [id, ENABLED, uid] {
                body.extend_from_slice(&field.to_le_bytes());
            }
        }
    }
}
