//! From what is asked for and what the host is like to a plan, or a refusal.

use std::collections::BTreeSet;

use super::device::{DeviceName, is_folder};
use super::error::BindError;
use super::kernel::{Kernel, same};
use super::plan::{AlreadyRight, BindPlan, BindRequest, PlannedDevice};
use super::variant::targets;
use crate::host::{DriverOverride, Function, GroupId, Survey};
use crate::viability::{Action, Verdict, is_vfio_driver};

/// As many uses of a device as a line can bear.
const SHOWN: usize = 3;

/// Makes plans for the host of `survey`. What a survey does not have, the
/// devices of other buses, is read through `kernel`, without waiting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planner<'a> {
    pub(super) kernel: Kernel<'a>,
    pub(super) survey: &'a Survey,
    pub(super) request: &'a BindRequest,
    /// What other airlocks have.
    pub(super) held: &'a BTreeSet<DeviceName>,
}

/// A device as it is now.
struct Now<'a> {
    device: DeviceName,
    function: Option<&'a Function>,
    driver: Option<String>,
    group: Option<GroupId>,
}

impl Now<'_> {
    /// Whether its driver is one that gives devices to guests.
    fn is_on_vfio(&self) -> bool {
        let vfio_device = self.function.and_then(|f| f.vfio_device.as_deref());
        self.driver.as_deref().is_some_and(|driver| {
            is_vfio_driver(driver, vfio_device)
                || self.function.is_none() && driver.starts_with("vfio-")
        })
    }
}

impl<'a> Planner<'a> {
    pub(super) fn plan(&self) -> Result<BindPlan, BindError> {
        if self.request.devices.is_empty() {
            return Err(BindError::NothingAsked);
        }
        if let Some(name) = self.request.driver.as_deref()
            && !is_folder(name)
        {
            let name = name.escape_debug().to_string();
            return Err(BindError::DriverName { name });
        }
        let mut plan = BindPlan::default();
        let mut seen = BTreeSet::new();
        for device in &self.request.devices {
            if seen.insert(device.clone()) {
                let now = self.look(device)?;
                self.add(now, &mut plan)?;
            }
        }
        if self.request.whole_group {
            for device in self.others(&seen)? {
                let now = self.look(&device)?;
                self.add(now, &mut plan)?;
            }
        }
        self.foresee(&seen, &mut plan);
        Ok(plan)
    }

