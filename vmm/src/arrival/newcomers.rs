use std::fmt;
use std::sync::Arc;

use devices::pci::RootComplex;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use passthrough::binding::Guard;
use passthrough::{OpenError, Opened, RomSource};
use thiserror::Error;

use super::{Arrival, Arrived, Opening};
use crate::config::OnViabilityLoss;
use crate::event_loop::{GuardWatch, Removable, watch};
use crate::memory::{GuestLayout, LayoutError};
use crate::outcome::{Chain, EndReport, Outcome};
use crate::platform::{self, PlacementError};
use crate::stats::StatsHandle;
use crate::sys;
use crate::topology::{Places, Ports, Topology, TopologyError};

/// Why devices could not take their places.
#[derive(Debug, Error)]
pub enum ArrivalError {
    /// The kernel would not hand one over.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The thread that opens them panicked.
    #[error(
        "the thread that opens devices panicked, which is a bug in airlock: please report it with \
         the message above"
    )]
    Panicked,
    /// The IOMMU reaches less than was foretold.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The guest's PCI topology.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// BARs.
    #[error(transparent)]
    Placement(#[from] PlacementError),
}

/// Where devices take their places.
#[derive(Debug)]
pub struct Stand {
    /// The guest's functions.
    pub root: Arc<RootComplex>,
    /// How they reach the guest.
    pub ports: Ports,
    /// What the guest has been told of its addresses.
    pub layout: GuestLayout,
    /// What they are counted in.
    pub stats: StatsHandle,
    /// Who minds their groups, and by which policy.
    pub guard: Option<Guard>,
    /// What to do when one of them can't stay.
    pub policy: OnViabilityLoss,
    /// Where it is said that they can't come.
    pub report: Arc<EndReport>,
}

/// The devices on their way into the guest. In the event loop they take their places when
/// they are open, and are minded from then on.
pub struct Newcomers {
    arrival: Arc<Arrival>,
    stage: Stage,
}

enum Stage {
    Awaited(Box<Awaited>),
    Minded(GuardWatch),
    /// Nobody minds them, or they did not come.
    Over,
}

/// What takes its place, and where.
struct Awaited {
    opening: Opening,
    places: Places,
    roms: Vec<RomSource>,
    stand: Stand,
}

impl fmt::Debug for Newcomers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Newcomers")
            .field("arrival", &self.arrival)
            .finish_non_exhaustive()
    }
}

impl Newcomers {
    /// The devices of `opening`, which go to `places` with `roms` in their option ROMs.
    pub fn new(
        arrival: Arc<Arrival>,
        opening: Opening,
        places: Places,
        roms: Vec<RomSource>,
        stand: Stand,
    ) -> Self {
        let awaited = Awaited {
            opening,
            places,
            roms,
            stand,
        };
        Self {
            arrival,
            stage: Stage::Awaited(Box::new(awaited)),
        }
    }

    /// They are open, or can't be.
    fn arrive(&mut self, ops: &mut EventOps) {
        let Stage::Awaited(awaited) = std::mem::replace(&mut self.stage, Stage::Over) else {
            return;
        };
        let Awaited {
            opening,
            places,
            roms,
            stand,
        } = *awaited;
        let done = Events::new(opening.done(), EventSet::IN);
        if let Err(error) = ops.remove(done) {
            log::debug!("the opening of devices was not watched: {error}");
        }
        let seated = opening.finish().and_then(|opened| {
            let space = Arc::clone(&opened.space);
            Ok((stand.seat(places, roms, opened)?, space))
        });
        let (devices, space) = match seated {
            Ok(seated) => seated,
            Err(error) => {
                let reason = Chain(&error).to_string();
                self.arrival.fail(error);
                stand.report.end(Outcome::HostRefused(reason));
                return;
            }
        };
        let functions = devices.iter().map(|device| Arc::clone(&device.function));
        let functions = functions.collect();
        if let Some(guard) = stand.guard {
            let (root, report) = (stand.root, stand.report);
            let mut guard = GuardWatch::new(guard, stand.policy, devices, root, report);
            guard.init(ops);
            self.stage = Stage::Minded(guard);
        }
        self.arrival.complete(Arrived { functions, space });
    }
}

impl Stand {
    /// Puts the devices in their places.
    fn seat(
        &self,
        places: Places,
        roms: Vec<RomSource>,
        opened: Opened,
    ) -> Result<Vec<Removable>, ArrivalError> {
        // The plan has foretold what the IOMMU reaches; now it is known.
        let layout = self.layout.clone().within(&opened.space.limits().ranges)?;
        let topology = Topology::new(places, roms, opened)?;
        let devices = topology.build(&self.root, &self.ports)?;
        platform::place_bars(&self.root, &layout, sys::page_size())?;
        self.stats
            .count(devices.iter().map(|device| &device.function));
        Ok(devices)
    }
}

impl MutEventSubscriber for Newcomers {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match &mut self.stage {
            Stage::Awaited(_) => self.arrive(ops),
            Stage::Minded(guard) => guard.process(events, ops),
            Stage::Over => {}
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Stage::Awaited(awaited) = &self.stage {
            let done = Events::new(awaited.opening.done(), EventSet::IN);
            // What can't be watched has to be waited for here.
            if awaited.opening.is_over() || !watch(ops, done, "the opening of devices") {
                self.arrive(ops);
            }
        }
    }
}

#[cfg(test)]
#[path = "newcomers_test.rs"]
mod tests;
