/// What a class code stands for, as far as its base class and sub-class tell
/// (PCI Code and ID Assignment Specification 1.16, chapter 1). `class` has
/// base class, sub-class and programming interface, a byte each.
pub(crate) fn class_name(class: u32) -> &'static str {
    let [_, base, sub, interface] = class.to_be_bytes();
    match (base, sub) {
        (0x01, 0x01) => "IDE controller",
        (0x01, 0x04) => "RAID controller",
        (0x01, 0x06) => "SATA controller",
        (0x01, 0x07) => "SAS controller",
        (0x01, 0x08) if interface == 2 || interface == 3 => "NVMe controller",
        (0x01, 0x08) => "non-volatile memory controller",
        (0x01, 0x09) => "UFS controller",
        (0x01, _) => "storage controller",
        (0x02, 0x00) => "Ethernet controller",
        (0x02, 0x07) => "InfiniBand controller",
        (0x02, 0x08) => "fabric controller",
        (0x02, _) => "network controller",
        (0x03, 0x00) => "VGA controller",
        (0x03, 0x02) => "3D controller",
        (0x03, _) => "display controller",
        (0x04, 0x01 | 0x03) => "audio device",
        (0x04, _) => "multimedia device",
        (0x05, 0x02) => "CXL memory",
        (0x05, _) => "memory controller",
        (0x06, 0x00) => "host bridge",
        (0x06, 0x01) => "ISA bridge",
        (0x06, 0x04) => "PCI bridge",
        (0x06, 0x07) => "CardBus bridge",
        (0x06, _) => "bridge",
        (0x07, 0x00) => "serial port",
        (0x07, _) => "communication controller",
        (0x08, 0x00) => "interrupt controller",
        (0x08, 0x05) => "SD host controller",
        (0x08, 0x06) => "IOMMU",
        (0x08, 0x07) => "root-complex event collector",
        (0x08, _) => "system device",
        (0x09, _) => "input device",
        (0x0a, _) => "docking station",
        (0x0b, _) => "processor",
        (0x0c, 0x03) if interface == 0xfe => "USB device",
        (0x0c, 0x03) => "USB controller",
        (0x0c, 0x04) => "Fibre Channel controller",
        (0x0c, 0x05) => "SMBus controller",
        (0x0c, _) => "serial bus controller",
        (0x0d, _) => "wireless controller",
        (0x0e, _) => "intelligent I/O controller",
        (0x0f, _) => "satellite controller",
        (0x10, _) => "encryption controller",
        (0x11, _) => "signal processor",
        (0x12, _) => "accelerator",
        (0x13, _) => "instrumentation",
        (0x40, _) => "coprocessor",
        _ => "unclassified",
    }
}

#[cfg(test)]
mod tests {
    use super::class_name;

    #[test]
    fn classes_that_people_know() {
        for (class, name) in [
            (0x01_0802, "NVMe controller"),
            (0x01_0800, "non-volatile memory controller"),
            (0x02_0000, "Ethernet controller"),
            (0x03_0000, "VGA controller"),
            (0x06_0400, "PCI bridge"),
            (0x06_8000, "bridge"),
            (0x0c_0330, "USB controller"),
            (0xff_0000, "unclassified"),
            (u32::MAX, "unclassified"),
        ] {
            assert_eq!(class_name(class), name, "{class:#x}");
        }
    }
}
