//! What is known of the processes in the nested host, as the agent reports it.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use crate::agent::protocol::{Event, Exit, Request, Stream, decode_bytes};

/// A line of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When its last byte arrived at the agent: the nested host's
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub ns: u64,
    /// Where it was written.
    pub stream: Stream,
    /// The line, without its end; bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// One process's story so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    pub(super) pid: Option<u32>,
    pub(super) started_ns: u64,
    pub(super) ended_ns: u64,
    pub(super) exit: Option<Exit>,
    pub(super) refused: Option<String>,
    pub(super) stdout: Output,
    pub(super) stderr: Output,
    /// The finished lines of both streams in the order of their ends.
    pub(super) lines: Vec<Line>,
}

/// What was written to one stream.
#[derive(Clone, Debug, Default)]
pub(super) struct Output {
    pub(super) bytes: Vec<u8>,
    /// Where the unfinished line begins.
    line_start: usize,
}

impl Record {
    fn append(&mut self, stream: Stream, bytes: &[u8], ns: u64) {
        let output = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let mut searched = output.bytes.len();
        output.bytes.extend_from_slice(bytes);
        while let Some(found) = output.bytes[searched..].iter().position(|b| *b == b'\n') {
            let end = searched + found;
            self.lines.push(Line {
                ns,
                stream,
                text: line_text(&output.bytes[output.line_start..end]),
            });
            searched = end + 1;
            output.line_start = searched;
        }
    }

    /// Turns unfinished lines into lines, at the process's end.
    fn finish(&mut self, ns: u64) {
        for (stream, output) in [
            (Stream::Stdout, &mut self.stdout),
            (Stream::Stderr, &mut self.stderr),
        ] {
            if output.line_start < output.bytes.len() {
                self.lines.push(Line {
                    ns,
                    stream,
                    text: line_text(&output.bytes[output.line_start..]),
                });
                output.line_start = output.bytes.len();
            }
        }
    }

    /// The last `count` lines, with what is unfinished at the end.
    pub(super) fn tail(&self, count: usize) -> Vec<String> {
        let mut copy = self.clone();
        copy.finish(0);
        let skip = copy.lines.len().saturating_sub(count);
        copy.lines.drain(..skip);
        copy.lines.into_iter().map(|line| line.text).collect()
    }
}

/// A serial console ends its lines with CR LF.
fn line_text(bytes: &[u8]) -> String {
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    String::from_utf8_lossy(bytes).into_owned()
}

#[derive(Debug, Default)]
struct State {
    ready_ns: Option<u64>,
    processes: HashMap<u32, Record>,
    next_id: u32,
    /// Set when nothing will come any more, with the reason.
    closed: Option<String>,
}

/// The lab's end of the protocol: sends requests, collects events.
#[derive(Debug)]
pub(super) struct Session {
    state: Mutex<State>,
    changed: Condvar,
    port: Mutex<UnixStream>,
}

