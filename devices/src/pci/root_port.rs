use super::bar::{BarDecode, BarIndex, BarInfo};
use super::config::{ConfigSpace, Register};
use super::forwarding::Forwarding;
use super::function::{Effects, PciFunction};
use super::link::Link;
use super::window::Window;

/// Vendor and device id of root ports: 1b36:000c, "QEMU PCIe Root port".
///
/// A real port's id brings that port's quirks: Linux knows what is wrong with
/// the ACS or the interrupts of most of them. The generic one has no quirk in
/// Linux, and Windows takes the driver for the class of bridges.
pub const ROOT_PORT_ID: (u16, u16) = (0x1b36, 0x000c);

/// The registers of a type 1 header (PCIe 6.0 §7.5.1.3).
pub(super) mod register {
    pub(in super::super) const COMMAND: u16 = 0x04;
    pub(in super::super) const PRIMARY_BUS: u16 = 0x18;
    pub(in super::super) const IO: u16 = 0x1c;
    pub(in super::super) const MEMORY: u16 = 0x20;
    pub(in super::super) const PREFETCHABLE: u16 = 0x24;
    pub(in super::super) const PREFETCHABLE_BASE_UPPER: u16 = 0x28;
    pub(in super::super) const PREFETCHABLE_LIMIT_UPPER: u16 = 0x2c;
    pub(super) const BRIDGE_CONTROL: u16 = 0x3e;
}
use register as r;

const COMMAND_IO: u16 = 1 << 0;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Those, parity error response, SERR# enable, INTx disable.
const COMMAND_WRITABLE: u32 = 0x0547;
const STATUS_CAPABILITIES_LIST: u32 = 1 << 4;
/// Parity error response, SERR# enable, and the reset. No VGA: what a display
/// decodes at its legacy addresses is nothing that goes through here.
const BRIDGE_CONTROL_WRITABLE: u32 = 0x0043;
const SECONDARY_BUS_RESET: u16 = 1 << 6;

/// Where the capabilities stand.
const POWER: u16 = 0x40;
const EXPRESS: u16 = 0x50;
const ACS: u16 = 0x100;

const POWER_CONTROL: u16 = POWER + 4;
const POWER_STATE: u16 = 3;
const D3_HOT: u16 = 3;
/// Registers keep their values over D3hot (PCIe 6.0 §7.5.2.2).
const NO_SOFT_RESET: u32 = 1 << 3;

const LINK_CONTROL: u16 = EXPRESS + 0x10;
const LINK_DISABLE: u16 = 1 << 4;
const LINK_STATUS: u16 = EXPRESS + 0x12;
const SLOT_CLOCK: u16 = 1 << 12;
const LINK_ACTIVE: u16 = 1 << 13;
/// Link capabilities: data link layer active reporting, which faster ports
/// must have (PCIe 6.0 §7.5.3.6), and conformance about active state power
/// management, which there is none of.
const ACTIVE_REPORTING: u32 = 1 << 20;
const ASPM_OPTIONALITY: u32 = 1 << 22;
/// Source validation, request redirect, completion redirect, upstream
/// forwarding (PCIe 6.0 §7.7.11.2): no request gets from one port to another
/// but through the root complex.
const ACS_SERVICES: u32 = 0x001d;

