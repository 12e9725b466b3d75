use super::super::sample;
use super::*;

fn names() -> Names {
    let list = "1b36  Red Hat, Inc.\n\t0010  QEMU NVM Express Controller\n";
    Names::parse(list.as_bytes(), &[(0x1b36, 0x0010)].into())
}

#[test]
fn everything_has_its_place() {
    assert_eq!(
        write(&sample::nvme(), &names(), Style::PLAIN),
        "0000:01:00.0 1b36:0010 NVMe controller
Red Hat, Inc. QEMU NVM Express Controller
subsystem 1af4:1100, revision 02, header type 0
resets: by itself (flr, bus)
host's view: the hardware's, from sysfs
guest's view: behind a root port, before its first write

REGIONS
  BAR 0   16 KiB    memory, 64 bits, prefetchable  0xfe800000
         0x0-0x1fff direct: mapped into the guest
         0x2000-0x240f MSI-X table, answered by airlock
         0x2410-0x2fff trapped: each access leaves the guest
         0x3000-0x3fff MSI-X pending bits, answered by airlock
  BAR 4   32 bytes  I/O ports                      ports 0xc000
         not in the guest
  ROM     256 KiB   option ROM                     -
         it was turned off
  config  4 KiB     config space                   -

INTERRUPTS
  INTx   1   not in the guest
         no pin is delivered
  MSI-X  65  65 in the guest

CAPABILITIES
  040  MSI-X (PCIe 6.0 §7.7.2)
         table: BAR 0 at 0x2000
  100  SR-IOV (PCIe 6.0 §9.3.3, version 1)
         hidden: guests make no virtual functions

HOST AGAINST GUEST
  03c  interrupt line and pin: 0b 01 → 00 00
         no pin is delivered (PCIe 6.0 §7.5.1.1.12)
  100  SR-IOV: 01 02 03 04 05 06 07 08 and 4 more → 00 00 00 00 00 00 00 00 and 4 more
         guests make no virtual functions"
    );
}

#[test]
fn colour_changes_no_word() {
    let text = write(&sample::nvme(), &names(), Style::COLOUR);
    assert!(text.contains("\x1b[33m0b 01\x1b[0m → \x1b[32m00 00\x1b[0m"));
    let mut plain = text;
    for code in ["\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[33m", "\x1b[0m"] {
        plain = plain.replace(code, "");
    }
    assert_eq!(plain, write(&sample::nvme(), &names(), Style::PLAIN));
}

#[test]
fn ways_to_reset_it() {
    let one = || vec!["0000:01:00.1".parse().unwrap()];
    for (function, bus, expected) in [
        (true, Some(one()), "by itself"),
        (false, None, "none"),
        (false, Some(Vec::new()), "only by a hot reset of its bus"),
        (
            false,
            Some(one()),
            "only by a hot reset of its bus, along with 0000:01:00.1",
        ),
    ] {
        let mut inspection = sample::nvme();
        inspection.resets = Resets {
            function,
            methods: Vec::new(),
            bus,
        };
        let text = write(&inspection, &names(), Style::PLAIN);
        assert!(
            text.contains(&format!("\nresets: {expected}\nhost's")),
            "{text}"
        );
    }
}

#[test]
fn a_device_that_no_guest_can_have() {
    let mut inspection = sample::nvme();
    inspection.refusal = Some("it is a bridge".to_owned());
    inspection.guest = None;
    inspection.differences.clear();
    let text = write(&inspection, &Names::default(), Style::PLAIN);
    assert!(
        text.contains("\nguest's view: none: it is a bridge\n"),
        "{text}"
    );
    assert!(!text.contains("AGAINST") && !text.contains("in the guest"));
    assert!(
        !text.contains("trapped") && text.contains("INTx   1\n"),
        "{text}"
    );
}

#[test]
fn too_little_was_read() {
    let mut inspection = sample::nvme();
    inspection.physical.0.truncate(64);
    inspection.refusal = Some("only 64 bytes".to_owned());
    inspection.guest = None;
    inspection.capabilities.clear();
    let text = write(&inspection, &Names::default(), Style::PLAIN);
    assert!(
        text.contains("only 64 bytes can be read without root\n"),
        "{text}"
    );
    assert!(
        text.contains("\nguest's view: not known: run it as root\n"),
        "{text}"
    );
    assert!(!text.contains("CAPABILITIES"));
    inspection.source = Source::Vfio;
    let text = write(&inspection, &Names::default(), Style::PLAIN);
    assert!(!text.contains("as root"), "VFIO shows all there is: {text}");
}

#[test]
fn a_guest_that_sees_what_the_host_does() {
    let mut inspection = sample::nvme();
    inspection.differences.clear();
    let text = write(&inspection, &Names::default(), Style::PLAIN);
    assert!(
        text.ends_with("\n  no byte of config space differs"),
        "{text}"
    );
}

#[test]
fn sizes_are_whole() {
    let sizes = [0, 1, 32, 1000, 1024, 1536, 1 << 20, 128 << 30, 1 << 43];
    let texts = sizes.map(size);
    let expected = [
        "0 bytes",
        "1 byte",
        "32 bytes",
        "1000 bytes",
        "1 KiB",
        "1536 bytes",
        "1 MiB",
        "128 GiB",
        "8 TiB",
    ];
    assert_eq!(texts, expected);
}
