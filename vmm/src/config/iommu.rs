use std::str::FromStr;

use passthrough::iommu::Backend;
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// By which of the kernel's interfaces devices are taken: a certain one, or the
/// best that is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IommuChoice(pub Option<Backend>);

impl FromStr for IommuChoice {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" {
            return Ok(Self(None));
        }
        let backend = text.parse();
        let backend = backend.map_err(|_| ConfigError::Iommu(text.to_owned()))?;
        Ok(Self(Some(backend)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_that_users_type() {
        assert_eq!("auto".parse(), Ok(IommuChoice::default()));
        assert_eq!("type1".parse(), Ok(IommuChoice(Some(Backend::Type1))));
        assert_eq!("iommufd".parse(), Ok(IommuChoice(Some(Backend::Iommufd))));
        let error = "Type1".parse::<IommuChoice>().unwrap_err().to_string();
        assert!(error.contains("auto, iommufd or type1"), "{error}");
    }
}