impl Session {
    /// Starts to collect events from `port`.
    pub(super) fn start(port: UnixStream) -> std::io::Result<Arc<Self>> {
        let events = port.try_clone()?;
        let session = Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            port: Mutex::new(port),
        });
        let collector = Arc::clone(&session);
        thread::Builder::new()
            .name("lab-events".to_owned())
            .spawn(move || collector.collect(events))?;
        Ok(session)
    }

    fn collect(&self, events: UnixStream) {
        let mut reason = "the nested host closed the agent's port".to_owned();
        for line in BufReader::new(events).lines() {
            let event = line
                .map_err(|error| format!("the agent's port failed: {error}"))
                .and_then(|line| {
                    serde_json::from_str(&line)
                        .map_err(|error| format!("the agent sent {line:?}: {error}"))
                });
            match event {
                Ok(event) => self.note(event),
                Err(error) => {
                    reason = error;
                    break;
                }
            }
        }
        self.lock().closed = Some(reason);
        self.changed.notify_all();
    }

    fn note(&self, event: Event) {
        let mut state = self.lock();
        match event {
            Event::Ready { ns } => state.ready_ns = Some(ns),
            Event::Started { id, pid, ns } => {
                let record = state.processes.entry(id).or_default();
                record.pid = Some(pid);
                record.started_ns = ns;
            }
            Event::Refused { id, reason } => {
                state.processes.entry(id).or_default().refused = Some(reason);
            }
            Event::Output {
                id,
                stream,
                bytes,
                ns,
            } => {
                // The agent encodes every byte below U+0100.
                let bytes = decode_bytes(&bytes).unwrap_or_default();
                let record = state.processes.entry(id).or_default();
                record.append(stream, &bytes, ns);
            }
            Event::Exited { id, exit, ns } => {
                let record = state.processes.entry(id).or_default();
                record.finish(ns);
                record.ended_ns = ns;
                record.exit = Some(exit);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for a new process.
    pub(super) fn new_id(&self) -> u32 {
        let mut state = self.lock();
        state.next_id += 1;
        state.next_id
    }

    /// Sends a request.
    pub(super) fn send(&self, request: &Request) -> Result<(), Waited> {
        let mut line =
            serde_json::to_vec(request).map_err(|error| Waited::Closed(error.to_string()))?;
        line.push(b'\n');
        let mut port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        port.write_all(&line)
            .map_err(|error| Waited::Closed(format!("cannot reach the agent: {error}")))
    }

    /// Waits until the agent is ready; gives the nested host's time then.
    pub(super) fn wait_ready(&self, deadline: Instant) -> Result<u64, Waited> {
        self.wait(deadline, |state| state.ready_ns)
    }

    /// Waits until `look` finds something in the record of process `id`.
    pub(super) fn wait_for<T>(
        &self,
        id: u32,
        deadline: Instant,
        mut look: impl FnMut(&Record) -> Option<T>,
    ) -> Result<T, Waited> {
        self.wait(deadline, |state| {
            state.processes.get(&id).and_then(&mut look)
        })
    }

    fn wait<T>(
        &self,
        deadline: Instant,
        mut look: impl FnMut(&State) -> Option<T>,
    ) -> Result<T, Waited> {
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&state) {
                return Ok(found);
            }
            if let Some(reason) = &state.closed {
                return Err(Waited::Closed(reason.clone()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Waited::TimeLimit);
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// A copy of what is known of process `id`.
    pub(super) fn record(&self, id: u32) -> Record {
        self.lock().processes.get(&id).cloned().unwrap_or_default()
    }
}

/// Why a wait ended without what was waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// The deadline passed.
    TimeLimit,
    /// Nothing will come any more, and why.
    Closed(String),
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn lines_are_put_together_from_pieces_of_both_streams() {
        let mut record = Record::default();
        record.append(Stream::Stdout, b"one\r\ntw", 1);
        record.append(Stream::Stderr, b"error\n", 2);
        record.append(Stream::Stdout, b"o\n\npart", 3);
        assert_eq!(record.tail(2), ["", "part"]);
        record.finish(4);
        let lines: Vec<_> = record
            .lines
            .iter()
            .map(|line| (line.ns, line.text.as_str()))
            .collect();
        assert_eq!(
            lines,
            [(1, "one"), (2, "error"), (3, "two"), (3, ""), (4, "part")]
        );
        assert_eq!(record.stdout.bytes, b"one\r\ntwo\n\npart");
    }

    #[test]
    fn a_wait_ends_by_event_by_deadline_and_by_hang_up() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let session = Session::start(ours).unwrap();
        let soon = || Instant::now() + Duration::from_millis(20);
        assert_eq!(session.wait_ready(soon()), Err(Waited::TimeLimit));
        theirs
            .write_all(b"{\"event\":\"ready\",\"ns\":5}\n")
            .unwrap();
        let far = Instant::now() + Duration::from_secs(60);
        assert_eq!(session.wait_ready(far), Ok(5));
        theirs.write_all(b"nonsense\n").unwrap();
        let Err(Waited::Closed(reason)) = session.wait_for(1, far, |record| record.exit) else {
            panic!("a line that is no event must end the session");
        };
        assert!(reason.contains("nonsense"), "{reason}");
    }
}
