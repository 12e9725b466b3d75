use std::path::PathBuf;
use std::str::FromStr;

use passthrough::vfio::VfToken;
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// A host device to assign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceConfig {
    /// Its address on the host, as the user wrote it.
    pub host: String,
    /// What the guest finds in its option ROM.
    #[serde(default)]
    pub rom: RomConfig,
    /// The token of a virtual function, or of the physical one, whose
    /// counterparts are in VFIO too.
    #[serde(default)]
    pub vf_token: Option<VfToken>,
}

/// What the guest finds in a device's option ROM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RomConfig {
    /// What the device has in it.
    #[default]
    Device,
    /// This file's contents.
    File(PathBuf),
    /// The guest sees no ROM.
    Off,
}

impl FromStr for DeviceConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',');
        let host = parts.next().unwrap_or_default().to_owned();
        let (mut rom, mut vf_token) = (None, None);
        for part in parts {
            let no_option = || ConfigError::DeviceOption {
                host: host.clone(),
                option: part.to_owned(),
            };
            let (option, value) = part.split_once('=').ok_or_else(no_option)?;
            let (option, twice) = match (option, value) {
                ("rom", "off") => ("rom", rom.replace(RomConfig::Off).is_some()),
                ("rom", path) if !path.is_empty() => {
                    ("rom", rom.replace(RomConfig::File(path.into())).is_some())
                }
                ("vf-token", uuid) => {
                    let token: VfToken = uuid.parse().map_err(|error| {
                        let host = host.clone();
                        ConfigError::DeviceToken { host, error }
                    })?;
                    ("vf-token", vf_token.replace(token).is_some())
                }
                _ => return Err(no_option()),
            };
            if twice {
                return Err(ConfigError::DeviceOptionTwice { host, option });
            }
        }
        Ok(Self {
            host,
            rom: rom.unwrap_or_default(),
            vf_token,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_users_type() {
        let device = |host: &str, rom| {
            let host = host.to_owned();
            let vf_token = None;
            Ok(DeviceConfig {
                host,
                rom,
                vf_token,
            })
        };
        assert_eq!("01:00.0".parse(), device("01:00.0", RomConfig::Device));
        assert_eq!("01:00.0,rom=off".parse(), device("01:00.0", RomConfig::Off));
        let file = RomConfig::File("/lib/a=b.rom".into());
        assert_eq!("01:00.0,rom=/lib/a=b.rom".parse(), device("01:00.0", file));
        let file = RomConfig::File("./off".into());
        assert_eq!("01:00.0,rom=./off".parse(), device("01:00.0", file));
    }

    #[test]
    fn tokens_that_users_type() {
        let uuid = "00112233-4455-6677-8899-aabbccddeeff";
        let text = format!("01:00.0,rom=off,vf-token={uuid}");
        let device: DeviceConfig = text.parse().unwrap();
        assert_eq!(device.rom, RomConfig::Off);
        assert_eq!(device.vf_token.unwrap().to_string(), uuid);
        let json = serde_json::to_string(&device).unwrap();
        assert_eq!(serde_json::from_str::<DeviceConfig>(&json).unwrap(), device);
    }

    #[test]
    fn what_is_no_option_of_a_device_is_named() {
        for option in ["", "rom", "rom=", "Rom=off", "room=off", " rom=off"] {
            let text = format!("01:00.0,{option}");
            let error = text.parse::<DeviceConfig>().unwrap_err();
            let (host, option) = ("01:00.0".to_owned(), option.to_owned());
            assert_eq!(error, ConfigError::DeviceOption { host, option });
        }
        let token = "01:00.0,vf-token=00112233-4455-6677-8899-aabbccddeeff";
        for text in ["01:00.0,vf-token=1", "01:00.0,vf-token=", "1,vf-token"] {
            assert!(text.parse::<DeviceConfig>().is_err(), "{text}");
        }
        let twice = format!("{token},rom=off,{}", &token[8..]);
        let error = twice.parse::<DeviceConfig>().unwrap_err();
        assert!(error.to_string().contains("vf-token= twice"), "{error}");
        let error = "01:00.0,rom=off,rom=a".parse::<DeviceConfig>().unwrap_err();
        assert!(error.to_string().contains("rom= twice"), "{error}");
    }

    #[test]
    fn a_device_in_json_may_leave_out_its_options() {
        let parse = |text| serde_json::from_str::<DeviceConfig>(text).unwrap();
        let device = parse(r#"{"host":"01:00.0"}"#);
        assert_eq!(device, "01:00.0".parse().unwrap());
        let device = parse(r#"{"host":"01:00.0","rom":{"file":"a"}}"#);
        assert_eq!(device, "01:00.0,rom=a".parse().unwrap());
    }
}
