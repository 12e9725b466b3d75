use std::fs;
use std::path::Path;

use super::{Host, HostError, INSTALL_DIRECTORY};
use crate::initramfs::addition;
use crate::lab::names;

/// What tasks may call. `unbind VENDOR:DEVICE` sets `$device` and `$address` to
/// the first device of these and takes it from its driver; `rebind` gives it back.
const FUNCTIONS: &str = r#"
unbind() {
    for device in /sys/bus/pci/devices/*; do
        [ "$(cat $device/vendor):$(cat $device/device)" = "0x${1%:*}:0x${1#*:}" ] && break
    done
    address=${device##*/}
    driver=$(readlink -f $device/driver)
    echo $address >$driver/unbind
}
rebind() { echo $address >$driver/bind; }
"#;

impl Host {
    /// The guests' initramfs with more in it: programs by name, and functions
    /// of a shell, `task_NAME`, for tasks of that name. These may use `unbind
    /// VENDOR:DEVICE`, which sets `$device` and `$address`, and `rebind`. Answers
    /// its path in the nested host. `name` tells it from others in the same host.
    ///
    /// # Errors
    /// [`HostError::Failed`] when it can't be put together there.
    ///
    /// # Panics
    /// When a program can't be read, or the work directory not written to.
    pub fn guest_initrd(
        &self,
        name: &str,
        programs: &[(&str, &Path)],
        tasks: &str,
    ) -> Result<String, HostError> {
        let tasks = format!("{FUNCTIONS}{tasks}");
        let archive = addition(programs, &tasks).unwrap_or_else(|error| panic!("{error}"));
        let file = self.work_directory().join(name);
        fs::write(&file, archive).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let initrd = format!("{INSTALL_DIRECTORY}/{name}");
        let guest = names::INITRD;
        self.shell(&format!(
            "cat {INSTALL_DIRECTORY}/{guest} {INSTALL_DIRECTORY}/work/{name} >{initrd}"
        ))?;
        Ok(initrd)
    }
}
