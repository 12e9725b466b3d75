use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use super::Keep;
use super::bind::{Begun, begin, reserve, undo};
use super::bound::Binding;
use super::device::DeviceName;
use super::error::BindError;
use super::held::{Held, HeldState, UnreadableJournal};
use super::journal::{Entry, Journal, Lock, OpenJournal, Store, Stored};
use super::kernel::{Kernel, same};
use super::plan::{AlreadyRight, BindPlan, BindRequest};
use super::planner::Planner;
use super::restore::{Released, give_back, on};
use super::sysfs::{KernelSysfs, Sysfs};
use crate::host::Survey;

/// How many answers of the kernel another transaction may wait for before one
/// stops waiting for its end.
const PATIENCE: u32 = 3;

/// Binds and gives back. Cheap to clone; clones share everything.
///
/// Locks: the store's lock before a journal's, and both outlast what is done
/// to sysfs.
#[derive(Clone)]
pub struct Binder {
    inner: Arc<Inner>,
}

struct Inner {
    sysfs: Box<dyn Sysfs>,
    store: Store,
    limit: Duration,
}

impl fmt::Debug for Binder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Binder")
            .field("store", &self.inner.store)
            .field("limit", &self.inner.limit)
            .finish_non_exhaustive()
    }
}

impl Binder {
    /// Where the journals of this machine are.
    pub const FOLDER: &str = "/run/airlock";
    /// How long an answer of the kernel is waited for.
    pub const LIMIT: Duration = Duration::from_secs(10);

    /// One for the machine that this process runs on.
    pub fn system() -> Self {
        let sysfs = Box::new(KernelSysfs::new());
        Self::new(sysfs, Path::new(Self::FOLDER), Self::LIMIT)
    }

    /// One for `sysfs` with its journals in `folder`, that waits at most
    /// `limit` for each answer of the kernel.
    pub fn new(sysfs: Box<dyn Sysfs>, folder: &Path, limit: Duration) -> Self {
        let inner = Arc::new(Inner {
            sysfs,
            store: Store::new(folder),
            limit,
        });
        Self { inner }
    }

    /// The port that this one works with.
    pub fn sysfs(&self) -> &dyn Sysfs {
        &*self.inner.sysfs
    }

    /// How long it waits for an answer of the kernel.
    pub fn limit(&self) -> Duration {
        self.inner.limit
    }

    /// What has to be done for `request` on the host of `survey`. Changes
    /// nothing, and needs no privilege.
    ///
    /// # Errors
    /// [`BindError`] that says why it must not be done.
    pub fn plan(&self, survey: &Survey, request: &BindRequest) -> Result<BindPlan, BindError> {
        // Who may not read the journals may not bind either, but may plan.
        let held = self.bindings().unwrap_or_default();
        let planner = Planner {
            kernel: self.kernel(),
            survey,
            request,
            held: &held.iter().map(|held| held.device.clone()).collect(),
        };
        let plan = planner.plan()?;
        for device in plan.all() {
            let held = held.iter().find(|held| held.device == *device);
            // What is stale goes back before anything is bound, and may then
            // be bound like any other.
            if let Some(held) = held.filter(|held| held.state != HeldState::Stale) {
                return Err(taken(held));
            }
        }
        Ok(plan)
    }

    /// Carries `plan` out, all or nothing. What other airlocks have left behind
    /// is given back first.
    ///
    /// # Errors
    /// [`BindError`]; nothing is bound then. Where something had been done and
    /// was taken back, it is [`BindError::Undone`], which tells how that went.
    pub fn bind(&self, plan: &BindPlan, keep: Keep) -> Result<Binding, BindError> {
        let kernel = self.kernel();
        let mut binding = Binding {
            binder: self.clone(),
            open: None,
            keep,
            devices: Vec::new(),
            drivers: Vec::new(),
            right: plan.right.clone(),
            notes: Vec::new(),
        };
        // Where nothing is to be done, no privilege is needed, unless what looks
        // right was left behind, and is about to go back.
        let held = self.bindings().unwrap_or_default();
        if plan.devices.is_empty() && !held.iter().any(|held| plan.names(&held.device)) {
            return Ok(binding);
        }
        let lock = self.lock()?;
        for released in self.release_where(&lock, |_, state| state == HeldState::Stale)? {
            binding.notes.push(format!("left behind: {released}"));
        }
        self.check_free(plan)?;
        for AlreadyRight { device, driver } in &plan.right {
            let now = kernel.driver(device)?;
            if now.as_ref() != Some(driver) {
                return Err(BindError::Changed {
                    device: device.clone(),
                    planned: format!("was on {driver}"),
                    found: on(now.as_deref()),
                });
            }
        }
        let holders = kernel.sysfs.holders();
        let mut jobs = Vec::new();
        for planned in &plan.devices {
            match begin(kernel, planned, &holders, &mut binding.notes)? {
                Begun::Job(job) => jobs.push(job),
                Begun::Right(right) => binding.right.push(right),
            }
        }
        if jobs.is_empty() {
            return Ok(binding);
        }
        let entries = jobs.iter().map(|job| job.entry.clone()).collect();
        let journal = Journal::new(keep, self.boot_id()?, entries);
        let mut open = self.inner.store.create(journal, &lock)?;
        let mut touched = Vec::new();
        for job in &mut jobs {
            touched.push(job.planned.device.clone());
            if let Err(cause) = job.run(kernel, &mut binding.notes) {
                return Err(undo(kernel, cause, &touched, &mut open));
            }
        }
        open.journal.devices = jobs.into_iter().map(|job| job.entry).collect();
        open.journal.complete = true;
        if let Err(cause) = open.save() {
            return Err(undo(kernel, cause, &touched, &mut open));
        }
        binding.devices = touched;
        let entries = open.journal.devices.iter();
        // The one that it is on comes first.
        binding.drivers = entries
            .map(|entry| entry.drivers.first().cloned().unwrap_or_default())
            .collect();
        binding.open = (keep == Keep::WhileHeld).then_some(open);
        Ok(binding)
    }

