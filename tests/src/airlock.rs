//! airlock's command line, as steps.

use std::time::Duration;

use devices::pci::PciAddress;

use crate::backend::Backend;
use crate::binaries::AIRLOCK;
use crate::host::{INSTALL_DIRECTORY, Step};
use crate::lab::names;

/// How long a guest may run unless a scenario says otherwise. It boots in a few
/// seconds; a busy machine is several times slower.
const GUEST_LIMIT: Duration = Duration::from_secs(90);

/// The path in the nested host of a file that the lab installs there.
pub fn installed(name: &str) -> String {
    format!("{INSTALL_DIRECTORY}/{name}")
}

/// `airlock check` for these devices.
pub fn check(devices: &[PciAddress]) -> Step {
    let devices = devices.iter().map(ToString::to_string);
    airlock(["check".to_owned()].into_iter().chain(devices))
}

/// The same, as `airlock run` would have them by this backend.
pub fn check_by(backend: Backend, devices: &[PciAddress]) -> Step {
    let words = [
        "check".to_owned(),
        "--iommu".to_owned(),
        backend.to_string(),
    ];
    let devices = devices.iter().map(ToString::to_string);
    airlock(words.into_iter().chain(devices))
}

/// Any command of airlock.
pub fn airlock<S: Into<String>>(arguments: impl IntoIterator<Item = S>) -> Step {
    let arguments = arguments.into_iter().map(Into::into);
    Step::argv([installed(AIRLOCK)].into_iter().chain(arguments))
}

/// `airlock run`, with the lab's kernel and guest unless told otherwise.
#[derive(Clone, Debug)]
pub struct Run {
    kernel: String,
    initrd: Option<String>,
    cmdline: String,
    memory: String,
    cpus: String,
    backend: Option<Backend>,
    devices: Vec<String>,
    extra: Vec<String>,
    limit: Duration,
}

impl Run {
    /// A guest of 512 MiB and 1 vCPU that boots the lab's bzImage and does
    /// `tasks`, as `resources/guest-init.sh` has them: `nvme,poweroff`.
    pub fn tasks(tasks: &str) -> Self {
        Self {
            kernel: installed(names::BZIMAGE),
            initrd: Some(installed(names::INITRD)),
            cmdline: format!("console=ttyS0 quiet panic=-1 lab.do={tasks}"),
            memory: "512M".to_owned(),
            cpus: "1".to_owned(),
            backend: None,
            devices: Vec::new(),
            extra: Vec::new(),
            limit: GUEST_LIMIT,
        }
    }

    /// Boots the same kernel by PVH instead.
    pub fn pvh(self) -> Self {
        self.kernel(installed(names::ELF))
    }

    /// Another kernel, by its path in the nested host.
    pub fn kernel(mut self, path: impl Into<String>) -> Self {
        self.kernel = path.into();
        self
    }

    /// Another initrd, by its path in the nested host, or none.
    pub fn initrd(mut self, path: Option<String>) -> Self {
        self.initrd = path;
        self
    }

    /// Adds words to the guest's kernel command line.
    pub fn cmdline(mut self, words: &str) -> Self {
        self.cmdline = format!("{} {words}", self.cmdline);
        self
    }

    /// `--memory`, as it's written.
    pub fn memory(mut self, size: impl Into<String>) -> Self {
        self.memory = size.into();
        self
    }

    /// `--cpus`, as it's written.
    pub fn cpus(mut self, cpus: impl ToString) -> Self {
        self.cpus = cpus.to_string();
        self
    }

    /// `--iommu`: how devices are had. Without it airlock chooses.
    pub fn iommu(mut self, backend: Backend) -> Self {
        self.backend = Some(backend);
        self
    }

    /// Assigns a device; the text may be no address, for a test of just that.
    pub fn device(mut self, address: impl ToString) -> Self {
        self.devices.push(address.to_string());
        self
    }

    /// Has the devices bound for the life of the VM.
    pub fn bind(self) -> Self {
        self.arg("--bind")
    }

    /// Adds an argument as it is.
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.extra.push(argument.into());
        self
    }

    /// Has the timeline written to a file of the nested host.
    pub fn timeline(self, path: impl Into<String>) -> Self {
        self.arg("--timeline").arg(path)
    }

    /// How long the guest may run (default 90 s).
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The step.
    pub fn step(&self) -> Step {
        let mut argv = vec!["run".to_owned()];
        let mut option = |name: &str, value: &str| {
            argv.extend([name.to_owned(), value.to_owned()]);
        };
        option("--kernel", &self.kernel);
        if let Some(initrd) = &self.initrd {
            option("--initrd", initrd);
        }
        option("--cmdline", &self.cmdline);
        option("--memory", &self.memory);
        option("--cpus", &self.cpus);
        if let Some(backend) = self.backend {
            option("--iommu", &backend.to_string());
        }
        for device in &self.devices {
            option("--device", device);
        }
        argv.extend(self.extra.iter().cloned());
        airlock(argv).limit(self.limit)
    }
}

/// The number that stands before `word` in what airlock says, such as
/// `--stats` does.
///
/// # Panics
/// When there is none.
#[track_caller]
pub fn number_before(text: &str, word: &str) -> u64 {
    let found = text.find(word).and_then(|at| {
        let before = text[..at].trim_end();
        let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    });
    found.unwrap_or_else(|| panic!("no number before '{word}' in {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_has_its_arguments_in_order() {
        let step = Run::tasks("nvme,poweroff")
            .pvh()
            .cmdline("lab.bytes=65536")
            .memory("1G")
            .cpus(2)
            .iommu(Backend::Type1)
            .device("0000:01:00.0")
            .device("0000:02:00.0")
            .timeline("/run/t.json")
            .step();
        assert_eq!(
            step.title(),
            "/run/lab/airlock run --kernel /run/lab/vmlinux --initrd /run/lab/guest.cpio \
             --cmdline console=ttyS0 quiet panic=-1 lab.do=nvme,poweroff lab.bytes=65536 \
             --memory 1G --cpus 2 --iommu type1 --device 0000:01:00.0 --device 0000:02:00.0 \
             --timeline /run/t.json"
        );
        assert!(
            !Run::tasks("x")
                .initrd(None)
                .step()
                .title()
                .contains("--initrd")
        );
    }

    #[test]
    fn a_check_names_its_devices() {
        let address = PciAddress::new(0, 1, 0, 0).unwrap();
        assert_eq!(
            check(&[address, address]).title(),
            "/run/lab/airlock check 0000:01:00.0 0000:01:00.0"
        );
        assert_eq!(
            check_by(Backend::Iommufd, &[address]).title(),
            "/run/lab/airlock check --iommu iommufd 0000:01:00.0"
        );
    }
}
