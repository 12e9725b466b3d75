use std::fmt;
use std::num::NonZero;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// RAM comes in huge pages.
const MEMORY_STEP: u64 = 2 << 20;
/// More threads than any host's memory can keep up with.
pub const MAX_PREFAULT_THREADS: u8 = 64;

/// What guest RAM is made of, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RamConfig {
    /// Take it from the host's pool of huge pages of this size; otherwise it is
    /// what gives huge pages without one.
    pub pages: Option<HugePageSize>,
    /// Take it from this NUMA node of the host alone.
    pub numa_node: Option<u32>,
    /// How many threads populate it for devices, 1 to [`MAX_PREFAULT_THREADS`];
    /// as many as do any good unless it is given.
    pub prefault_threads: Option<NonZero<u8>>,
    /// When devices are opened, and it is populated and mapped for them.
    pub map: MapTime,
}

/// When devices are opened, and guest RAM is populated and mapped for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MapTime {
    /// While the guest boots. It waits where it looks for devices, until the kernel has
    /// reset them, and where it lets one reach memory, until all of RAM is mapped; a
    /// failure ends the VM then. Before the boot comes what needs no reset: the plan, the
    /// files and, by type1, the groups.
    #[default]
    BesideBoot,
    /// Before the guest's first instruction: it never waits, and a failure
    /// keeps the VM from starting. The start takes longer by the time that resets take,
    /// and the more RAM there is.
    BeforeBoot,
}

/// The size of a page from one of the host's pools (hugetlb).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum HugePageSize {
    /// 2 MiB.
    TwoMib,
    /// 1 GiB.
    OneGib,
}

/// Bytes of guest RAM, a multiple of 2 MiB and not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct MemorySize(u64);

impl RamConfig {
    /// The size of the pages that RAM consists of, in bytes: each piece of it
    /// begins and ends at a multiple.
    pub fn page_bytes(&self) -> u64 {
        self.pages.map_or(MEMORY_STEP, HugePageSize::bytes)
    }

    /// Checks what the types leave open, for a guest with `memory`.
    ///
    /// # Errors
    /// [`ConfigError`] naming the value.
    pub fn check(&self, memory: MemorySize) -> Result<(), ConfigError> {
        if let Some(pages) = self.pages
            && !memory.bytes().is_multiple_of(pages.bytes())
        {
            return Err(ConfigError::PartialPage { memory, pages });
        }
        match self.prefault_threads {
            Some(threads) if threads.get() > MAX_PREFAULT_THREADS => {
                Err(ConfigError::BadThreads(threads.get()))
            }
            _ => Ok(()),
        }
    }
}

impl HugePageSize {
    /// In bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::TwoMib => 2 << 20,
            Self::OneGib => 1 << 30,
        }
    }
}

impl FromStr for HugePageSize {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "2M" | "2m" => Ok(Self::TwoMib),
            "1G" | "1g" => Ok(Self::OneGib),
            _ => Err(ConfigError::NotAPage(text.to_owned())),
        }
    }
}

impl fmt::Display for HugePageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TwoMib => "2M",
            Self::OneGib => "1G",
        })
    }
}

impl TryFrom<String> for HugePageSize {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<HugePageSize> for String {
    fn from(size: HugePageSize) -> Self {
        size.to_string()
    }
}

impl FromStr for MapTime {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "beside-boot" => Ok(Self::BesideBoot),
            "before-boot" => Ok(Self::BeforeBoot),
            _ => Err(ConfigError::NotATime(text.to_owned())),
        }
    }
}