    /// Gives `devices` back, and whatever else was left behind. One that can't
    /// be given back does not stop the others; it stays in the journal.
    ///
    /// # Errors
    /// [`BindError`] when nothing was begun: a device is not held, or by a
    /// running airlock.
    pub fn release(&self, devices: &[DeviceName]) -> Result<Vec<Released>, BindError> {
        let lock = self.lock()?;
        let held = self.bindings()?;
        for device in devices {
            match held.iter().find(|held| held.device == *device) {
                None => {
                    let device = device.clone();
                    return Err(BindError::NotHeld { device });
                }
                Some(held) if held.state == HeldState::Live => return Err(taken(held)),
                Some(_) => {}
            }
        }
        self.release_where(&lock, |entry, state| {
            state == HeldState::Stale || devices.contains(&entry.device)
        })
    }

    /// Gives back everything that no running airlock minds.
    ///
    /// # Errors
    /// [`BindError`] when nothing was begun.
    pub fn release_all(&self) -> Result<Vec<Released>, BindError> {
        self.release_where(&self.lock()?, |_, _| true)
    }

    /// Gives back what airlocks have left that came to a sudden end.
    ///
    /// # Errors
    /// [`BindError`] when nothing was begun.
    pub fn release_stale(&self) -> Result<Vec<Released>, BindError> {
        self.release_where(&self.lock()?, |_, state| state == HeldState::Stale)
    }

    /// Everything that is held, or has to be given back still, by age.
    ///
    /// # Errors
    /// [`BindError::Journal`] when the journals can't be read.
    pub fn bindings(&self) -> Result<Vec<Held>, BindError> {
        let mut held = Vec::new();
        for stored in self.inner.store.list(&self.boot_id()?)? {
            if let Ok(journal) = &stored.journal {
                held.extend(journal.devices.iter().map(|entry| {
                    let driver = entry.drivers.first().cloned();
                    Held {
                        device: entry.device.clone(),
                        group: entry.group,
                        driver: driver.unwrap_or_default(),
                        back_to: entry.found.clone(),
                        hot_added: entry.hot_added,
                        keep: journal.keep,
                        owner: journal.owner.clone(),
                        state: stored.state(journal),
                        journal: stored.path.clone(),
                    }
                }));
            }
        }
        Ok(held)
    }

    /// The journals that make no sense, and whose devices nobody minds.
    ///
    /// # Errors
    /// [`BindError::Journal`] when the journals can't be read.
    pub fn unreadable(&self) -> Result<Vec<UnreadableJournal>, BindError> {
        let stored = self.inner.store.list(&self.boot_id()?)?;
        let unreadable = stored.into_iter().filter_map(|stored| {
            let (path, reason) = (stored.path, stored.journal.err()?);
            Some(UnreadableJournal { path, reason })
        });
        Ok(unreadable.collect())
    }

