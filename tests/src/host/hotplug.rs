use std::thread;
use std::time::{Duration, Instant};

use devices::pci::PciAddress;
use serde_json::{Map, Value, json};

use super::{Host, HostError, QmpError};

/// The longest wait for the nested host's kernel to find a new device.
const FOUND_LIMIT: Duration = Duration::from_secs(20);

impl Host {
    /// Plugs in a device that the machine has as
    /// [absent](crate::machine::Device::absent), and waits until the nested
    /// host's kernel has found it. Which driver it then has, if any, is
    /// another matter.
    ///
    /// # Errors
    /// [`HostError::Monitor`] with QEMU's words when QEMU refuses, and
    /// [`HostError::NoDevice`] when the kernel does not find it.
    pub fn plug(&self, name: &str) -> Result<PciAddress, HostError> {
        let value = self.absent.get(name).ok_or_else(|| self.no_device(name))?;
        self.monitor("device_add", arguments(value))?;
        let deadline = Instant::now() + FOUND_LIMIT;
        loop {
            self.find_devices()?;
            match self.address(name) {
                Err(HostError::NoDevice { .. }) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(50));
                }
                result => return result,
            }
        }
    }

    /// Asks to have a device unplugged, as pressing the button of its slot does:
    /// the nested host's kernel decides when. See [`Host::wait_unplugged`].
    ///
    /// # Errors
    /// [`HostError::Monitor`] with QEMU's words when QEMU refuses.
    pub fn unplug(&self, name: &str) -> Result<(), HostError> {
        let device = json!({ "id": name });
        let arguments = device.as_object().cloned().unwrap_or_default();
        self.monitor("device_del", arguments)
    }

    /// Waits until a device that was to be unplugged is gone.
    ///
    /// # Errors
    /// [`HostError::Monitor`] when it is still there after `limit`.
    pub fn wait_unplugged(&self, name: &str, limit: Duration) -> Result<(), HostError> {
        let gone = self
            .shared
            .qmp()
            .wait_event(&format!("'{name}' is gone"), limit, |event| {
                event.name == "DEVICE_DELETED" && event.data["device"] == name
            });
        gone.map_err(|error| self.monitor_error(error))?;
        self.known().remove(name);
        Ok(())
    }

    fn monitor(&self, command: &str, arguments: Map<String, Value>) -> Result<(), HostError> {
        let answer = self.shared.qmp().execute(command, arguments);
        answer.map_err(|error| self.monitor_error(error))?;
        Ok(())
    }

    fn monitor_error(&self, source: QmpError) -> HostError {
        HostError::Monitor {
            machine: self.shared.machine.clone(),
            source,
        }
    }
}

/// The value of a `-device` option as the arguments of `device_add`.
fn arguments(value: &str) -> Map<String, Value> {
    let pairs = value.split(',').enumerate().map(|(index, part)| {
        let (name, value) = match part.split_once('=') {
            Some(pair) => pair,
            None if index == 0 => ("driver", part),
            // As on the command line, a property by itself is a flag that's on.
            None => (part, "on"),
        };
        (name.to_owned(), Value::from(value))
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_becomes_arguments() {
        let given = arguments("e1000e,netdev=nic-net,id=nic,bus=port2,addr=0x0,flag");
        assert_eq!(
            Value::from(given),
            json!({
                "driver": "e1000e", "netdev": "nic-net", "id": "nic",
                "bus": "port2", "addr": "0x0", "flag": "on",
            })
        );
    }
}