impl MemorySize {
    /// `bytes` of RAM.
    ///
    /// # Errors
    /// [`ConfigError::BadMemory`] for 0 and for what is no multiple of 2 MiB.
    pub fn new(bytes: u64) -> Result<Self, ConfigError> {
        if bytes == 0 || !bytes.is_multiple_of(MEMORY_STEP) {
            return Err(ConfigError::BadMemory(bytes));
        }
        Ok(Self(bytes))
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl TryFrom<u64> for MemorySize {
    type Error = ConfigError;

    fn try_from(bytes: u64) -> Result<Self, Self::Error> {
        Self::new(bytes)
    }
}

impl From<MemorySize> for u64 {
    fn from(size: MemorySize) -> Self {
        size.0
    }
}

impl FromStr for MemorySize {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let not_a_size = || ConfigError::NotASize(text.to_owned());
        let unit_at = text.len().saturating_sub(1);
        let (number, unit) = text.split_at_checked(unit_at).ok_or_else(not_a_size)?;
        let shift = match unit {
            "K" | "k" => 10,
            "M" | "m" => 20,
            "G" | "g" => 30,
            "T" | "t" => 40,
            // A bare 0 is a size, the wrong one.
            "0" if number.is_empty() => 0,
            _ => return Err(not_a_size()),
        };
        let number = if shift == 0 { "0" } else { number };
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(not_a_size());
        }
        let number: u64 = number.parse().map_err(|_| not_a_size())?;
        let bytes = number.checked_mul(1 << shift).ok_or_else(not_a_size)?;
        Self::new(bytes)
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 >> 20 {
            mib if mib.is_multiple_of(1024) => write!(f, "{} GiB", mib / 1024),
            mib => write!(f, "{mib} MiB"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_users_type() {
        assert_eq!("512M".parse(), Ok(MemorySize(512 << 20)));
        assert_eq!("2g".parse(), Ok(MemorySize(2 << 30)));
        assert_eq!("2048K".parse(), Ok(MemorySize(2 << 20)));
        assert_eq!("512M".parse::<MemorySize>().unwrap().to_string(), "512 MiB");
        assert_eq!("2048M".parse::<MemorySize>().unwrap().to_string(), "2 GiB");
    }

    #[test]
    fn what_is_no_size_is_named() {
        for text in [
            "",
            "M",
            "512",
            "half",
            "-1G",
            "+1G",
            "1.5G",
            "1GiB",
            "99999999999T",
            "1µ",
        ] {
            let error = text.parse::<MemorySize>().unwrap_err();
            assert_eq!(error, ConfigError::NotASize(text.into()), "{text}");
        }
        for text in ["0", "0M", "1M", "3M", "1K"] {
            let error = text.parse::<MemorySize>().unwrap_err();
            assert!(matches!(error, ConfigError::BadMemory(_)), "{text}");
        }
    }

    #[test]
    fn pages_that_users_type() {
        assert_eq!("2M".parse(), Ok(HugePageSize::TwoMib));
        assert_eq!("1g".parse(), Ok(HugePageSize::OneGib));
        for text in ["", "2", "4K", "2MiB", "1024M"] {
            let error = ConfigError::NotAPage(text.into());
            assert_eq!(text.parse::<HugePageSize>(), Err(error), "{text}");
        }
        let parse = |text| serde_json::from_str::<RamConfig>(text);
        assert_eq!(parse("{}").unwrap(), RamConfig::default());
        let pages = parse(r#"{"pages":"1G","map":"before-boot"}"#).unwrap();
        assert_eq!(pages.page_bytes(), 1 << 30);
        assert_eq!(pages.map, MapTime::BeforeBoot);
        assert!(parse(r#"{"pages":"1K"}"#).is_err());
    }

    #[test]
    fn times_that_users_type() {
        assert_eq!("beside-boot".parse(), Ok(MapTime::default()));
        assert_eq!("before-boot".parse(), Ok(MapTime::BeforeBoot));
        let error = "later".parse::<MapTime>().unwrap_err();
        assert!(error.to_string().contains("before-boot"), "{error}");
    }

    #[test]
    fn memory_consists_of_whole_pages() {
        let gib = RamConfig {
            pages: Some(HugePageSize::OneGib),
            ..RamConfig::default()
        };
        let check = |size: &str| gib.check(size.parse().unwrap());
        check("2G").unwrap();
        let error = check("1536M").unwrap_err();
        assert!(error.to_string().contains("1536 MiB"), "{error}");
        let threads = |threads| {
            let config = RamConfig {
                prefault_threads: NonZero::new(threads),
                ..RamConfig::default()
            };
            config.check("2M".parse().unwrap())
        };
        threads(MAX_PREFAULT_THREADS).unwrap();
        assert_eq!(threads(65), Err(ConfigError::BadThreads(65)));
    }
}
