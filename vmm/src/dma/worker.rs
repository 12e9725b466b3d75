use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use passthrough::iommu::{AddressSpace, MapError};
use passthrough::ports::HostMemory;
use thiserror::Error;

use super::Populate;
use super::progress::{Shared, State};
use crate::memory::{DeviceRam, KeptPages, RamBlock, RamError};
use crate::outcome::Chain;
use crate::timeline::{Milestone, Timeline};

/// Enough for a loop of system calls and a line of log. A stack of the usual
/// size may get a huge page for its first few bytes, for each thread.
pub(super) const STACK: usize = 128 << 10;

#[derive(Debug, Error)]
enum WorkError {
    #[error(transparent)]
    Populate(#[from] RamError),
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Populates and maps all of RAM.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) blocks: Vec<Arc<RamBlock>>,
    /// Kept until the maps keep them.
    pub(super) pages: KeptPages,
    /// How many populate, this one included.
    pub(super) threads: usize,
    pub(super) populate: Populate,
    pub(super) timeline: Timeline,
}

/// Tells the end of the work, also when that panics: somebody may be waiting.
struct Ending(Arc<Shared>, Option<State>);

impl Drop for Ending {
    fn drop(&mut self) {
        let panicked = || State::Failed("the thread that maps it panicked".into());
        self.0.end(self.1.take().unwrap_or_else(panicked));
    }
}

impl Worker {
    pub(super) fn run(self, space: &Receiver<Arc<dyn AddressSpace>>) {
        let mut ending = Ending(Arc::clone(&self.shared), None);
        ending.1 = Some(match self.work(space) {
            Ok(true) => {
                self.timeline.mark(Milestone::MemoryMapped);
                State::Mapped
            }
            Ok(false) => State::Failed("the VM is ending".into()),
            Err(error) => {
                let reason = Chain(&error).to_string();
                log::warn!("guest memory can't be mapped for devices: {reason}");
                State::Failed(reason)
            }
        });
        // The end is told last: RAM that isn't mapped may be given back then.
        drop(self);
    }

    /// Whether all was done, and not stopped half-way.
    fn work(&self, space: &Receiver<Arc<dyn AddressSpace>>) -> Result<bool, WorkError> {
        let begun = Instant::now();
        self.populate()?;
        if self.shared.lock().stop {
            return Ok(false);
        }
        log::debug!("guest RAM was populated in {:?}", begun.elapsed());
        let Ok(space) = space.recv() else {
            return Ok(false);
        };
        self.map(&*space)?;
        Ok(true)
    }

    /// Populates with all threads, until all is there, one of them has failed,
    /// or the work is stopped. Answers the first failure.
    fn populate(&self) -> Result<(), RamError> {
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for number in 1..self.threads {
                let helper = std::thread::Builder::new()
                    .name(format!("prefault-{number}"))
                    .stack_size(STACK)
                    .spawn_scoped(scope, || self.populate_steps(&failure));
                if let Err(error) = helper {
                    log::info!("only {number} threads populate guest RAM: {error}");
                    break;
                }
            }
            self.populate_steps(&failure);
        });
        let failure = failure.into_inner().unwrap_or_else(PoisonError::into_inner);
        failure.map_or(Ok(()), Err)
    }

    fn populate_steps(&self, failure: &Mutex<Option<RamError>>) {
        let failure = || failure.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while let Some(step) = self.shared.next(done, &self.blocks) {
            let Some(block) = self.blocks.get(step.block) else {
                return;
            };
            if failure().is_some() {
                return;
            }
            if let Err(error) = (self.populate)(block, step.offset, step.size) {
                failure().get_or_insert(error);
                return;
            }
            done = step.size;
        }
    }

    /// Maps every block, or none. Pinning pages that are there takes
    /// milliseconds: it is done in one call a block, and never holds the
    /// container for long.
    fn map(&self, space: &dyn AddressSpace) -> Result<(), MapError> {
        for (index, block) in self.blocks.iter().enumerate() {
            let memory = DeviceRam::new(Arc::clone(block), self.pages.clone());
            let mapped = space.map(block.start(), Arc::new(memory) as Arc<dyn HostMemory>);
            if let Err(error) = mapped {
                for block in self.blocks.iter().take(index) {
                    if let Err(error) = space.unmap(block.start()) {
                        log::warn!("{}", Chain(&error));
                    }
                }
                return Err(error);
            }
        }
        Ok(())
    }
}
