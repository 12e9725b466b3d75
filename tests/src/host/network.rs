use super::{Host, HostError};
use crate::airlock::installed;
use crate::lab::names;

impl Host {
    /// The network interface of a device, if it has one.
    ///
    /// # Errors
    /// [`HostError`] when the nested host cannot tell.
    pub fn interface(&self, device: &str) -> Result<Option<String>, HostError> {
        let address = self.address(device)?;
        let path = format!("/sys/bus/pci/devices/{address}");
        // Virtio's interface hangs below a device of virtio's own.
        let listing = self.shell(&format!(
            "ls {path}/net {path}/virtio*/net 2>/dev/null || true"
        ))?;
        let name = listing
            .lines()
            .find(|line| !line.is_empty() && !line.ends_with(':'));
        Ok(name.map(str::to_owned))
    }

    /// Sends `count` echo requests through a NIC of the nested host to its
    /// network's gateway, and gives how many were answered. The interface is
    /// down afterwards, as it is after the boot.
    ///
    /// # Errors
    /// [`HostError::NoDevice`] when the device has no interface.
    pub fn ping(&self, device: &str, count: u32) -> Result<u32, HostError> {
        let output = self.pings(device, &format!("-c {count}"))?;
        // "3 packets transmitted, 3 packets received, 0% packet loss"
        let received = output
            .split(", ")
            .find_map(|part| part.strip_suffix(" packets received"));
        let count = received.and_then(|number| number.parse().ok());
        count.ok_or(HostError::Unexpected {
            text: output,
            expected: "the summary of ping",
        })
    }

    /// The mean round trip of `count` echo requests, each sent when the one before
    /// was answered, in milliseconds; otherwise as [`Self::ping`].
    ///
    /// # Errors
    /// As [`Self::ping`], and when none is answered.
    pub fn round_trip(&self, device: &str, count: u32) -> Result<f64, HostError> {
        let output = self.pings(device, &format!("-A -q -c {count}"))?;
        // "round-trip min/avg/max = 0.311/0.402/0.977 ms"
        let times = output.split("min/avg/max = ").nth(1);
        let mean = times.and_then(|times| times.split('/').nth(1)?.parse().ok());
        mean.ok_or(HostError::Unexpected {
            text: output,
            expected: "the summary of ping",
        })
    }

    fn pings(&self, device: &str, options: &str) -> Result<String, HostError> {
        let interface = self.interface(device)?;
        let interface =
            interface.ok_or_else(|| self.no_device(&format!("{device}'s interface")))?;
        let busybox = installed(names::BUSYBOX);
        self.shell(&format!(
            "ip() {{ {busybox} ip \"$@\"; }}
             ip addr add 10.0.2.15/24 dev {interface}
             ip link set {interface} up
             tries=100
             until grep -q 1 /sys/class/net/{interface}/carrier || [ $tries = 0 ]; do
                 tries=$((tries - 1)); sleep 0.05
             done
             {busybox} ping {options} -W 5 -I {interface} 10.0.2.2 || true
             ip link set {interface} down
             ip addr flush dev {interface}"
        ))
    }
}
