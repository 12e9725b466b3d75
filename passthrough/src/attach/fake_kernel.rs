//! A kernel in memory that hands devices over, keeps count of what is open, and
//! refuses any one step.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::pci::PciAddress;

use super::{Calls, ContainerKind};
use crate::vfio::VfToken;

/// A file of this kernel: one end of a pair of sockets. The kernel keeps the
/// other end, which tells when the last user has closed it.
#[derive(Debug)]
struct Open {
    name: String,
    end: UnixStream,
    number: i32,
}

impl Open {
    fn is_closed(&self) -> bool {
        use std::io::Read;
        matches!((&self.end).read(&mut [0]), Ok(0))
    }
}

#[derive(Debug, Default)]
struct State {
    /// Steps carried out or refused so far, and the one to refuse.
    steps: usize,
    refuse: Option<usize>,
    log: Vec<String>,
    files: Vec<Open>,
    /// Group's file to container's file, by their numbers in the test.
    joined: BTreeMap<i32, i32>,
    has_iommu: Vec<i32>,
    told: Vec<i32>,
    spaces: Vec<u32>,
    made: u32,
}

/// See the module's page. Clones are the same kernel.
#[derive(Clone, Debug, Default)]
pub(super) struct FakeKernel(Arc<Mutex<State>>);

impl FakeKernel {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses the step after so many.
    pub(super) fn refuse_after(&self, steps: usize) {
        let mut state = self.state();
        state.refuse = Some(state.steps + steps);
    }

    /// Refuses none any more.
    pub(super) fn relent(&self) {
        self.state().refuse = None;
    }

    /// How many steps there were.
    pub(super) fn steps(&self) -> usize {
        self.state().steps
    }

    /// The steps since this was last asked.
    pub(super) fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.state().log)
    }

    /// A file as somebody else would have opened it.
    pub(super) fn given(&self, name: &str) -> OwnedFd {
        self.open(name)
    }

    /// The names of the files that are open still.
    pub(super) fn open_files(&self) -> Vec<String> {
        let mut state = self.state();
        state.files.retain(|file| !file.is_closed());
        state.files.iter().map(|file| file.name.clone()).collect()
    }

    /// What is left of the guest but for the files: groups in containers, files
    /// that KVM knows, address spaces.
    pub(super) fn left_over(&self) -> usize {
        let open = self.open_files().len();
        let state = self.state();
        // A group that closes leaves its container, and a space ends with its
        // iommufd.
        match open {
            0 => state.told.len(),
            _ => state.joined.len() + state.told.len() + state.spaces.len(),
        }
    }

    fn step(&self, text: String) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        let refused = state.refuse == Some(state.steps);
        state.steps += 1;
        if refused {
            state.log.push(format!("{text}: refused"));
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        state.log.push(text);
        Ok(state)
    }

    /// Undoing is never refused here: the kernel has no reason to.
    fn undo(&self, text: String) -> MutexGuard<'_, State> {
        let mut state = self.state();
        state.log.push(text);
        state
    }

    fn open(&self, name: &str) -> OwnedFd {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let file = OwnedFd::from(theirs);
        self.state().files.push(Open {
            name: name.to_owned(),
            end: ours,
            number: file.as_raw_fd(),
        });
        file
    }

    fn name(&self, file: BorrowedFd<'_>) -> String {
        let number = file.as_raw_fd();
        let state = self.state();
        let mut files = state.files.iter().rev();
        let file = files.find(|file| file.number == number && !file.is_closed());
        file.unwrap().name.clone()
    }
}

impl Calls for FakeKernel {
    fn open_container(&self) -> io::Result<OwnedFd> {
        drop(self.step("open container".into())?);
        Ok(self.open("container"))
    }

    fn check_container(&self, _: BorrowedFd<'_>) -> io::Result<ContainerKind> {
        drop(self.step("check container".into())?);
        Ok(ContainerKind::Vfio)
    }

    fn open_group(&self, group: u32) -> io::Result<OwnedFd> {
        drop(self.step(format!("open group {group}"))?);
        Ok(self.open(&format!("group {group}")))
    }

