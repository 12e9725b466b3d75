use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// How the guest's CPUs run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuConfig {
    /// Who lets an idle CPU of the guest rest.
    pub idle: Idle,
}

/// Who lets an idle CPU of the guest rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Idle {
    /// The host: a CPU that halts leaves the guest, and others may have the
    /// host's CPU. Each wake-up has to enter the guest again.
    #[default]
    Host,
    /// The guest itself: HLT and PAUSE stay inside. An interrupt of an assigned
    /// device finds the CPU in the guest, which with posted interrupts costs no
    /// exit at all. In return a vCPU takes up its host CPU even while it is
    /// idle: the host counts it as busy, nothing else should run there, and the
    /// host's own power management does not see that it is idle.
    Guest,
}

impl FromStr for CpuConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let idle = match text {
            "idle=host" => Idle::Host,
            "idle=guest" => Idle::Guest,
            _ => return Err(ConfigError::CpuOption(text.to_owned())),
        };
        Ok(Self { idle })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_lets_cpus_rest_unless_told_otherwise() {
        assert_eq!(CpuConfig::default().idle, Idle::Host);
        let idle = |text: &str| text.parse::<CpuConfig>().map(|cpu| cpu.idle);
        assert_eq!(idle("idle=guest"), Ok(Idle::Guest));
        assert_eq!(idle("idle=host"), Ok(Idle::Host));
        for text in ["", "idle", "idle=", "guest", "idle=guest,idle=host"] {
            let error = ConfigError::CpuOption(text.into());
            assert_eq!(idle(text), Err(error), "{text}");
        }
        let parse = |text| serde_json::from_str::<CpuConfig>(text).unwrap();
        assert_eq!(parse("{}"), CpuConfig::default());
        assert_eq!(parse(r#"{"idle":"guest"}"#).idle, Idle::Guest);
    }
}