/// What is the same in every port.
const REGISTERS: [Register; 23] = [
    Register::constant(0x00, 2, ROOT_PORT_ID.0 as u32),
    Register::constant(0x02, 2, ROOT_PORT_ID.1 as u32),
    Register::writable(r::COMMAND, 2, 0, COMMAND_WRITABLE),
    Register::constant(0x06, 2, STATUS_CAPABILITIES_LIST),
    // Revision 0, class 06 (bridge), subclass 04 (PCI to PCI).
    Register::constant(0x08, 4, 0x0604_0000),
    // Cache line size, without effect on PCI Express. Then header type 1.
    Register::writable(0x0c, 4, 0x0001_0000, 0xff),
    // Primary, secondary and subordinate bus; no secondary latency timer.
    Register::writable(r::PRIMARY_BUS, 4, 0, 0x00ff_ffff),
    // 16 bits of ports, the secondary status never set. All windows closed:
    // bases above limits.
    Register::writable(r::IO, 4, 0x00f0, 0xf0f0),
    Register::writable(r::MEMORY, 4, 0xfff0, 0xfff0_fff0),
    // 64 bits of prefetchable memory.
    Register::writable(r::PREFETCHABLE, 4, 0x0001_fff1, 0xfff0_fff0),
    Register::writable(r::PREFETCHABLE_BASE_UPPER, 4, 0, u32::MAX),
    Register::writable(r::PREFETCHABLE_LIMIT_UPPER, 4, 0, u32::MAX),
    Register::constant(0x34, 1, POWER as u32),
    // Interrupt line: the guest's notes. No pin: a port without hot-plug,
    // PME and error reporting has no reason to interrupt.
    Register::writable(0x3c, 2, 0, 0xff),
    Register::writable(r::BRIDGE_CONTROL, 2, 0, BRIDGE_CONTROL_WRITABLE),
    // Power management, version 3, D0 and D3, no PME.
    Register::constant(POWER, 4, 0x0003_0001 | (EXPRESS as u32) << 8),
    Register::writable(POWER_CONTROL, 4, NO_SOFT_RESET, POWER_STATE as u32),
    // PCI Express, version 2, root port, no slot: nothing is hot-plugged.
    Register::constant(EXPRESS, 4, 0x0042_0010),
    // Disable (4), common clock (6), extended synch (7), ASPM control (1:0).
    Register::writable(LINK_CONTROL, 2, 0, 0x00d3),
    // Root control: which errors and events to signal; none occur.
    Register::writable(EXPRESS + 0x1c, 2, 0, 0x000f),
    Register::constant(ACS, 4, 0x0001_000d),
    Register::constant(ACS + 4, 2, ACS_SERVICES),
    Register::writable(ACS + 6, 2, 0, ACS_SERVICES),
];

/// A PCI Express root port with one device below it.
///
/// ```text
///  0x00  type 1 header      0x50  PCI Express
///  0x40  power management   0x100 access control services
/// ```
///
/// It is a function without BARs. What it lets through is routing's business:
/// see [`Forwarding`] and [`super::RootComplex::add_port`].
#[derive(Debug)]
pub struct RootPort {
    space: ConfigSpace,
}

impl RootPort {
    /// Port `number` with a device at the end of `link`. The number is one
    /// that no other port has.
    pub fn new(number: u8, link: Link) -> Self {
        let mut space = ConfigSpace::from_registers(&REGISTERS);
        for register in of_link(number, link) {
            space.define(register);
        }
        Self { space }
    }

    fn power_state(&self) -> u16 {
        self.space.u16(POWER_CONTROL) & POWER_STATE
    }

    fn is_link_up(&self) -> bool {
        self.space.u16(r::BRIDGE_CONTROL) & SECONDARY_BUS_RESET == 0
            && self.space.u16(LINK_CONTROL) & LINK_DISABLE == 0
    }
}

