//! Guest RAM for devices: populated and mapped beside the running guest.
//!
//! No device reaches memory before the guest sets its bus-master bit. So vCPUs
//! start at once, and only that write waits ([`DmaMap::wait`]).

mod progress;
mod threads;
mod worker;

use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use passthrough::iommu::AddressSpace;
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::memory::{GuestRam, RamBlock, RamError};
use crate::timeline::Timeline;
use progress::{Populated, Shared, State};
pub use threads::default_threads;
use worker::{STACK, Worker};

/// After this long a waiting guest is worth a line in the log, and again and
/// again after as much.
pub const SLOW: Duration = Duration::from_secs(5);

/// Guest RAM's way into an address space. Dropping stops the work and waits for
/// it; the maps stay as long as the space.
///
/// Guest RAM keeps its pages from the start on, see [`GuestRam::discard`].
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

/// What populates a part of a block; another in tests.
type Populate = Arc<dyn Fn(&RamBlock, usize, usize) -> Result<(), RamError> + Send + Sync>;

impl DmaMap {
    /// Begins to populate `ram` with `threads` threads, at least one. It is
    /// mapped once [`Self::hand_over`] has said where.
    ///
    /// # Errors
    /// When no thread or eventfd can be had. Only the first thread has to be.
    pub fn start(ram: &GuestRam, threads: usize, timeline: Timeline) -> std::io::Result<Self> {
        Self::start_by(ram, threads, timeline, Arc::new(RamBlock::populate))
    }

    fn start_by(
        ram: &GuestRam,
        threads: usize,
        timeline: Timeline,
        populate: Populate,
    ) -> std::io::Result<Self> {
        let blocks = ram.blocks().to_vec();
        let shared = Arc::new(Shared::new(&blocks)?);
        let (hand_over, space) = sync_channel(1);
        let worker = Worker {
            shared: Arc::clone(&shared),
            blocks,
            pages: ram.keep_pages(),
            threads,
            populate,
            timeline,
        };
        let thread = std::thread::Builder::new()
            .name("dma-map".into())
            .stack_size(STACK)
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

    /// Readable once the work has ended, well or badly.
    pub fn ended(&self) -> &EventFd {
        self.shared.ended()
    }

    /// Logs how far the work is, for somebody who waits for [`Self::ended`].
    pub fn tell_progress(&self) {
        tell(self.shared.lock().populated());
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
        let result = self.wait_for_end();
        self.shared.change(|progress| progress.waiting -= 1);
        log::debug!(
            "the bus-master bit waited {:?} for the DMA map",
            begun.elapsed()
        );
        result
    }

    fn wait_for_end(&self) -> Result<(), DmaError> {
        let mut told = Instant::now();
        let mut progress = self.shared.lock();
        loop {
            match &progress.state {
                State::Mapped => return Ok(()),
                State::Failed(reason) => return Err(DmaError(reason.clone())),
                State::Working => {}
            }
            if told.elapsed() >= SLOW {
                told = Instant::now();
                tell(progress.populated());
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

fn tell(populated: Populated) {
    log::warn!("the guest waits for its memory to be mapped for its devices: {populated}");
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

#[cfg(test)]
#[path = "dma_test.rs"]
pub(crate) mod tests;
