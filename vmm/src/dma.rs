//! Guest RAM for devices: populated and mapped beside the running guest.
//!
//! No device reaches memory before the guest sets its bus-master bit. So vCPUs
//! start at once, and only that write waits ([`DmaMap::wait`]).

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use passthrough::iommu::{AddressSpace, MapError};
use passthrough::ports::HostMemory;
use thiserror::Error;

use crate::memory::{GuestRam, RamBlock, RamError};
use crate::outcome::Chain;
use crate::timeline::{Milestone, Timeline};

/// How much is populated in one call. A huge page, because populating holds the
/// process's memory map: with larger steps every mmap(2) of the start waits.
const STEP: usize = 2 << 20;
/// After this long a waiting guest is worth a line in the log.
const SLOW: Duration = Duration::from_secs(5);

#[derive(Debug)]
enum State {
    Working,
    Mapped,
    Failed(String),
}

#[derive(Debug)]
struct Progress {
    state: State,
    /// Populating rests while nobody waits for it.
    paused: bool,
    waiting: usize,
    stop: bool,
}

#[derive(Debug)]
struct Shared {
    progress: Mutex<Progress>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something that others may be waiting for.
    fn change(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Rests while paused. Whether to go on.
    fn may_go_on(&self) -> bool {
        let mut progress = self.lock();
        while progress.paused && progress.waiting == 0 && !progress.stop {
            progress = self
                .changed
                .wait(progress)
                .unwrap_or_else(PoisonError::into_inner);
        }
        !progress.stop
    }
}

/// Guest RAM's way into an address space. Dropping stops the work and waits for
/// it; the maps stay as long as the space.
#[derive(Debug)]
pub struct DmaMap {
    shared: Arc<Shared>,
    hand_over: Mutex<Option<SyncSender<Arc<dyn AddressSpace>>>>,
    thread: Option<JoinHandle<()>>,
}

/// Guest RAM could not be mapped.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("cannot give the device access to guest memory: {0}")]
pub struct DmaError(String);

#[derive(Debug, Error)]
enum WorkError {
    #[error(transparent)]
    Populate(#[from] RamError),
    #[error(transparent)]
    Map(#[from] MapError),
}

impl DmaMap {
    /// Begins to populate `ram`. It is mapped once [`Self::hand_over`] has
    /// said where.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(ram: &GuestRam, timeline: Timeline) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            progress: Mutex::new(Progress {
                state: State::Working,
                paused: false,
                waiting: 0,
                stop: false,
            }),
            changed: Condvar::new(),
        });
        let (hand_over, space) = sync_channel(1);
        let worker = Worker {
            shared: Arc::clone(&shared),
            blocks: ram.blocks().to_vec(),
            timeline,
        };
        let thread = std::thread::Builder::new()
            .name("dma-map".into())
            .spawn(move || worker.run(&space))?;
        Ok(Self {
            shared,
            hand_over: Mutex::new(Some(hand_over)),
            thread: Some(thread),
        })
    }

    /// Says which address space RAM is mapped into, one to one.
    pub fn hand_over(&self, space: Arc<dyn AddressSpace>) {
        if let Some(hand_over) = self.take_hand_over() {
            // The worker waits for exactly one. Gone, it has said why.
            let _ = hand_over.send(space);
        }
    }

    fn take_hand_over(&self) -> Option<SyncSender<Arc<dyn AddressSpace>>> {
        self.hand_over
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Whether all of RAM is mapped.
    pub fn is_mapped(&self) -> bool {
        matches!(self.shared.lock().state, State::Mapped)
    }

    /// Puts the work off until somebody waits for it. For hosts with one CPU,
    /// where working beside the guest wins nothing, and each switch between
    /// the two costs an exit.
    pub fn rest_until_needed(&self) {
        self.shared.change(|progress| progress.paused = true);
    }

    /// Waits until all of RAM is mapped. Called on vCPU threads.
    ///
    /// # Errors
    /// [`DmaError`] when it can't be mapped.
    pub fn wait(&self) -> Result<(), DmaError> {
        let begun = Instant::now();
        self.shared.change(|progress| progress.waiting += 1);
        let result = self.wait_for_end(begun);
        self.shared.change(|progress| progress.waiting -= 1);
        log::debug!(
            "the bus-master bit waited {:?} for the DMA map",
            begun.elapsed()
        );
        result
    }

    fn wait_for_end(&self, begun: Instant) -> Result<(), DmaError> {
        let mut told = false;
        let mut progress = self.shared.lock();
        loop {
            match &progress.state {
                State::Mapped => return Ok(()),
                State::Failed(reason) => return Err(DmaError(reason.clone())),
                State::Working => {}
            }
            if !told && begun.elapsed() >= SLOW {
                log::warn!("the guest waits for its memory to be mapped for its devices");
                told = true;
            }
            progress = self
                .shared
                .changed
                .wait_timeout(progress, SLOW)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Stops the work soon, so that nobody has to wait for it.
    pub fn cancel(&self) {
        self.shared.change(|progress| progress.stop = true);
    }
}

impl Drop for DmaMap {
    fn drop(&mut self) {
        self.cancel();
        drop(self.take_hand_over());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that maps guest memory panicked");
        }
    }
}

struct Worker {
    shared: Arc<Shared>,
    blocks: Vec<Arc<RamBlock>>,
    timeline: Timeline,
}

impl Worker {
    fn run(self, space: &Receiver<Arc<dyn AddressSpace>>) {
        let result = self.work(space);
        let state = match result {
            Ok(true) => {
                self.timeline.mark(Milestone::MemoryMapped);
                State::Mapped
            }
            Ok(false) => State::Failed("the VM is ending".into()),
            Err(error) => State::Failed(Chain(&error).to_string()),
        };
        self.shared.change(|progress| progress.state = state);
    }

    /// Whether all was done, and not stopped half-way.
    fn work(&self, space: &Receiver<Arc<dyn AddressSpace>>) -> Result<bool, WorkError> {
        for block in &self.blocks {
            for offset in (0..block.size()).step_by(STEP) {
                if !self.shared.may_go_on() {
                    return Ok(false);
                }
                block.populate(offset, STEP.min(block.size() - offset))?;
            }
        }
        // Pinning pages that are there takes milliseconds: it is done in one
        // call a block, and never holds the container for long.
        let Ok(space) = space.recv() else {
            return Ok(false);
        };
        for block in &self.blocks {
            space.map(block.start(), Arc::clone(block) as Arc<dyn HostMemory>)?;
        }
        Ok(true)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::memory::GuestRange;
    use passthrough::iommu::{IovaRange, Peers, SpaceLimits};

    #[derive(Debug)]
    pub(crate) struct FakeSpace {
        limits: SpaceLimits,
        peers: Peers,
        maps: Mutex<Vec<(u64, usize)>>,
        refuse: bool,
    }

    impl AddressSpace for FakeSpace {
        fn limits(&self) -> &SpaceLimits {
            &self.limits
        }

        fn map(&self, iova: u64, memory: Arc<dyn HostMemory>) -> Result<(), MapError> {
            if self.refuse {
                return Err(MapError {
                    action: "map",
                    iova,
                    size: memory.size() as u64,
                    reason: "no".into(),
                    source: std::io::ErrorKind::OutOfMemory.into(),
                });
            }
            self.maps.lock().unwrap().push((iova, memory.size()));
            Ok(())
        }

        fn unmap(&self, _: u64) -> Result<(), MapError> {
            Ok(())
        }

        fn unmap_all(&self) -> Result<(), MapError> {
            self.maps.lock().unwrap().clear();
            Ok(())
        }

        fn peers(&self) -> &Peers {
            &self.peers
        }
    }

    pub(crate) fn space(refuse: bool) -> Arc<FakeSpace> {
        let limits = SpaceLimits {
            ranges: vec![IovaRange {
                start: 0,
                last: u64::MAX,
            }],
            page_sizes: 0x1000,
            max_maps: None,
        };
        Arc::new(FakeSpace {
            limits,
            peers: Peers::default(),
            maps: Mutex::default(),
            refuse,
        })
    }

    fn ram() -> GuestRam {
        let range = |start| GuestRange {
            start,
            size: 2 << 20,
        };
        GuestRam::new(&[range(0), range(4 << 30)]).unwrap()
    }

    #[test]
    fn every_block_is_mapped_one_to_one() {
        let map = DmaMap::start(&ram(), Timeline::start()).unwrap();
        let space = space(false);
        map.hand_over(space.clone());
        map.wait().unwrap();
        assert_eq!(
            *space.maps.lock().unwrap(),
            [(0, 2 << 20), (4 << 30, 2 << 20)]
        );
    }

    #[test]
    fn a_refusal_reaches_every_waiter() {
        let map = DmaMap::start(&ram(), Timeline::start()).unwrap();
        map.hand_over(space(true));
        assert!(
            map.wait()
                .unwrap_err()
                .to_string()
                .contains("0x200000 bytes")
        );
        assert!(map.wait().is_err());
    }

    #[test]
    fn resting_ends_when_somebody_waits() {
        let map = DmaMap::start(&ram(), Timeline::start()).unwrap();
        map.rest_until_needed();
        map.hand_over(space(false));
        map.wait().unwrap();
    }

    #[test]
    fn resting_ends_when_the_vm_does() {
        let map = DmaMap::start(&ram(), Timeline::start()).unwrap();
        map.rest_until_needed();
        drop(map);
    }

    #[test]
    fn it_can_be_dropped_before_there_is_a_space() {
        drop(DmaMap::start(&ram(), Timeline::start()).unwrap());
    }
}