    /// What there is of `device`, if a guest may have it at all.
    fn look(&self, device: &DeviceName) -> Result<Now<'a>, BindError> {
        let Some(address) = device.address() else {
            return self.look_at_other(device);
        };
        let Some(function) = self.survey.functions.get(&address) else {
            let device = device.clone();
            return Err(BindError::NotThere { device });
        };
        if function.is_bridge() {
            let device = device.clone();
            return Err(BindError::Bridge { device });
        }
        let now = Now {
            device: device.clone(),
            function: Some(function),
            driver: function.driver.clone(),
            group: function.group,
        };
        self.confined(now)
    }

    fn look_at_other(&self, device: &DeviceName) -> Result<Now<'a>, BindError> {
        let kernel = self.kernel;
        if !kernel.has(device)? {
            let device = device.clone();
            return Err(BindError::NotThere { device });
        }
        let path = device.folder();
        let attributes = kernel.sysfs.list(&path);
        let attributes = attributes.map_err(|answer| BindError::Read { path, answer })?;
        let has = |name: &str| attributes.iter().flatten().any(|found| found == name);
        if !has("driver_override") {
            let device = device.clone();
            return Err(BindError::NoOverride { device });
        }
        self.confined(Now {
            device: device.clone(),
            function: None,
            driver: kernel.driver(device)?,
            group: kernel.group(device)?,
        })
    }

    /// Refuses what no IOMMU confines.
    fn confined(&self, now: Now<'a>) -> Result<Now<'a>, BindError> {
        let device = now.device.clone();
        let Some(group) = now.group else {
            let hint = if self.survey.iommu.units.is_empty() {
                "enable the IOMMU in the firmware, and on the kernel's command line (intel_iommu=on)"
            } else {
                "no IOMMU of the host covers it; give the guest another device"
            };
            let hint = hint.to_owned();
            return Err(BindError::NoGroup { device, hint });
        };
        let found = self.survey.groups.get(&group);
        if found.is_some_and(|group| group.is_noiommu()) {
            return Err(BindError::NoIommu { device, group });
        }
        Ok(now)
    }

    /// The endpoints that share a group with the devices in `seen`, but for
    /// those that are out of the way with pci-stub.
    fn others(&self, seen: &BTreeSet<DeviceName>) -> Result<Vec<DeviceName>, BindError> {
        let mut others = BTreeSet::new();
        for group in self.groups(seen) {
            let Some(found) = self.survey.groups.get(&group) else {
                continue;
            };
            for member in &found.members {
                let device = match member.address {
                    Some(address) => {
                        let function = self.survey.functions.get(&address);
                        let stays = |function: &Function| {
                            function.is_bridge() || function.driver.as_deref() == Some("pci-stub")
                        };
                        if function.is_none_or(stays) {
                            continue;
                        }
                        DeviceName::pci(address)
                    }
                    None => self.other_member(group, &member.name)?,
                };
                if !seen.contains(&device) {
                    others.insert(device);
                }
            }
        }
        Ok(others.into_iter().collect())
    }

    /// The member `name` of `group`, which is on another bus.
    fn other_member(&self, group: GroupId, name: &str) -> Result<DeviceName, BindError> {
        let path = format!("/sys/kernel/iommu_groups/{group}/devices/{name}/subsystem");
        let bus = self.kernel.sysfs.link(&path);
        let bus = bus.map_err(|answer| BindError::Read { path, answer })?;
        let name = DeviceName::new(bus.as_deref().unwrap_or_default(), name);
        name.map_err(|error| BindError::NoBus { text: error.text })
    }

    fn groups(&self, devices: &BTreeSet<DeviceName>) -> BTreeSet<GroupId> {
        let group = |device: &DeviceName| match device.address() {
            Some(address) => self.survey.functions.get(&address)?.group,
            None => self.kernel.group(device).ok()?,
        };
        devices.iter().filter_map(group).collect()
    }

    fn add(&self, now: Now<'_>, plan: &mut BindPlan) -> Result<(), BindError> {
        let asked = self.asked(&now.device);
        let targets = targets(self.kernel, self.survey, &now.device, asked)?;
        if let Some(driver) = &now.driver {
            let best = targets.first().map(|target| target.driver.as_str());
            if targets.iter().any(|target| same(&target.driver, driver))
                || asked.is_none() && now.is_on_vfio()
            {
                if let Some(best) = best.filter(|best| !same(best, driver)) {
                    plan.warnings.push(format!(
                        "{} stays on {driver}, though {best} was made for it: choose that with --driver {best}",
                        now.device
                    ));
                }
                plan.right.push(AlreadyRight {
                    device: now.device,
                    driver: driver.clone(),
                });
                return Ok(());
            }
        }
        if now.is_on_vfio() {
            let holders = &self.survey.holders;
            let holders = self.kernel.users(&now.device, now.group, holders);
            if !holders.is_empty() {
                let device = now.device;
                return Err(BindError::InUse { device, holders });
            }
        }
        if let Some(driver) = asked
            && !is_vfio_driver(driver, None)
            && !driver.starts_with("vfio")
        {
            plan.warnings.push(format!(
                "{driver} does not look like a VFIO driver: a guest can have {} only from one",
                now.device
            ));
        }
        self.check_needs(&now, plan)?;
        let virtual_functions = self.virtual_functions(&now, plan)?;
        let found_override = now
            .function
            .map(|function| function.driver_override.clone());
        plan.devices.push(
            PlannedDevice {
                group: now.group,
                found_driver: now.driver,
                found_override: found_override.unwrap_or(DriverOverride::NotAsked),
                targets,
                virtual_functions,
                device: now.device,
                steps: Vec::new(),
                undo: Vec::new(),
            }
            .with_steps(),
        );
        Ok(())
    }

    /// The driver that the user wants for `device`: the one that was named is
    /// for the buses of the devices that were named.
    fn asked(&self, device: &DeviceName) -> Option<&'a str> {
        let named = self.request.devices.iter();
        let mut named = named.filter(|named| named.bus() == device.bus());
        named.next()?;
        self.request.driver.as_deref()
    }

    /// Refuses what the host can't do without.
    fn check_needs(&self, now: &Now<'_>, plan: &mut BindPlan) -> Result<(), BindError> {
        let Some(uses) = self.uses(now) else {
            return Ok(());
        };
        let device = now.device.clone();
        if !self.request.force.contains(&device) {
            return Err(BindError::HostNeeds { device, uses });
        }
        plan.warnings
            .push(format!("{device} {uses}: the host loses that, as forced"));
        Ok(())
    }

    /// What the host uses a device for. What is on a VFIO driver serves the
    /// host no more, whatever outlived it.
    fn uses(&self, now: &Now<'_>) -> Option<String> {
        let function = now.function.filter(|_| !now.is_on_vfio())?;
        let mut texts = Vec::new();
        if let Some(uses) = self.survey.uses.get(&function.address) {
            texts.extend(uses.iter().take(SHOWN).map(ToString::to_string));
            if let Some(more) = uses.len().checked_sub(SHOWN).filter(|more| *more > 0) {
                texts.push(format!("{more} more"));
            }
        }
        if function.boot_display {
            texts.push("is the display that the host booted with (boot VGA)".to_owned());
        }
        (!texts.is_empty()).then(|| texts.join(", "))
    }

    /// The VFs of a PF, when they may be disabled.
    fn virtual_functions(
        &self,
        now: &Now<'_>,
        plan: &mut BindPlan,
    ) -> Result<Vec<DeviceName>, BindError> {
        let Some(physical) = now.function else {
            return Ok(Vec::new());
        };
        let functions = self.survey.virtual_functions(physical.address);
        if functions.is_empty() {
            return Ok(Vec::new());
        }
        if !self.request.disable_vfs {
            return Err(BindError::HasVirtualFunctions {
                device: now.device.clone(),
                count: functions.len(),
            });
        }
        for function in functions
            .iter()
            .filter_map(|at| self.survey.functions.get(at))
        {
            let virtual_function = Now {
                device: DeviceName::pci(function.address),
                function: Some(function),
                driver: function.driver.clone(),
                group: function.group,
            };
            if let Some(reason) = self.at_work(&virtual_function) {
                return Err(BindError::VirtualFunctionInUse {
                    device: now.device.clone(),
                    function: virtual_function.device,
                    reason,
                });
            }
        }
        plan.warnings.push(format!(
            "the {} VFs of {} are disabled. They come back when it is given back, on the drivers that the host chooses for them then",
            functions.len(),
            now.device
        ));
        Ok(functions.into_iter().map(DeviceName::pci).collect())
    }

    /// Why a VF must stay.
    fn at_work(&self, now: &Now<'_>) -> Option<String> {
        let holders = &self.survey.holders;
        let users = self.kernel.users(&now.device, now.group, holders);
        if let Some(user) = users.first() {
            return Some(format!("is in use by {} (pid {})", user.name, user.pid));
        }
        if self.held.contains(&now.device) {
            return Some("is held by airlock: release it first".to_owned());
        }
        self.uses(now)
            .filter(|_| !self.request.force.contains(&now.device))
    }

    /// Says what will keep a group from being taken, even after the plan.
    fn foresee(&self, asked: &BTreeSet<DeviceName>, plan: &mut BindPlan) {
        for group in self.groups(asked) {
            let Some(verdict) = Verdict::judge(self.survey, group) else {
                continue;
            };
            for change in &verdict.changes {
                let planned = |name: &str| {
                    let mut devices = plan.devices.iter();
                    devices.any(|planned| {
                        let mut gone = planned.virtual_functions.iter();
                        planned.device.name() == name || gone.any(|gone| gone.name() == name)
                    })
                };
                if planned(&change.device) {
                    continue;
                }
                let mut members = verdict.members.iter();
                let member = members.find(|member| member.name == change.device);
                let state = member.map(|member| format!(" {}", member.state));
                let fix = match change.action {
                    Action::BindToVfio(_) => "bind the whole group with --group".to_owned(),
                    _ => change.remedy(self.survey).to_string(),
                };
                plan.warnings.push(format!(
                    "group {group} can't be given to a guest yet, for {}{}: {fix}",
                    change.device,
                    state.unwrap_or_default()
                ));
            }
        }
    }
}