    /// Sees to it that `device`, which has come into a held group, gets no
    /// driver but `driver`, for as long as the answer lives. After that it is
    /// the host's.
    ///
    /// # Errors
    /// [`BindError`]; nothing is changed then. [`BindError::NotBound`] when a
    /// driver of the host was faster.
    pub fn hold_hot_added(&self, device: &DeviceName, driver: &str) -> Result<Binding, BindError> {
        let kernel = self.kernel();
        let lock = self.lock()?;
        let mut held = self.bindings()?.into_iter();
        if let Some(held) = held.find(|held| held.device == *device) {
            return Err(taken(&held));
        }
        if !kernel.has(device)? {
            let device = device.clone();
            return Err(BindError::NotThere { device });
        }
        let mut binding = Binding {
            binder: self.clone(),
            open: None,
            keep: Keep::WhileHeld,
            devices: Vec::new(),
            drivers: Vec::new(),
            right: Vec::new(),
            notes: Vec::new(),
        };
        let found = kernel.found(device)?;
        match &found.driver {
            Some(other) if same(other, driver) => {
                binding.right.push(AlreadyRight {
                    device: device.clone(),
                    driver: other.clone(),
                });
                return Ok(binding);
            }
            Some(other) => {
                return Err(BindError::NotBound {
                    device: device.clone(),
                    wanted: driver.to_owned(),
                    found: on(Some(other)),
                    hint: "a driver of the host was faster".to_owned(),
                });
            }
            None => {}
        }
        let entry = Entry {
            device: device.clone(),
            group: kernel.group(device)?,
            drivers: vec![driver.to_owned()],
            found,
            hot_added: true,
        };
        let journal = Journal::new(Keep::WhileHeld, self.boot_id()?, vec![entry.clone()]);
        let mut open = self.inner.store.create(journal, &lock)?;
        if let Err(cause) = reserve(kernel, &entry, driver) {
            return Err(undo(kernel, cause, slice::from_ref(device), &mut open));
        }
        binding.devices.push(device.clone());
        binding.drivers.push(driver.to_owned());
        binding.open = Some(open);
        Ok(binding)
    }

    /// Gives back what this process holds itself.
    pub(super) fn release_own(&self, open: OpenJournal) -> Result<Vec<Released>, BindError> {
        let _lock = self.lock()?;
        self.play_back(open, |_| true)
    }

    fn kernel(&self) -> Kernel<'_> {
        Kernel {
            sysfs: self.sysfs(),
            limit: self.inner.limit,
        }
    }

    fn boot_id(&self) -> Result<String, BindError> {
        let path = "/proc/sys/kernel/random/boot_id".to_owned();
        match self.sysfs().read(&path) {
            Ok(id) => Ok(id.unwrap_or_default()),
            Err(answer) => Err(BindError::Read { path, answer }),
        }
    }

    fn lock(&self) -> Result<Lock, BindError> {
        let limit = self.inner.limit.saturating_mul(PATIENCE);
        let lock = self.inner.store.lock(limit)?;
        self.inner.store.sweep(&self.boot_id()?, &lock)?;
        Ok(lock)
    }

    /// Refuses to touch what is somebody's.
    fn check_free(&self, plan: &BindPlan) -> Result<(), BindError> {
        for held in self.bindings()? {
            if plan.names(&held.device) {
                return Err(taken(&held));
            }
            for planned in &plan.devices {
                if planned.virtual_functions.contains(&held.device) {
                    return Err(BindError::VirtualFunctionInUse {
                        device: planned.device.clone(),
                        reason: format!("is bound {}", held.owner),
                        function: held.device,
                    });
                }
            }
        }
        Ok(())
    }

    /// Gives back what `wanted` says, of all that nobody minds: the youngest
    /// transaction first.
    fn release_where(
        &self,
        lock: &Lock,
        wanted: impl Fn(&Entry, HeldState) -> bool,
    ) -> Result<Vec<Released>, BindError> {
        let stored = self.inner.store.list(&self.boot_id()?)?;
        let mut released = Vec::new();
        for stored in stored.into_iter().rev() {
            let state = match &stored.journal {
                Ok(journal) => stored.state(journal),
                Err(_) => continue,
            };
            let Stored {
                path,
                journal: Ok(journal),
                live: false,
            } = stored
            else {
                continue;
            };
            let wanted = |entry: &Entry| wanted(entry, state);
            if journal.devices.iter().any(wanted) {
                let open = self.inner.store.adopt(&path, journal, lock)?;
                released.extend(self.play_back(open, wanted)?);
            }
        }
        Ok(released)
    }

    /// Gives back those devices of a journal that `wanted` names, the last one
    /// first, and keeps the others.
    fn play_back(
        &self,
        mut open: OpenJournal,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Result<Vec<Released>, BindError> {
        let kernel = self.kernel();
        let holders = kernel.sysfs.holders();
        let entries = open.journal.devices.iter().rev();
        let released: Vec<_> = entries
            .filter(|entry| wanted(entry))
            .map(|entry| give_back(kernel, entry, &holders))
            .collect();
        let done: BTreeSet<_> = released
            .iter()
            .filter(|released| released.is_back())
            .map(|released| &released.device)
            .collect();
        let entries = &mut open.journal.devices;
        entries.retain(|entry| !done.contains(&entry.device));
        open.save()?;
        Ok(released)
    }
}

fn taken(held: &Held) -> BindError {
    let next = match held.state {
        HeldState::Kept => "give it back with `airlock release` first",
        HeldState::Live => "it is given back when that ends",
        HeldState::Stale => "give it back with `airlock release --stale` first",
    };
    BindError::Taken {
        device: held.device.clone(),
        owner: held.owner.clone(),
        next: next.to_owned(),
    }
}
