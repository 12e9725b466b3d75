use std::io;
use std::thread::JoinHandle;

use passthrough::{OpenError, Opened};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::ArrivalError;

/// Devices that are being opened by a thread of their own. Dropping waits for it, and
/// closes them.
#[derive(Debug)]
pub struct Opening {
    /// Until it is taken, or has failed.
    work: Option<Work>,
    done: EventFd,
}

#[derive(Debug)]
enum Work {
    Running(JoinHandle<Result<Opened, OpenError>>),
    Done(Opened),
}

impl Opening {
    /// Begins with `open`, which opens them.
    ///
    /// # Errors
    /// When no thread or eventfd can be had. Nothing is open then.
    pub fn start(
        open: impl FnOnce() -> Result<Opened, OpenError> + Send + 'static,
    ) -> io::Result<Self> {
        let done = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let tell = Told(done.try_clone()?);
        let thread = std::thread::Builder::new()
            .name("open-devices".into())
            .spawn(move || {
                let _tell = tell;
                open()
            })?;
        Ok(Self {
            work: Some(Work::Running(thread)),
            done,
        })
    }

    /// Readable once they are open, or can't be.
    pub fn done(&self) -> &EventFd {
        &self.done
    }

    /// Whether they have been waited for.
    pub fn is_over(&self) -> bool {
        !matches!(self.work, Some(Work::Running(_)))
    }

    /// Waits for them. They stay here.
    ///
    /// # Errors
    /// What the kernel refused. Nothing is open then.
    pub fn wait(&mut self) -> Result<&Opened, ArrivalError> {
        let opened = self.take()?;
        match self.work.insert(Work::Done(opened)) {
            Work::Done(opened) => Ok(opened),
            Work::Running(_) => Err(ArrivalError::Panicked),
        }
    }

    /// Waits for them, and hands them out.
    ///
    /// # Errors
    /// What the kernel refused. Nothing is open then.
    pub fn finish(mut self) -> Result<Opened, ArrivalError> {
        self.take()
    }

    fn take(&mut self) -> Result<Opened, ArrivalError> {
        match self.work.take() {
            Some(Work::Running(thread)) => {
                let opened = thread.join().map_err(|_| ArrivalError::Panicked)??;
                log::info!("the devices were taken by {}", opened.interface);
                Ok(opened)
            }
            Some(Work::Done(opened)) => Ok(opened),
            None => Err(ArrivalError::Panicked),
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(Work::Running(thread)) = self.work.take()
            && thread.join().is_err()
        {
            log::error!("the thread that opens devices panicked");
        }
    }
}

/// Says that the thread has ended, however it did.
struct Told(EventFd);

impl Drop for Told {
    fn drop(&mut self) {
        if let Err(error) = self.0.write(1) {
            log::error!("cannot tell that the devices are open: {error}");
        }
    }
}
