use std::fmt;

use serde::Serialize;

use super::peer::PeerKind;
use crate::Backend;
use crate::airlock::installed;
use crate::binaries::AIRLOCK;

/// A monitor that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    Airlock(Backend),
    Peer(PeerKind),
}

impl Program {
    /// What the others are compared with.
    pub(super) const BASE: Self = Self::Airlock(Backend::Iommufd);

    /// airlock by both backends.
    pub(super) fn own() -> Vec<Self> {
        vec![Self::BASE, Self::Airlock(Backend::Type1)]
    }

    /// Its program in the nested host.
    pub(super) fn file(self) -> String {
        match self {
            Self::Airlock(_) => installed(AIRLOCK),
            Self::Peer(kind) => kind.file(),
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Airlock(backend) => f.pad(&format!("airlock {backend}")),
            Self::Peer(kind) => kind.fmt(f),
        }
    }
}

impl Serialize for Program {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
