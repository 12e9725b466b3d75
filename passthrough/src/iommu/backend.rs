use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// By which of the kernel's interfaces devices are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// The devices' own files and iommufd (Linux 6.6).
    Iommufd,
    /// The groups' files and a container with the type1 IOMMU driver.
    #[default]
    Type1,
}

/// What is no backend.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("'{0}' is no interface to the IOMMU: write iommufd or type1")]
pub struct BackendError(String);

impl FromStr for Backend {
    type Err = BackendError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "iommufd" => Ok(Self::Iommufd),
            "type1" => Ok(Self::Type1),
            other => Err(BackendError(other.to_owned())),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iommufd => "iommufd",
            Self::Type1 => "type1",
        })
    }
}
