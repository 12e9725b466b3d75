use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// A running QEMU. Dropping it kills it; the kernel kills it when this process
/// dies in whatever way.
#[derive(Debug)]
pub(super) struct Qemu {
    child: Child,
    /// Holds the thread that started QEMU: the kernel ties QEMU's life to that
    /// thread, not to the process (prctl(2), PR_SET_PDEATHSIG), and a test may
    /// hand the machine from one thread to another.
    _keeper: Sender<()>,
}

impl Qemu {
    /// Starts `program` with `args`; `port` becomes its standard input, `monitor`
    /// its standard output, its messages go to the file `log`.
    pub(super) fn start(
        program: &Path,
        args: &[String],
        port: UnixStream,
        monitor: UnixStream,
        log: &Path,
    ) -> io::Result<Self> {
        let messages = File::create(log)?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(args)
            .stdin(OwnedFd::from(port))
            .stdout(OwnedFd::from(monitor))
            .stderr(messages);
        let (started, result) = channel();
        let (keeper, hold) = channel::<()>();
        thread::Builder::new()
            .name("qemu-keeper".to_owned())
            .spawn(move || {
                let child = command.spawn();
                // With it go this process's copies of QEMU's ends of the sockets:
                // kept open, the end of QEMU would not be seen.
                drop(command);
                let _ = started.send(child);
                // Ends when the sender is dropped; nothing is ever sent.
                let _ = hold.recv();
            })?;
        let child = result
            .recv()
            .map_err(|_| io::Error::other("the thread that starts QEMU ended"))??;
        Ok(Self {
            child,
            _keeper: keeper,
        })
    }

    /// Its exit status, if it has ended.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end, at most `limit`.
    pub(super) fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it at once.
    pub(super) fn kill(&mut self) {
        // Both fail only for a child that was waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
    }
}