    fn group_is_viable(&self, group: BorrowedFd<'_>) -> io::Result<bool> {
        let name = self.name(group);
        drop(self.step(format!("status of {name}"))?);
        Ok(true)
    }

    fn join_container(&self, group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
        let name = self.name(group);
        let mut state = self.step(format!("join {name}"))?;
        let (group, container) = (group.as_raw_fd(), container.as_raw_fd());
        assert!(state.joined.insert(group, container).is_none());
        Ok(())
    }

    fn set_iommu(&self, container: BorrowedFd<'_>) -> io::Result<()> {
        let mut state = self.step("set iommu".into())?;
        let container = container.as_raw_fd();
        assert!(state.joined.values().any(|joined| *joined == container));
        state.has_iommu.push(container);
        Ok(())
    }

    fn leave_container(&self, group: BorrowedFd<'_>) -> io::Result<()> {
        let name = self.name(group);
        let devices = format!("device of {name}");
        assert!(!self.open_files().contains(&devices), "{devices} is open");
        let mut state = self.undo(format!("leave {name}"));
        let container = state.joined.remove(&group.as_raw_fd()).unwrap();
        if !state.joined.values().any(|joined| *joined == container) {
            // The last group takes the IOMMU along.
            state.has_iommu.retain(|it| *it != container);
        }
        Ok(())
    }

    fn open_device(
        &self,
        group: BorrowedFd<'_>,
        device: PciAddress,
        _: Option<VfToken>,
    ) -> io::Result<OwnedFd> {
        let name = self.name(group);
        let state = self.step(format!("open {device} of {name}"))?;
        let container = state.joined[&group.as_raw_fd()];
        assert!(state.has_iommu.contains(&container));
        drop(state);
        Ok(self.open(&format!("device of {name}")))
    }

    fn open_iommufd(&self) -> io::Result<OwnedFd> {
        drop(self.step("open iommufd".into())?);
        Ok(self.open("iommufd"))
    }

    fn alloc_ioas(&self, _: BorrowedFd<'_>) -> io::Result<u32> {
        let mut state = self.step("alloc".into())?;
        state.made += 1;
        let id = state.made;
        state.spaces.push(id);
        Ok(id)
    }

    fn destroy_ioas(&self, _: BorrowedFd<'_>, ioas: u32) -> io::Result<()> {
        let open = self.open_files();
        assert!(
            !open.iter().any(|name| name.starts_with("cdev")),
            "{open:?}"
        );
        let mut state = self.undo("destroy".into());
        state.spaces.retain(|id| *id != ioas);
        Ok(())
    }

    fn open_cdev(&self, device: PciAddress) -> io::Result<OwnedFd> {
        drop(self.step(format!("open cdev {device}"))?);
        Ok(self.open(&format!("cdev {device}")))
    }

    fn bind_iommufd(
        &self,
        cdev: BorrowedFd<'_>,
        _: BorrowedFd<'_>,
        _: Option<VfToken>,
    ) -> io::Result<()> {
        let name = self.name(cdev);
        self.step(format!("bind {name}")).map(drop)
    }

    fn attach_ioas(&self, cdev: BorrowedFd<'_>, ioas: u32) -> io::Result<()> {
        let name = self.name(cdev);
        let state = self.step(format!("attach {name}"))?;
        assert!(state.spaces.contains(&ioas));
        Ok(())
    }

    fn tell_kvm(&self, _: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()> {
        let name = self.name(file);
        let mut state = self.step(format!("tell kvm of {name}"))?;
        state.told.push(file.as_raw_fd());
        Ok(())
    }

    fn untell_kvm(&self, kvm: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()> {
        assert_eq!(self.name(kvm.as_fd()), "kvm");
        let name = self.name(file);
        let mut state = self.undo(format!("untell kvm of {name}"));
        let number = file.as_raw_fd();
        let told = state.told.len();
        state.told.retain(|it| *it != number);
        assert_eq!(state.told.len() + 1, told, "KVM did not know of {name}");
        Ok(())
    }
}
