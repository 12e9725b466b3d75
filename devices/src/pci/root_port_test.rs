use proptest::prelude::*;

use super::super::capability::{capabilities, extended_capabilities};
use super::*;

fn port() -> RootPort {
    let link = Link {
        max_speed: 4,
        max_width: 16,
        speed: 3,
        width: 8,
        max_payload: 2,
        payload: 1,
    };
    RootPort::new(5, link)
}

fn read32(port: &mut RootPort, offset: u16) -> u32 {
    let mut data = [0; 4];
    port.config_read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn write32(port: &mut RootPort, offset: u16, value: u32) {
    let effects = port.config_write(offset, &value.to_le_bytes());
    assert!(effects.is_none(), "a port has no effects of its own");
}

#[test]
fn a_guest_recognizes_a_root_port() {
    let mut port = port();
    assert_eq!(read32(&mut port, 0x00), 0x000c_1b36);
    assert_eq!(read32(&mut port, 0x04), 0x0010_0000);
    assert_eq!(read32(&mut port, 0x08), 0x0604_0000);
    assert_eq!(read32(&mut port, 0x0c), 0x0001_0000);
    let list: Vec<_> = capabilities(|at, data| port.config_read(at, data))
        .map(|found| (found.id, found.offset))
        .collect();
    assert_eq!(list, [(0x01, 0x40), (0x10, 0x50)]);
    let list: Vec<_> = extended_capabilities(|at, data| port.config_read(at, data))
        .map(|found| (found.id, found.version, found.offset))
        .collect();
    assert_eq!(list, [(0x0d, 1, 0x100)]);
    assert!(port.bars().is_empty() && port.decoded().is_empty());
}

#[test]
fn the_link_fits_the_device() {
    let mut port = port();
    // 256 of 512 bytes; read requests of 512.
    assert_eq!(read32(&mut port, 0x54) & 7, 2);
    assert_eq!(read32(&mut port, 0x58) & 0xe0, 0x20);
    // Port 5, 16 lanes, 16 GT/s; now 8 lanes, 8 GT/s, active.
    assert_eq!(read32(&mut port, 0x5c), 0x0550_0104);
    assert_eq!(read32(&mut port, 0x60) >> 16, 0x3083);
    assert_eq!(read32(&mut port, 0x7c), 0x0000_001e);
    assert_eq!(read32(&mut port, 0x80) & 0xf, 4);
}

#[test]
fn windows_open_with_the_command_register() {
    let mut port = port();
    let empty = port.forwarding().unwrap();
    let up = Forwarding {
        link: true,
        ..Forwarding::default()
    };
    assert_eq!(empty, up);
    write32(&mut port, 0x18, 0xff04_0300);
    write32(&mut port, 0x1c, 0xffff_2010);
    write32(&mut port, 0x20, 0xc01f_c000);
    write32(&mut port, 0x24, 0xfff1_0001);
    write32(&mut port, 0x28, 0x12);
    write32(&mut port, 0x2c, 0x13);
    let closed = port.forwarding().unwrap();
    assert_eq!((closed.secondary, closed.subordinate), (3, 4));
    assert_eq!(
        (closed.io, closed.memory, closed.prefetchable),
        (None, None, None)
    );
    let window = |base, size| Some(Window { base, size });
    write32(&mut port, 0x04, 1);
    let io = port.forwarding().unwrap();
    assert_eq!((io.io, io.memory), (window(0x1000, 0x2000), None));
    assert!(!io.bus_master);
    write32(&mut port, 0x04, 6);
    let memory = port.forwarding().unwrap();
    assert_eq!(memory.io, None);
    assert_eq!(memory.memory, window(0xc000_0000, 0x20_0000));
    assert_eq!(memory.prefetchable, window(0x12_0000_0000, 0x2_0000_0000));
    assert!(memory.bus_master);
    // The smallest windows, the largest, and one that is closed.
    write32(&mut port, 0x20, 0);
    assert_eq!(port.forwarding().unwrap().memory, window(0, 0x10_0000));
    write32(&mut port, 0x20, 0x0000_0010);
    assert_eq!(port.forwarding().unwrap().memory, None);
    write32(&mut port, 0x24, 0xfff0_0000);
    write32(&mut port, 0x28, 0);
    write32(&mut port, 0x2c, u32::MAX);
    assert_eq!(port.forwarding().unwrap().prefetchable, window(0, u64::MAX));
}

#[test]
fn in_d3hot_only_config_requests_pass() {
    let mut port = port();
    write32(&mut port, 0x18, 0x0001_0100);
    write32(&mut port, 0x20, 0xc000_c000);
    write32(&mut port, 0x04, 7);
    write32(&mut port, 0x44, 3);
    let asleep = port.forwarding().unwrap();
    assert_eq!((asleep.memory, asleep.bus_master), (None, false));
    assert!(asleep.leads_to(1));
    // D1 and D2 are not supported.
    for state in [1, 2] {
        write32(&mut port, 0x44, state);
        assert_eq!(read32(&mut port, 0x44), 0xb);
    }
    write32(&mut port, 0x44, 0);
    let awake = port.forwarding().unwrap();
    assert!(
        awake.memory.is_some() && awake.bus_master,
        "nothing was lost"
    );
}

#[test]
fn a_reset_and_a_disabled_link_are_seen_in_the_link_status() {
    let mut port = port();
    for (register, bit) in [(0x3c, 1 << 22), (0x60, 1 << 4)] {
        write32(&mut port, register, bit);
        assert!(!port.forwarding().unwrap().link);
        assert_eq!(read32(&mut port, 0x60) >> 16 & 0x2000, 0);
        write32(&mut port, register, 0);
        assert!(port.forwarding().unwrap().link);
        assert_eq!(read32(&mut port, 0x60) >> 16 & 0x2000, 0x2000);
    }
    // Retraining is over at once: its bit reads as zero.
    write32(&mut port, 0x60, 1 << 5);
    assert_eq!(read32(&mut port, 0x60) & 1 << 5, 0);
}

proptest! {
    /// Nothing that a guest writes panics, and what is constant stays.
    #[test]
    fn any_guest(writes in proptest::collection::vec((0u16..0x110, any::<u32>(), 1usize..=4), 0..40)) {
        let mut port = port();
        for (offset, value, length) in writes {
            let _ = port.config_write(offset, &value.to_le_bytes()[..length]);
            let forwarding = port.forwarding().unwrap();
            for window in [forwarding.io, forwarding.memory, forwarding.prefetchable] {
                prop_assert!(window.is_none_or(|window| window.last().is_some()));
            }
        }
        for (offset, value) in [
            (0x00, 0x000c_1b36),
            (0x08, 0x0604_0000),
            (0x10, 0),
            (0x14, 0),
            (0x34, 0x40),
            (0x38, 0),
            (0x40, 0x0003_5001),
            (0x50, 0x0042_0010),
            (0x5c, 0x0550_0104),
            (0x100, 0x0001_000d),
        ] {
            prop_assert_eq!(read32(&mut port, offset), value, "{:#x}", offset);
        }
    }
}
