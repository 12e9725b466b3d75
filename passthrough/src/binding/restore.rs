use std::fmt;

use serde::Serialize;

use super::device::DeviceName;

/// What became of a device that was to be given back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Released {
    /// The device.
    pub device: DeviceName,
    /// What became of it.
    pub outcome: Outcome,
}

/// How giving back went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// It is as it was before.
    Back {
        /// The driver that it is on again.
        driver: Option<String>,
    },
    /// It is not in the host any more; there is nothing to give back.
    Gone,
    /// Somebody else has put it on another driver meanwhile. It is left there.
    LeftAlone {
        /// The driver.
        driver: String,
    },
    /// It is still held: the journal keeps it, and another try is possible.
    Failed {
        /// Why, and what to do.
        reason: String,
    },
}

impl Released {
    /// Whether nothing is left to be done about the device.
    pub fn is_back(&self) -> bool {
        !matches!(self.outcome, Outcome::Failed { .. })
    }
}

impl fmt::Display for Released {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = &self.device;
        match &self.outcome {
            Outcome::Back {
                driver: Some(driver),
            } => write!(f, "{device} is back on {driver}"),
            Outcome::Back { driver: None } => write!(f, "{device} is without a driver, as before"),
            Outcome::Gone => write!(f, "{device} has left the host: nothing to give back"),
            Outcome::LeftAlone { driver } => write!(
                f,
                "{device} is on {driver} by now, which somebody else did: left alone"
            ),
            Outcome::Failed { reason } => write!(f, "{device} is not back: {reason}"),
        }
    }
}
