use serde::{Deserialize, Serialize};

use super::sysfs::Host;

/// The running kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// As `uname -r` says; empty when it could not be read.
    pub release: String,
    /// The first two numbers of the release.
    pub version: Option<(u32, u32)>,
}

impl Kernel {
    /// The kernel that calls itself `release`.
    pub fn from_release(release: &str) -> Self {
        Self {
            release: release.to_owned(),
            version: version(release),
        }
    }

    pub(super) fn read(host: &Host) -> Self {
        let release = host.text("/proc/sys/kernel/osrelease").ok().flatten();
        Self::from_release(&release.unwrap_or_default())
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions() {
        for (release, expected) in [
            ("6.12.107", Some((6, 12))),
            ("5.10.0-28-amd64", Some((5, 10))),
            ("5.19-rc3", Some((5, 19))),
            ("6.1+", Some((6, 1))),
            ("", None),
            ("next", None),
            ("6", None),
            ("99999999999.1", None),
        ] {
            assert_eq!(Kernel::from_release(release).version, expected, "{release}");
        }
    }
}
