use devices::pci::ConfigSpace;

use super::rule::{CONSTANT, PASSED, Rule, rule};

/// The length field of a vendor-specific capability (PCIe 6.0 §7.9.4).
const LENGTH: u16 = 2;
/// Bytes of the vital product data capability (PCIe 6.0 §7.9.18).
pub(super) const VPD_SIZE: u16 = 8;
/// Bytes of the header of an extended vendor-specific capability.
const EXTENDED_HEADER: u16 = 8;

/// Bytes of the vendor-specific capability at `at`.
pub(super) fn size(snapshot: &ConfigSpace, at: u16) -> u16 {
    snapshot.u8(at + LENGTH).max(3).into()
}

/// The rules of a vendor-specific capability: nobody but its driver knows what
/// it does, so it is the device's own. The IOMMU bounds what it can do.
pub(super) fn rules(size: u16) -> Vec<Rule> {
    vec![
        rule(
            LENGTH,
            1,
            CONSTANT,
            "vendor-specific, length, PCIe 6.0 §7.9.4",
        ),
        rule(
            3,
            size - 3,
            PASSED,
            "vendor-specific, body, PCIe 6.0 §7.9.4",
        ),
    ]
}

/// The rules of the vital product data: the kernel carries out the reads and
/// writes behind the two registers.
pub(super) fn vpd_rules() -> Vec<Rule> {
    vec![rule(
        2,
        VPD_SIZE - 2,
        PASSED,
        "vital product data, PCIe 6.0 §7.9.18",
    )]
}

/// The rules of an extended vendor-specific capability, whose length stands in
/// bits 31:20 of its second dword (PCIe 6.0 §7.9.5).
pub(super) fn extended_rules(snapshot: &ConfigSpace, at: u16) -> Vec<Rule> {
    let size = (snapshot.u32(at + 4) >> 20) as u16;
    let mut rules = vec![rule(
        4,
        4,
        CONSTANT,
        "vendor-specific header, PCIe 6.0 §7.9.5.2",
    )];
    if let Some(body) = size.checked_sub(EXTENDED_HEADER).filter(|body| *body > 0) {
        rules.push(rule(
            EXTENDED_HEADER,
            body,
            PASSED,
            "vendor-specific body, §7.9.5",
        ));
    }
    rules
}
