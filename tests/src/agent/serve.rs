use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::system::{RebootCommand, reboot};
use rustix::time::{ClockId, clock_gettime};
use thiserror::Error;

use super::protocol::{Event, Exit, PORT_NAME, Request, Stream, decode_bytes, encode_bytes};

/// How long the outputs of an ended process may stay open (held by a child of
/// its own) before its end is reported all the same.
const OUTPUT_GRACE: Duration = Duration::from_millis(500);

/// Why the agent could not serve.
#[derive(Debug, Error)]
pub enum AgentError {
    /// No virtio-serial port has the protocol's name.
    #[error("no virtio-serial port in {0} is named {PORT_NAME}")]
    NoPort(PathBuf),
    /// The port could not be used.
    #[error("cannot use {path}: {source}")]
    Port {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line from the lab is not a request.
    #[error("not a request: {line}: {source}")]
    Malformed {
        /// The line.
        line: String,
        /// Why.
        source: serde_json::Error,
    },
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // The kernel never lets this clock be negative.
    u64::try_from(now.tv_sec).unwrap_or_default() * 1_000_000_000
        + u64::try_from(now.tv_nsec).unwrap_or_default()
}

/// Opens the port that carries the protocol. `sysfs` and `dev` are `/sys` and
/// `/dev`.
///
/// # Errors
/// [`AgentError`] when there is none or it cannot be opened.
pub fn open_port(sysfs: &Path, dev: &Path) -> Result<File, AgentError> {
    let class = sysfs.join("class/virtio-ports");
    let entries = fs::read_dir(&class).map_err(|_| AgentError::NoPort(class.clone()))?;
    for entry in entries.flatten() {
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == PORT_NAME {
            let path = dev.join(entry.file_name());
            return OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .map_err(|source| AgentError::Port { path, source });
        }
    }
    Err(AgentError::NoPort(class))
}

/// A process that was started and whose end was not yet reported.
struct Running {
    pid: u32,
    input: Option<ChildStdin>,
}

type Table = Arc<Mutex<HashMap<u32, Running>>>;

/// Obeys requests from `requests` until it ends or asks for power-off, and
/// reports on `events`.
///
/// # Errors
/// [`AgentError`] when a line is not a request or the port fails.
pub fn serve(
    requests: impl Read,
    mut events: impl Write + Send + 'static,
) -> Result<(), AgentError> {
    let (sender, receiver) = channel::<Event>();
    // One thread writes, so that events of several processes never mix within a line.
    thread::spawn(move || {
        for event in receiver {
            let Ok(mut line) = serde_json::to_vec(&event) else {
                continue;
            };
            line.push(b'\n');
            if events.write_all(&line).is_err() {
                return;
            }
        }
    });
    let table = Table::default();
    let _ = sender.send(Event::Ready { ns: monotonic_ns() });
    for line in BufReader::new(requests).lines() {
        let line = line.map_err(|source| AgentError::Port {
            path: PORT_NAME.into(),
            source,
        })?;
        let request =
            serde_json::from_str(&line).map_err(|source| AgentError::Malformed { line, source })?;
        obey(request, &table, &sender);
    }
    Ok(())
}

fn obey(request: Request, table: &Table, events: &Sender<Event>) {
    let (id, result) = match request {
        Request::Start { id, argv } => (id, start(id, &argv, table, events)),
        Request::Input { id, bytes } => (id, write_input(id, &bytes, table)),
        Request::CloseInput { id } => (
            id,
            with(id, table, |running| {
                running.input = None;
                Ok(())
            }),
        ),
        Request::Signal { id, signal } => {
            (id, with(id, table, |running| send(running.pid, signal)))
        }
        Request::PowerOff => {
            rustix::fs::sync();
            let _ = reboot(RebootCommand::PowerOff);
            return;
        }
    };
    if let Err(error) = result {
        let _ = events.send(Event::Refused {
            id,
            reason: error.to_string(),
        });
    }
}

fn with(
    id: u32,
    table: &Table,
    act: impl FnOnce(&mut Running) -> io::Result<()>,
) -> io::Result<()> {
    let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
    match table.get_mut(&id) {
        Some(running) => act(running),
        None => Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the process has ended or never was",
        )),
    }
}

fn send(pid: u32, signal: i32) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let signal = Signal::from_named_raw(signal);
    let (Some(pid), Some(signal)) = (pid, signal) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    Ok(kill_process(pid, signal)?)
}

fn write_input(id: u32, bytes: &str, table: &Table) -> io::Result<()> {
    let bytes = decode_bytes(bytes).ok_or(io::ErrorKind::InvalidInput)?;
    with(id, table, |running| match &mut running.input {
        Some(input) => input.write_all(&bytes),
        None => Err(io::ErrorKind::BrokenPipe.into()),
    })
}

fn start(id: u32, argv: &[String], table: &Table, events: &Sender<Event>) -> io::Result<()> {
    let (program, arguments) = argv
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no program was given"))?;
    let ns = monotonic_ns();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
    let pid = child.id();
    let _ = events.send(Event::Started { id, pid, ns });
    let running = Running {
        pid,
        input: child.stdin.take(),
    };
    table
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(id, running);
    let (table, events) = (Arc::clone(table), events.clone());
    thread::spawn(move || supervise(id, child, &table, &events));
    Ok(())
}

/// Passes the output on and reports the end.
fn supervise(id: u32, mut child: Child, table: &Table, events: &Sender<Event>) {
    let (closed, all_closed) = channel::<()>();
    if let Some(output) = child.stdout.take() {
        pass_on(id, Stream::Stdout, output, events.clone(), closed.clone());
    }
    if let Some(output) = child.stderr.take() {
        pass_on(id, Stream::Stderr, output, events.clone(), closed.clone());
    }
    drop(closed);
    let status = child.wait();
    let ns = monotonic_ns();
    // Disconnects when both readers are done: nothing is ever sent.
    let _ = all_closed.recv_timeout(OUTPUT_GRACE);
    table
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(&id);
    let event = match status {
        Ok(status) => Event::Exited {
            id,
            exit: exit_of(status),
            ns,
        },
        Err(error) => Event::Refused {
            id,
            reason: format!("cannot wait for it: {error}"),
        },
    };
    let _ = events.send(event);
}

fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Status(code),
        (None, signal) => Exit::Signal(signal.unwrap_or_default()),
    }
}

fn pass_on(
    id: u32,
    stream: Stream,
    mut output: impl Read + Send + 'static,
    events: Sender<Event>,
    closed: Sender<()>,
) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            let _ = events.send(Event::Output {
                id,
                stream,
                bytes: encode_bytes(&buffer[..count]),
                ns: monotonic_ns(),
            });
        }
        drop(closed);
    });
}
