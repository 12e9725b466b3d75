use std::fmt;

use serde::{Deserialize, Serialize};

use super::sysfs::{Config, Host};

/// The most that is looked at of a list of capabilities: as many as fit.
const STANDARD_LIMIT: usize = 48;
const EXTENDED_LIMIT: usize = 960;

/// `PCI_CAP_ID_EXP` and `PCI_EXT_CAP_ID_ACS` (linux/pci_regs.h).
const EXPRESS: u8 = 0x10;
const ACS: u16 = 0x0d;

/// How a function passes on what devices send to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routing {
    /// What kind of PCIe function it is; none for conventional PCI.
    pub kind: Option<PortKind>,
    /// Whether it keeps them apart.
    pub acs: Acs,
    /// Its slot has more functions (PCIe 6.0 §7.5.1.1.9).
    pub multifunction: bool,
}

/// The device or port type (PCIe 6.0 §7.5.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortKind {
    /// An endpoint, legacy and root complex integrated ones too.
    Endpoint,
    /// A root port.
    RootPort,
    /// A switch's port towards the root.
    UpstreamPort,
    /// A switch's port away from the root.
    DownstreamPort,
    /// A bridge from PCIe to conventional PCI.
    ToConventional,
    /// A bridge from conventional PCI to PCIe.
    FromConventional,
    /// A root complex event collector, or a type that PCIe does not know.
    Other,
}

/// Access Control Services (PCIe 6.0 §7.7.11): whether requests between
/// devices have to pass by the IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Acs {
    /// The function has no ACS.
    Missing,
    /// What it has, and what is on.
    Present {
        /// Its capability register.
        capable: u16,
        /// Its control register.
        enabled: u16,
    },
    /// Config space could not be read so far: that takes the superuser.
    Unknown,
}

impl Acs {
    /// What Linux wants on (drivers/iommu/iommu.c, `REQ_ACS_FLAGS`): source
    /// validation, request and completion redirect, upstream forwarding.
    const WANTED: u16 = 0x1d;
    const NAMES: [(u16, &str); 4] = [
        (0x01, "source validation"),
        (0x04, "request redirect"),
        (0x08, "completion redirect"),
        (0x10, "upstream forwarding"),
    ];

    /// Whether something is known to be lacking.
    pub fn lacks(self) -> bool {
        match self {
            Self::Missing => true,
            Self::Present { capable, enabled } => wanted(capable) & !enabled != 0,
            Self::Unknown => false,
        }
    }
}

/// Of what Linux wants, what a function with these capabilities must have on.
/// What they leave out is hard-wired (drivers/pci/pci.c,
/// `pci_acs_flags_enabled`).
fn wanted(capable: u16) -> u16 {
    Acs::WANTED & capable
}

impl fmt::Display for Acs {
    /// What is lacking: the end of a sentence about the function.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Missing => f.write_str("has no ACS"),
            Self::Unknown => f.write_str("does not show its ACS to this user"),
            Self::Present { capable, enabled } => {
                let off = wanted(capable) & !enabled;
                let names: Vec<_> = Self::NAMES
                    .iter()
                    .filter(|(bit, _)| off & bit != 0)
                    .map(|(_, name)| *name)
                    .collect();
                if names.is_empty() {
                    f.write_str("has ACS on")
                } else {
                    write!(f, "has ACS, but not on: {}", names.join(", "))
                }
            }
        }
    }
}

impl Routing {
    /// Reads it out of the config space of the function `name`; nothing when
    /// that can't be read.
    pub(super) fn read(host: &Host, name: &str) -> Option<Self> {
        let config = host.config(name).ok()??;
        let multifunction = config.byte(0x0e)? & 0x80 != 0;
        let Some(flags) = express_flags(&config)? else {
            return Some(Self {
                kind: None,
                acs: Acs::Missing,
                multifunction,
            });
        };
        Some(Self {
            kind: Some(PortKind::from_flags(flags)),
            acs: acs(&config).unwrap_or(Acs::Unknown),
            multifunction,
        })
    }
}

impl PortKind {
    fn from_flags(flags: u16) -> Self {
        match flags >> 4 & 0xf {
            0 | 1 | 9 => Self::Endpoint,
            4 => Self::RootPort,
            5 => Self::UpstreamPort,
            6 => Self::DownstreamPort,
            7 => Self::ToConventional,
            8 => Self::FromConventional,
            _ => Self::Other,
        }
    }
}

/// The flags register of the PCIe capability, if there is one; nothing at all
/// when the list goes on where this user may not read.
fn express_flags(config: &Config) -> Option<Option<u16>> {
    // Bit 4 of the status register: there is a list.
    if config.word(0x06)? & 0x10 == 0 {
        return Some(None);
    }
    let mut at = config.byte(0x34)?;
    for _ in 0..STANDARD_LIMIT {
        at &= !3;
        if at < 0x40 {
            return Some(None);
        }
        let header = config.word(at.into())?;
        if header as u8 == EXPRESS {
            return Some(Some(config.word(u64::from(at) + 2)?));
        }
        at = (header >> 8) as u8;
    }
    Some(None)
}

/// Nothing when this user may not read that far.
fn acs(config: &Config) -> Option<Acs> {
    let mut at = 0x100;
    for _ in 0..EXTENDED_LIMIT {
        let header = match config.dword(at) {
            Some(header) => header,
            // A function with 256 bytes of config space ends there.
            None if at == 0x100 && config.byte(0xff).is_some() => return Some(Acs::Missing),
            None => return None,
        };
        if header == 0 || header == u32::MAX {
            return Some(Acs::Missing);
        }
        if header as u16 == ACS {
            return Some(Acs::Present {
                capable: config.word(at + 4)?,
                enabled: config.word(at + 6)?,
            });
        }
        at = u64::from(header >> 20 & !3);
        if at < 0x100 {
            return Some(Acs::Missing);
        }
    }
    Some(Acs::Missing)
}

#[cfg(test)]
#[path = "acs_test.rs"]
mod tests;
