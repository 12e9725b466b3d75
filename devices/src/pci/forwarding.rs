use super::bar::BarDecode;
use super::window::Window;

/// What a port lets through: the state of its registers, as routing needs it.
///
/// A window that is closed (its base above its limit) or whose enable bit in
/// the command register is off is absent here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// The bus right below. 0 is none: it is the root bus.
    pub secondary: u8,
    /// The last bus below.
    pub subordinate: u8,
    /// Ports.
    pub io: Option<Window>,
    /// Memory below 4 GiB.
    pub memory: Option<Window>,
    /// Prefetchable memory, anywhere.
    pub prefetchable: Option<Window>,
    /// Requests from below go on upstream (PCIe 6.0 §7.5.1.1.3).
    pub bus_master: bool,
    /// The link is up. While it is down, as in a reset, nothing below answers.
    pub link: bool,
}

impl Forwarding {
    /// Whether a config request for `bus` reaches the bus right below.
    ///
    /// No bus beyond that exists: only endpoints stand below a root port.
    pub fn leads_to(&self, bus: u8) -> bool {
        self.link && bus != 0 && self.secondary == bus && bus <= self.subordinate
    }

    /// Whether accesses to a BAR below get through.
    ///
    /// A bridge looks at the address only: any memory BAR may lie in either
    /// memory window. A BAR that is only partly in one does not answer at all.
    pub fn passes(&self, decode: &BarDecode) -> bool {
        let inside = |window: &Window| {
            let rest = decode.bar.size.checked_sub(1);
            let last = rest.and_then(|rest| decode.address.checked_add(rest));
            window.base <= decode.address && last.is_some() && last <= window.last()
        };
        let windows = if decode.bar.kind.is_io() {
            [self.io, None]
        } else {
            [self.memory, self.prefetchable]
        };
        self.link && windows.iter().flatten().any(inside)
    }
}

#[cfg(test)]
mod tests {
    use super::super::bar::{BarIndex, BarInfo, BarKind};
    use super::*;

    fn decode(kind: BarKind, address: u64, size: u64) -> BarDecode {
        let index = BarIndex::new(0).unwrap();
        let bar = BarInfo { index, kind, size };
        BarDecode { bar, address }
    }

    #[test]
    fn a_window_lets_whole_bars_through() {
        let window = |base, size| Some(Window { base, size });
        let open = Forwarding {
            io: window(0x1000, 0x1000),
            memory: window(0xc000_0000, 0x10_0000),
            prefetchable: window(1 << 34, 1 << 32),
            link: true,
            ..Forwarding::default()
        };
        let plain = BarKind::Memory32 {
            prefetchable: false,
        };
        let wide = BarKind::Memory64 { prefetchable: true };
        for (kind, address, size, passes) in [
            (BarKind::Io, 0x1000, 0x1000, true),
            (BarKind::Io, 0x1f00, 0x200, false),
            (BarKind::Io, 0xc000_0000, 0x10, false),
            (plain, 0xc000_0000, 0x10_0000, true),
            (plain, 0xbfff_f000, 0x1000, false),
            (plain, 0xc00f_f000, 0x1000, true),
            (plain, 0xc010_0000, 0x1000, false),
            (plain, 0xc008_0000, 0x10_0000, false),
            (plain, 0x1000, 0x1000, false),
            // The address counts, and not the kind of the BAR.
            (wide, 0xc000_0000, 0x1000, true),
            (wide, 1 << 34, 1 << 32, true),
            (wide, u64::MAX - 0xfff, 0x2000, false),
        ] {
            let decode = decode(kind, address, size);
            assert_eq!(open.passes(&decode), passes, "{decode:x?}");
            let down = Forwarding {
                link: false,
                ..open
            };
            assert!(!down.passes(&decode));
            assert!(!Forwarding::default().passes(&decode));
        }
    }

    #[test]
    fn only_the_bus_right_below_exists() {
        let port = |secondary, subordinate, link| Forwarding {
            secondary,
            subordinate,
            link,
            ..Forwarding::default()
        };
        assert!(port(3, 3, true).leads_to(3));
        assert!(port(3, 7, true).leads_to(3));
        assert!(!port(3, 7, true).leads_to(4));
        assert!(!port(3, 2, true).leads_to(3), "no bus is forwarded");
        assert!(!port(3, 3, false).leads_to(3));
        assert!(!port(0, 0, true).leads_to(0), "as after reset");
    }
}