/// The registers that follow from the device below: link and payload size
/// (PCIe 6.0 §7.5.3).
fn of_link(number: u8, link: Link) -> [Register; 6] {
    let width = |lanes: u8| u32::from(lanes & 0x3f) << 4;
    let max_speed = u32::from(link.max_speed.clamp(1, 6));
    let speed = u32::from(link.speed & 0xf);
    let reporting = ACTIVE_REPORTING | ASPM_OPTIONALITY;
    let capabilities = max_speed | width(link.max_width) | reporting | u32::from(number) << 24;
    let status = speed | width(link.width) | u32::from(SLOT_CLOCK | LINK_ACTIVE);
    // Relaxed ordering (4) and no snoop (11) on, read requests of 512 bytes.
    let control = 0x2810 | u32::from(link.payload & 7) << 5;
    [
        // Role-based error reporting (15).
        Register::constant(EXPRESS + 0x04, 4, 0x8000 | u32::from(link.max_payload & 7)),
        Register::writable(EXPRESS + 0x08, 2, control, 0x79ff),
        Register::constant(EXPRESS + 0x0c, 4, capabilities),
        Register::constant(LINK_STATUS, 2, status),
        // Link capabilities 2: every speed up to the largest, from bit 1 on.
        Register::constant(EXPRESS + 0x2c, 4, ((1 << max_speed) - 1) << 1),
        // Link control 2: the target speed.
        Register::writable(EXPRESS + 0x30, 2, max_speed, 0x000f),
    ]
}

impl PciFunction for RootPort {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.space.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> Effects {
        let state = self.power_state();
        self.space.write(offset, data);
        if ![0, D3_HOT].contains(&self.power_state()) {
            // A state that a function has not leaves it in the old one.
            let control = self.space.u16(POWER_CONTROL) & !POWER_STATE | state;
            self.space.set(POWER_CONTROL, &control.to_le_bytes());
        }
        let mut status = self.space.u16(LINK_STATUS) & !LINK_ACTIVE;
        if self.is_link_up() {
            status |= LINK_ACTIVE;
        }
        self.space.set(LINK_STATUS, &status.to_le_bytes());
        // No BARs, no requests of its own: all that changes is what it lets
        // through.
        Effects::NONE
    }

    fn bars(&self) -> Vec<BarInfo> {
        Vec::new()
    }

    fn decoded(&self) -> Vec<BarDecode> {
        Vec::new()
    }

    fn bar_read(&mut self, _: BarIndex, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&mut self, _: BarIndex, _: u64, _: &[u8]) {}

    fn forwarding(&self) -> Option<Forwarding> {
        let space = &self.space;
        let [secondary, subordinate] = [1, 2].map(|byte| space.u8(r::PRIMARY_BUS + byte));
        // In D3hot only config requests go through (PCIe 6.0 §5.3.1.4).
        let command = match self.power_state() {
            0 => space.u16(r::COMMAND),
            _ => 0,
        };
        let enabled = |bit: u16| command & bit != 0;
        let io = (
            u64::from(space.u8(r::IO) & 0xf0) << 8,
            u64::from(space.u8(r::IO + 1)) << 8 | 0xfff,
        );
        let memory = |register| {
            (
                u64::from(space.u16(register) & 0xfff0) << 16,
                u64::from(space.u16(register + 2)) << 16 | 0xf_ffff,
            )
        };
        let upper = |register| u64::from(space.u32(register)) << 32;
        let (base, limit) = memory(r::PREFETCHABLE);
        let prefetchable = (
            base | upper(r::PREFETCHABLE_BASE_UPPER),
            limit | upper(r::PREFETCHABLE_LIMIT_UPPER),
        );
        Some(Forwarding {
            secondary,
            subordinate,
            io: open(io).filter(|_| enabled(COMMAND_IO)),
            memory: open(memory(r::MEMORY)).filter(|_| enabled(COMMAND_MEMORY)),
            prefetchable: open(prefetchable).filter(|_| enabled(COMMAND_MEMORY)),
            bus_master: enabled(COMMAND_BUS_MASTER),
            link: self.is_link_up(),
        })
    }
}

/// A window from its first and last address; none when they are the wrong way
/// round. All 2^64 bytes are one too many to count: the last one is left out.
fn open((base, limit): (u64, u64)) -> Option<Window> {
    let size = limit.checked_sub(base)?.saturating_add(1);
    Some(Window { base, size })
}

#[cfg(test)]
#[path = "root_port_test.rs"]
mod tests;
