use std::sync::Arc;

use devices::pci::{ConfigTarget, PciAddress, RootComplex};

use super::Arrival;
use crate::topology::Answers;

/// Stands before the root complex until the assigned devices are in it.
///
/// Linux looks at what all functions are early in its boot, for those with quirks
/// (arch/x86/kernel/early-quirks.c), and at nothing else before it enumerates them. So
/// that much is answered at once, and any other access to a function that is awaited waits
/// until it is there. If it does not come, there is nothing.
#[derive(Debug)]
pub struct ConfigGate {
    root: Arc<RootComplex>,
    arrival: Arc<Arrival>,
    /// Of each function that is awaited.
    foretold: Answers,
}

impl ConfigGate {
    /// Before `root`, in which those of `foretold` stand once they have arrived.
    pub fn new(root: Arc<RootComplex>, arrival: Arc<Arrival>, foretold: Answers) -> Self {
        Self {
            root,
            arrival,
            foretold,
        }
    }

    /// Waits for the function at `address`, if it is awaited. False when it does not come.
    fn wait(&self, address: PciAddress) -> bool {
        self.arrival.is_here() || !self.foretold.contains_key(&address) || self.arrival.wait()
    }

    /// What is known of `length` bytes at `register`.
    fn foretold(&self, address: PciAddress, register: u16, length: usize) -> Option<&[u8]> {
        let mut known = self.foretold.get(&address)?.iter();
        known.find_map(|(first, bytes)| {
            let at = usize::from(register.checked_sub(*first)?);
            bytes.get(at..at.checked_add(length)?)
        })
    }
}

impl ConfigTarget for ConfigGate {
    fn config_read(&self, address: PciAddress, register: u16, data: &mut [u8]) {
        if !self.arrival.is_here()
            && let Some(known) = self.foretold(address, register, data.len())
        {
            data.copy_from_slice(known);
        } else if self.wait(address) {
            self.root.config_read(address, register, data);
        } else {
            data.fill(0xff);
        }
    }

    fn config_write(&self, address: PciAddress, register: u16, data: &[u8]) {
        if self.wait(address) {
            self.root.config_write(address, register, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::nobody;
    use super::*;
    use devices::pci::{Change, EffectSink, HostBridge};
    use std::sync::Mutex;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[derive(Debug)]
    struct Ignore;

    impl EffectSink for Ignore {
        fn apply(&self, _: &RootComplex, _: &[Change]) {}
    }

    const FORETOLD: [u8; 4] = [1, 2, 3, 4];

    fn address(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    /// A host bridge at 00:00.0, and somebody at 00:01.0 who is awaited.
    fn gate() -> ConfigGate {
        let root = Arc::new(RootComplex::new(Arc::new(Ignore)));
        let bridge = || Arc::new(Mutex::new(HostBridge::new()));
        root.add(address("0000:00:00.0"), bridge()).unwrap();
        let answers = vec![(0, FORETOLD.to_vec()), (0x0e, vec![0])];
        let foretold = Answers::from([(address("0000:00:01.0"), answers)]);
        ConfigGate::new(root, Arrival::new(), foretold)
    }

    fn read(gate: &ConfigGate, place: &str, register: u16) -> u16 {
        let mut data = [0; 2];
        gate.config_read(address(place), register, &mut data);
        u16::from_le_bytes(data)
    }

    #[test]
    fn what_is_foretold_is_answered_at_once_and_all_else_waits() {
        let gate = gate();
        assert_eq!(read(&gate, "0000:00:01.0", 2), 0x0403);
        // The host bridge is there, and where nobody is awaited nobody is.
        assert_eq!(read(&gate, "0000:00:00.0", 0), 0x1b36);
        assert_eq!(read(&gate, "0000:00:02.0", 0), 0xffff);
        let (tell, told) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| tell.send(read(&gate, "0000:00:01.0", 3)).unwrap());
            // Half of it is foretold.
            assert!(told.recv_timeout(Duration::from_millis(50)).is_err());
            let bridge = Arc::new(Mutex::new(HostBridge::new()));
            gate.root.add(address("0000:00:01.0"), bridge).unwrap();
            gate.arrival.complete(nobody());
            // The function's own: the upper half of its device id, and its command.
            assert_eq!(told.recv().unwrap(), 0x0000);
        });
        assert_eq!(read(&gate, "0000:00:01.0", 0), 0x1b36, "not as foretold");
    }

    #[test]
    fn who_does_not_come_is_not_there() {
        let gate = gate();
        gate.arrival.give_up();
        gate.config_write(address("0000:00:01.0"), 4, &[0; 2]);
        assert_eq!(read(&gate, "0000:00:01.0", 4), 0xffff);
        assert_eq!(read(&gate, "0000:00:00.0", 0), 0x1b36);
    }
}
