use super::{Host, HostError};
use crate::digest::Sha256;

impl Host {
    /// The SHA-256 digest of the first `bytes` bytes of an NVMe controller's
    /// namespace 1, as the nested host itself reads them. The host may just have
    /// got the controller back: its disk is waited for.
    ///
    /// # Errors
    /// [`HostError::Failed`] when the host has no such disk after 10 s, or can't
    /// read it.
    pub fn disk_digest(&self, device: &str, bytes: u64) -> Result<Sha256, HostError> {
        let address = self.address(device)?;
        let text = self.shell(&format!(
            "cd /sys/bus/pci/devices/{address}
             tries=100
             until set -- nvme/nvme*/nvme*n1 && [ -b \"/dev/${{1##*/}}\" ]; do
                 if [ $tries = 0 ]; then
                     echo no disk of {address} >&2
                     exit 1
                 fi
                 tries=$((tries - 1))
                 sleep 0.1
             done
             head -c {bytes} \"/dev/${{1##*/}}\" | sha256sum"
        ))?;
        let digest = text.split_whitespace().next().unwrap_or_default();
        Sha256::parse(digest).map_err(|_| HostError::Unexpected {
            text,
            expected: "a digest",
        })
    }
}
