use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;

/// The interrupt pin as the kernel keeps it
/// (drivers/vfio/pci/vfio_pci_intrs.c): masked each time that it fires.
#[derive(Debug, Default)]
pub(super) struct FakeIntx {
    /// The device asserts it.
    asserted: bool,
    /// The command register's disable bit, as the user wrote it.
    disabled: bool,
    /// Nothing while it is off.
    on: Option<On>,
}

#[derive(Debug)]
struct On {
    event: Option<File>,
    unmask: Option<File>,
    masked: bool,
}

impl FakeIntx {
    pub(super) fn is_on(&self) -> bool {
        self.on.is_some()
    }

    /// Whether it would fire if the device asserted it.
    pub(super) fn is_open(&self) -> bool {
        self.on.as_ref().is_some_and(|on| !on.masked)
    }

    pub(super) fn is_asserted(&self) -> bool {
        self.asserted
    }

    /// As `VFIO_DEVICE_SET_IRQS` with a trigger.
    pub(super) fn set(&mut self, start: u32, events: &[Option<BorrowedFd<'_>>]) -> io::Result<()> {
        let (0, [event]) = (start, events) else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        let event = event.map(|event| event.try_clone_to_owned()).transpose()?;
        let event = event.map(File::from);
        match &mut self.on {
            Some(on) => on.event = event,
            None => {
                self.on = Some(On {
                    event,
                    unmask: None,
                    masked: self.disabled,
                });
            }
        }
        self.fire();
        Ok(())
    }

    /// As `VFIO_IRQ_SET_ACTION_UNMASK` with an eventfd.
    pub(super) fn set_unmask(&mut self, event: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let on = self.on()?;
        on.unmask = match event {
            Some(event) => Some(File::from(event.try_clone_to_owned()?)),
            None => None,
        };
        self.look_for_unmask();
        Ok(())
    }

    /// As `VFIO_IRQ_SET_ACTION_UNMASK` without data.
    pub(super) fn unmask(&mut self) -> io::Result<()> {
        let disabled = self.disabled;
        let on = self.on()?;
        if on.masked && !disabled {
            on.masked = false;
            self.fire();
        }
        Ok(())
    }

    pub(super) fn turn_off(&mut self) {
        self.on = None;
    }

    /// The user wrote the command register.
    pub(super) fn set_disabled(&mut self, disabled: bool) {
        if self.disabled == disabled {
            return;
        }
        self.disabled = disabled;
        match &mut self.on {
            Some(on) if disabled => on.masked = true,
            // It is on, so it can be unmasked.
            Some(_) => drop(self.unmask()),
            None => {}
        }
    }

    /// The device asserts the pin, or no longer.
    pub(super) fn assert(&mut self, asserted: bool) {
        self.asserted = asserted;
        self.fire();
    }

    /// What the kernel does by itself as soon as the unmask event is signalled.
    pub(super) fn look_for_unmask(&mut self) {
        let event = self.on.as_mut().and_then(|on| on.unmask.as_mut());
        if event.is_some_and(|event| event.read_exact(&mut [0; 8]).is_ok()) {
            // It is on.
            drop(self.unmask());
        }
    }

    fn on(&mut self) -> io::Result<&mut On> {
        let off = io::Error::from_raw_os_error(libc::EINVAL);
        self.on.as_mut().ok_or(off)
    }

    fn fire(&mut self) {
        if let (true, Some(on)) = (self.asserted, &mut self.on)
            && !on.masked
        {
            on.masked = true;
            if let Some(event) = &mut on.event {
                // Its counter is far from full.
                drop(event.write_all(&1_u64.to_ne_bytes()));
            }
        }
    }
}
