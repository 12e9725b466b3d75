//! The devices that a VM is given: planned, then opened.

use std::sync::Arc;

use devices::pci::PciAddress;
use passthrough::host::{Host, Survey};
use passthrough::inspect::Foretold;
use passthrough::iommu::{Backend, IovaRange};
use passthrough::plan::{Plan, reach};
use passthrough::{DeviceRequest, OpenFiles, OpenRequest, RomSource};

use super::error::VmError;
use crate::arrival::{ArrivalError, Opening};
use crate::config::{MapTime, VmConfig};
use crate::dma::DmaMap;
use crate::kvm::Hypervisor;
use crate::memory::GuestRam;
use crate::request::{Wish, request};
use crate::rom;
use crate::timeline::{Milestone, Timeline};
use crate::topology::{Answers, Places};

/// The devices to assign, checked and not opened.
#[derive(Debug, Default)]
pub(super) struct Devices {
    /// Their addresses on the host.
    pub(super) addresses: Vec<PciAddress>,
    /// What they can reach together, as far as it can be foretold; nothing
    /// without devices.
    pub(super) reach: Option<Vec<IovaRange>>,
    /// What can be told of each; nothing, unless it is known of all.
    foretold: Option<Vec<Foretold>>,
    /// Of each, what the user said of it.
    requests: Vec<DeviceRequest>,
    roms: Vec<RomSource>,
    backend: Backend,
    files: OpenFiles,
}

/// Devices that are being opened, or are open.
#[derive(Debug)]
pub(super) struct Coming {
    pub(super) opening: Opening,
    pub(super) dma: Arc<DmaMap>,
    pub(super) roms: Vec<RomSource>,
    /// Where they go.
    pub(super) places: Places,
    /// What is answered for them until they are there.
    pub(super) answers: Answers,
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
        let host = Host::system();
        let survey = Survey::read(&host)?;
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
            foretold: foretell(&host, &survey, &plan.devices),
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

    /// Begins to open the devices, while `ram` is being populated by so many `threads`.
    /// Waits until they are open if `when` says so, or when it can't be foretold where
    /// they go. Nothing without devices.
    ///
    /// # Errors
    /// What the kernel refused. Nothing is open then.
    pub(super) fn open(
        self,
        hypervisor: &Hypervisor,
        ram: &GuestRam,
        threads: usize,
        when: MapTime,
        timeline: &Timeline,
    ) -> Result<Option<Coming>, VmError> {
        if self.addresses.is_empty() {
            return Ok(None);
        }
        let dma = DmaMap::start(ram, threads, timeline.clone()).map_err(VmError::Resource)?;
        let dma = Arc::new(dma);
        let prepared = passthrough::prepare(OpenRequest {
            devices: self.requests,
            backend: self.backend,
            files: self.files,
            kvm_vfio_device: Some(hypervisor.vfio_device()?),
        });
        let prepared = prepared.map_err(ArrivalError::from)?;
        let (map, timeline) = (Arc::clone(&dma), timeline.clone());
        let open = move || {
            let opened = prepared.open()?;
            map.hand_over(Arc::clone(&opened.space));
            timeline.mark(Milestone::DevicesOpen);
            Ok(opened)
        };
        let mut opening = Opening::start(open).map_err(VmError::Resource)?;
        let (places, answers) = match (self.foretold, when) {
            (Some(foretold), MapTime::BesideBoot) => {
                let placements = foretold.iter().map(|one| one.placement);
                let places = Places::new(self.addresses.into_iter().zip(placements));
                let places = places.map_err(ArrivalError::from)?;
                let identities: Vec<_> = foretold.into_iter().map(|one| one.identity).collect();
                let answers = places.foretell(&identities);
                (places, answers)
            }
            _ => {
                let opened = opening.wait()?;
                let places = Places::of(&self.addresses, &opened.devices);
                (places.map_err(ArrivalError::from)?, Answers::new())
            }
        };
        Ok(Some(Coming {
            opening,
            dma,
            roms: self.roms,
            places,
            answers,
        }))
    }
}

/// What can be told of all `devices` before they are open.
fn foretell(host: &Host, survey: &Survey, devices: &[PciAddress]) -> Option<Vec<Foretold>> {
    let foretell = |device: &PciAddress| {
        let told = Foretold::of(host, survey.functions.get(device)?);
        let told = told.unwrap_or_else(|error| {
            log::debug!("config space of {device} can't be read: {error}");
            None
        });
        if told.is_none() {
            log::info!("the guest waits until {device} is open: not all of it can be foretold");
        }
        told
    };
    devices.iter().map(foretell).collect()
}
