use super::*;
use crate::host::fake::FakeHost;

const PORT: &str = "0000:00:1c.0";

/// What is read of a port with this config space, at most `size` bytes of it.
fn routing(port: Option<u8>, acs: Option<(u16, u16)>, size: usize) -> Option<Routing> {
    let host = FakeHost::new();
    host.bridge(PORT, Some(3), "pcieport")
        .config(PORT, port, acs)
        .cut(PORT, "config", size);
    Routing::read(&host.host(), PORT)
}

#[test]
fn ports_are_told_apart() {
    for (number, kind) in [
        (0, PortKind::Endpoint),
        (1, PortKind::Endpoint),
        (4, PortKind::RootPort),
        (5, PortKind::UpstreamPort),
        (6, PortKind::DownstreamPort),
        (7, PortKind::ToConventional),
        (8, PortKind::FromConventional),
        (9, PortKind::Endpoint),
        (10, PortKind::Other),
        (15, PortKind::Other),
    ] {
        assert_eq!(routing(Some(number), None, 4096).unwrap().kind, Some(kind));
    }
    assert_eq!(routing(None, None, 4096).unwrap().kind, None);
}

#[test]
fn acs_is_read_as_far_as_it_may_be() {
    let acs = |acs, size| routing(Some(4), acs, size).map(|routing| routing.acs);
    let present = |capable, enabled| Some(Acs::Present { capable, enabled });
    assert_eq!(acs(Some((0x5f, 0x1d)), 4096), present(0x5f, 0x1d));
    assert_eq!(acs(None, 4096), Some(Acs::Missing));
    // 256 bytes are the whole of a function without extended space.
    assert_eq!(acs(Some((0x5f, 0x1d)), 256), Some(Acs::Missing));
    // The superuser's part begins at 64.
    assert_eq!(acs(Some((0x5f, 0x1d)), 64), None);
    assert_eq!(acs(Some((0x5f, 0x1d)), 0), None);
    assert_eq!(acs(Some((0x5f, 0x1d)), 0x14d), Some(Acs::Unknown));
}

#[test]
fn what_acs_must_have_on() {
    let present = |capable, enabled| Acs::Present { capable, enabled };
    assert!(Acs::Missing.lacks());
    assert!(!Acs::Unknown.lacks());
    assert!(!present(0x1d, 0x1d).lacks());
    assert!(!present(0, 0).lacks(), "what is not offered is hard-wired");
    let off = present(0x5f, 0x11);
    assert!(off.lacks());
    assert_eq!(
        off.to_string(),
        "has ACS, but not on: request redirect, completion redirect"
    );
}

#[test]
fn lists_that_go_round_end() {
    let host = FakeHost::new();
    host.bridge(PORT, Some(3), "pcieport");
    let mut config = vec![0u8; 4096];
    config[0x06] = 0x10;
    config[0x34] = 0x40;
    config[0x40..0x42].copy_from_slice(&[0x01, 0x40]);
    host.bytes(PORT, "config", &config);
    assert_eq!(Routing::read(&host.host(), PORT).unwrap().kind, None);
    config[0x40..0x44].copy_from_slice(&[0x10, 0, 0x42, 0]);
    config[0x100..0x104].copy_from_slice(&0x1001_0001u32.to_le_bytes());
    host.bytes(PORT, "config", &config);
    let routing = Routing::read(&host.host(), PORT).unwrap();
    assert_eq!(routing.acs, Acs::Missing);
    // A function that does not answer reads as ones.
    host.bytes(PORT, "config", &[0xff; 4096]);
    let _ = Routing::read(&host.host(), PORT);
}
