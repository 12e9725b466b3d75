//! The devices that a VM is given: planned, then opened.

use std::sync::Arc;

use devices::pci::PciAddress;
use passthrough::host::{Host, Survey};
use passthrough::iommu::{Backend, IovaRange};
use passthrough::plan::{Plan, reach};
use passthrough::{DeviceRequest, OpenFiles, OpenRequest, RomSource};

use super::error::VmError;
use crate::config::VmConfig;
use crate::dma::DmaMap;
use crate::kvm::Hypervisor;
use crate::memory::GuestRam;
use crate::request::{Wish, request};
use crate::rom;
use crate::timeline::Timeline;
use crate::topology::Topology;

/// The devices to assign, checked and not opened.
#[derive(Debug, Default)]
pub(super) struct Devices {
    /// Their addresses on the host.
    pub(super) addresses: Vec<PciAddress>,
    /// What they can reach together, as far as it can be foretold; nothing
    /// without devices.
    pub(super) reach: Option<Vec<IovaRange>>,
    /// Of each, what the user said of it.
    requests: Vec<DeviceRequest>,
    roms: Vec<RomSource>,
    backend: Backend,
    files: OpenFiles,
}

/// What the assigned devices bring.
#[derive(Default)]
pub(super) struct Assigned {
    pub(super) topology: Topology,
    /// What they reach.
    pub(super) ranges: Option<Vec<IovaRange>>,
    pub(super) dma: Option<DmaMap>,
}

impl Devices {
    /// Checks what can be checked before anything is opened. `files` need not
    /// be opened.
    ///
    /// # Errors
    /// The plan, when it says no.
    pub(super) fn plan(config: &VmConfig, files: OpenFiles) -> Result<Self, VmError> {
        let without_devices = config.devices.is_empty();
        if without_devices && config.ram.pages.is_none() {
            return Ok(Self::default());
        }
        let survey = Survey::read(&Host::system())?;
        let wish = Wish {
            devices: &config.addresses(),
            memory: Some(config.memory),
            pages: config.ram.pages,
            consent: &config.consent,
        };
        let mut request = request(&survey, &wish);
        request.backend = config.iommu.0;
        request.given = files.names();
        let with_token = config.devices.iter().filter(|said| said.vf_token.is_some());
        let addresses = with_token.filter_map(|said| said.host.trim().parse().ok());
        request.with_token = addresses.collect();
        let plan = Plan::make(&survey, &request);
        if !plan.is_go() {
            let plan = Box::new(plan);
            return Err(match without_devices {
                true => VmError::NoStart(plan),
                false => VmError::NoGo(plan),
            });
        }
        for line in plan.to_string().lines() {
            log::info!("{line}");
        }
        let mut devices = Self {
            reach: (!without_devices).then(|| reach(&survey, &plan.devices)),
            backend: plan.backend,
            files,
            ..Self::default()
        };
        for address in plan.devices {
            devices.add(config, address)?;
        }
        Ok(devices)
    }

    /// Adds a device with what the user said of it.
    fn add(&mut self, config: &VmConfig, device: PciAddress) -> Result<(), VmError> {
        let mut configured = config.devices.iter();
        let said = configured.find(|said| said.host.trim().parse() == Ok(device));
        self.addresses.push(device);
        self.requests.push(DeviceRequest {
            device,
            token: said.and_then(|said| said.vf_token),
        });
        let rom = said.map_or(Ok(RomSource::Device), |said| rom::load(&said.rom))?;
        self.roms.push(rom);
        Ok(())
    }

    /// Opens the devices, while `ram` is being populated by so many `threads`:
    /// the kernel resets each device at its first open, which takes a tenth of a
    /// second of waiting.
    ///
    /// # Errors
    /// What the kernel refused. Nothing is open then.
    pub(super) fn open(
        self,
        hypervisor: &Hypervisor,
        ram: &GuestRam,
        threads: usize,
        timeline: &Timeline,
    ) -> Result<Assigned, VmError> {
        if self.addresses.is_empty() {
            return Ok(Assigned::default());
        }
        let dma = DmaMap::start(ram, threads, timeline.clone()).map_err(VmError::Resource)?;
        let opened = passthrough::open(OpenRequest {
            devices: self.requests,
            backend: self.backend,
            files: self.files,
            kvm_vfio_device: Some(hypervisor.vfio_device()?),
        })?;
        log::info!("the devices were taken by {}", opened.interface);
        dma.hand_over(Arc::clone(&opened.space));
        Ok(Assigned {
            ranges: Some(opened.space.limits().ranges.clone()),
            topology: Topology::new(self.addresses, self.roms, opened)?,
            dma: Some(dma),
        })
    }
}
