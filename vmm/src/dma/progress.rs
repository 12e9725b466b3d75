use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use passthrough::ports::HostMemory;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::memory::RamBlock;

#[derive(Debug)]
pub(super) enum State {
    Working,
    Mapped,
    Failed(String),
}

/// A part of RAM to populate in one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Which block.
    pub(super) block: usize,
    /// Where in it, in bytes.
    pub(super) offset: usize,
    /// Bytes.
    pub(super) size: usize,
}

#[derive(Debug)]
pub(super) struct Progress {
    pub(super) state: State,
    /// Populating rests while nobody waits for it.
    pub(super) paused: bool,
    pub(super) waiting: usize,
    pub(super) stop: bool,
    /// The next step that nobody has taken.
    next: Step,
    done: u64,
    total: u64,
}

/// How much of RAM is there, for a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Populated {
    done: u64,
    total: u64,
}

impl Progress {
    /// How far populating has come.
    pub(super) fn populated(&self) -> Populated {
        Populated {
            done: self.done,
            total: self.total,
        }
    }

    fn take(&mut self, blocks: &[Arc<RamBlock>]) -> Option<Step> {
        while let Some(block) = blocks.get(self.next.block) {
            let left = block.size().saturating_sub(self.next.offset);
            if left > 0 {
                let size = block.populate_step().min(left);
                let step = Step { size, ..self.next };
                self.next.offset += size;
                return Some(step);
            }
            self.next.block += 1;
            self.next.offset = 0;
        }
        None
    }
}

impl fmt::Display for Populated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.done.saturating_mul(100) / self.total.max(1);
        let (done, total) = (self.done >> 20, self.total >> 20);
        write!(f, "{percent} % ({done} of {total} MiB) are populated")
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    progress: Mutex<Progress>,
    pub(super) changed: Condvar,
    ended: EventFd,
}

impl Shared {
    pub(super) fn new(blocks: &[Arc<RamBlock>]) -> io::Result<Self> {
        let sizes = blocks.iter().map(|block| block.size() as u64);
        Ok(Self {
            progress: Mutex::new(Progress {
                state: State::Working,
                paused: false,
                waiting: 0,
                stop: false,
                next: Step {
                    block: 0,
                    offset: 0,
                    size: 0,
                },
                done: 0,
                total: sizes.fold(0, u64::saturating_add),
            }),
            changed: Condvar::new(),
            ended: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something that others may be waiting for.
    pub(super) fn change(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Tells the end of the work.
    pub(super) fn end(&self, state: State) {
        self.change(|progress| {
            progress.state = state;
            // Under the lock: whoever sees the one sees the other.
            if let Err(error) = self.ended.write(1) {
                log::error!("cannot tell that guest memory is mapped: {error}");
            }
        });
    }

    pub(super) fn ended(&self) -> &EventFd {
        &self.ended
    }

    /// What to populate next, after `done` bytes: nothing when all has been
    /// taken or the work is stopped. Rests while paused.
    pub(super) fn next(&self, done: usize, blocks: &[Arc<RamBlock>]) -> Option<Step> {
        let mut progress = self.lock();
        progress.done = progress.done.saturating_add(done as u64);
        while progress.paused && progress.waiting == 0 && !progress.stop {
            progress = self
                .changed
                .wait(progress)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if progress.stop {
            return None;
        }
        progress.take(blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{GuestRam, GuestRange};

    #[test]
    fn every_byte_is_a_step_of_one_thread() {
        let mib = |start: u64, size: u64| GuestRange {
            start: start << 20,
            size: size << 20,
        };
        let ram = GuestRam::new(&[mib(0, 4), mib(4096, 2)]).unwrap();
        let shared = Shared::new(ram.blocks()).unwrap();
        let mut steps = Vec::new();
        let mut done = 0;
        while let Some(step) = shared.next(done, ram.blocks()) {
            let told = shared.lock().populated().to_string();
            let before = [
                "0 % (0 of 6 MiB) are populated",
                "33 % (2 of 6 MiB) are populated",
                "66 % (4 of 6 MiB) are populated",
            ];
            assert_eq!(told, before[steps.len()]);
            done = step.size;
            steps.push((step.block, step.offset, step.size));
        }
        let size = 2 << 20;
        assert_eq!(steps, [(0, 0, size), (0, size, size), (1, 0, size)]);
        assert!(shared.lock().populated().to_string().starts_with("100 %"));
        assert_eq!(shared.next(0, ram.blocks()), None);
    }
}
