//! What a VM consists of, as plain data.

mod cpu;
mod device;
mod iommu;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use passthrough::vfio::VfTokenError;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use cpu::{CpuConfig, Idle};
pub use device::{DeviceConfig, RomConfig};
pub use iommu::IommuChoice;

/// The most vCPUs a VM may have.
pub const MAX_CPUS: u8 = 8;
/// RAM comes in huge pages.
const MEMORY_STEP: u64 = 2 << 20;

/// A VM to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmConfig {
    /// bzImage or PVH ELF.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Guest RAM.
    pub memory: MemorySize,
    /// vCPUs, 1 to [`MAX_CPUS`].
    pub cpus: u8,
    /// How they run.
    #[serde(default)]
    pub cpu: CpuConfig,
    /// The devices to assign.
    pub devices: Vec<DeviceConfig>,
    /// By which of the kernel's interfaces they are taken.
    #[serde(default)]
    pub iommu: IommuChoice,
    /// What the user accepts of the devices.
    #[serde(default)]
    pub consent: Consent,
    /// What to do when the guest can't keep all of its devices.
    #[serde(default)]
    pub on_viability_loss: OnViabilityLoss,
    /// Where the guest's first serial port goes.
    pub serial: SerialOutput,
    /// How devices learn that the guest has handled their pin's interrupt.
    #[serde(default)]
    pub acknowledgement: Acknowledgement,
}

/// What to do when the host takes a device of the guest back, or puts one of
/// its group to work for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnViabilityLoss {
    /// Take the devices away from the guest, which goes on without them.
    Release,
    /// End the VM.
    #[default]
    Stop,
    /// Say so, and go on. The host waits until the VM ends.
    Warn,
}

/// Dangers that are refused unless the user names them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Consent {
    /// Devices can forge interrupts on this host.
    pub unsafe_interrupts: bool,
    /// No IOMMU confines the devices. It can't be done all the same; the plan
    /// says why.
    pub noiommu: bool,
    /// Host addresses of devices that the host still needs, as the user wrote
    /// them.
    pub force: Vec<String>,
}

/// How a device that interrupts by its pin learns that the guest has handled
/// the interrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Acknowledgement {
    /// KVM tells the host's kernel, where it can.
    #[default]
    Resampled,
    /// Each of the guest's accesses to the device's BARs is taken for it: slow,
    /// and for hosts whose KVM does not tell.
    Trapped,
}

/// Where the guest's first serial port goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SerialOutput {
    /// Standard input and output; a terminal is in raw mode meanwhile.
    #[default]
    Stdio,
    /// Output into a file, which is truncated; no input.
    File(PathBuf),
    /// Nowhere.
    Off,
}

/// Bytes of guest RAM, a multiple of 2 MiB and not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct MemorySize(u64);

/// Why something is not a VM that can be run.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// No size.
    #[error("'{0}' is not a memory size: write a number with K, M, G or T, for example 512M")]
    NotASize(String),
    /// A size that RAM can't have.
    #[error("guest memory of {0} bytes is impossible: give a multiple of 2 MiB, at least 2M")]
    BadMemory(u64),
    /// No policy.
    #[error("'{0}' is not what to do when a device is lost: write release, stop or warn")]
    NotAPolicy(String),
    /// Too few or too many vCPUs.
    #[error("{0} CPUs are impossible: give 1 to {MAX_CPUS}")]
    BadCpus(u8),
    /// Something that is no option of the CPUs.
    #[error("'{0}' is no option of the CPUs: write idle=host or idle=guest")]
    CpuOption(String),
    /// Something after a device's address that is no option.
    #[error(
        "'{option}' is no option of device {host}: write BDF, and after a comma rom=FILE, rom=off \
         (a file of that name is ./off, and one with a comma in its name must be renamed) or \
         vf-token=UUID"
    )]
    DeviceOption {
        /// The device, as the user wrote it.
        host: String,
        /// What is no option.
        option: String,
    },
    /// One option twice.
    #[error("device {host} has {option}= twice: give it once")]
    DeviceOptionTwice {
        /// The device, as the user wrote it.
        host: String,
        /// The option's name.
        option: &'static str,
    },
    /// No VF token.
    #[error("device {host}: {error}")]
    DeviceToken {
        /// The device, as the user wrote it.
        host: String,
        /// What is wrong.
        error: VfTokenError,
    },
    /// No interface to the IOMMU.
    #[error("'{0}' is no interface to the IOMMU: write auto, iommufd or type1")]
    Iommu(String),
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

impl FromStr for OnViabilityLoss {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "release" => Ok(Self::Release),
            "stop" => Ok(Self::Stop),
            "warn" => Ok(Self::Warn),
            other => Err(ConfigError::NotAPolicy(other.to_owned())),
        }
    }
}

impl VmConfig {
    /// The host addresses of the devices to assign, as the user wrote them.
    pub fn addresses(&self) -> Vec<String> {
        self.devices
            .iter()
            .map(|device| device.host.clone())
            .collect()
    }

    /// Checks what the types leave open.
    ///
    /// # Errors
    /// [`ConfigError`] naming the value.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(ConfigError::BadCpus(self.cpus));
        }
        Ok(())
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
    fn a_config_goes_through_json() {
        let config = VmConfig {
            kernel: "vmlinuz".into(),
            initrd: None,
            cmdline: String::new(),
            memory: MemorySize(2 << 20),
            cpus: 1,
            cpu: "idle=guest".parse().unwrap(),
            devices: vec![
                "0000:01:00.0".parse().unwrap(),
                "01:00.1,rom=off".parse().unwrap(),
            ],
            iommu: IommuChoice::default(),
            consent: Consent::default(),
            on_viability_loss: OnViabilityLoss::Release,
            serial: SerialOutput::File("log".into()),
            acknowledgement: Acknowledgement::Trapped,
        };
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<VmConfig>(&text).unwrap(), config);
        assert!(serde_json::from_str::<VmConfig>(&text.replace("2097152", "1")).is_err());
    }

    #[test]
    fn policies_that_users_type() {
        assert_eq!("release".parse(), Ok(OnViabilityLoss::Release));
        assert_eq!("stop".parse(), Ok(OnViabilityLoss::default()));
        assert_eq!("warn".parse(), Ok(OnViabilityLoss::Warn));
        let error = "Stop".parse::<OnViabilityLoss>().unwrap_err();
        assert!(error.to_string().contains("release, stop or warn"));
    }

    #[test]
    fn cpus_are_bounded() {
        let mut config: VmConfig = serde_json::from_str(
            r#"{"kernel":"k","initrd":null,"cmdline":"","memory":2097152,"cpus":1,"devices":[],"serial":"stdio"}"#,
        )
        .unwrap();
        config.check().unwrap();
        for cpus in [0, 9] {
            config.cpus = cpus;
            assert_eq!(config.check(), Err(ConfigError::BadCpus(cpus)));
        }
    }
}
