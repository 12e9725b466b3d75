use std::sync::Arc;
use std::time::{Duration, Instant};

use super::session::{Line, Record};
use super::{Host, HostError, Shared};
use crate::agent::protocol::{Exit, Request, encode_bytes};

/// A step: a process to run in the nested host, and how long it may take.
#[derive(Clone, Debug)]
pub struct Step {
    argv: Vec<String>,
    input: Vec<u8>,
    limit: Duration,
}

impl Step {
    /// Runs a program with arguments; the program is looked for in `PATH`. The
    /// time limit is 30 s unless [`Step::limit`] says otherwise.
    pub fn argv<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            input: Vec::new(),
            limit: Duration::from_secs(30),
        }
    }

    /// Runs a script with `/bin/sh`; a failing command ends it.
    pub fn shell(script: impl Into<String>) -> Self {
        Self::argv(["/bin/sh".to_owned(), "-ec".to_owned(), script.into()])
    }

    /// What its standard input holds (default: nothing).
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// How long it may take, from its start to its end.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The program and its arguments.
    pub fn words(&self) -> &[String] {
        &self.argv
    }

    /// The command, for messages.
    pub fn title(&self) -> String {
        self.argv.join(" ")
    }
}

/// How a process ended and what it wrote.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The command.
    pub title: String,
    /// How it ended.
    pub exit: Exit,
    /// What it wrote to standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    /// The lines of both, in the order they came.
    pub lines: Vec<Line>,
    /// When it was started: the nested host's `CLOCK_MONOTONIC` in nanoseconds.
    pub started_ns: u64,
    /// When it ended, on the same clock.
    pub ended_ns: u64,
}

impl Outcome {
    /// Whether it exited with status 0.
    pub fn success(&self) -> bool {
        self.exit == Exit::Status(0)
    }

    /// Itself, if it exited with status 0.
    ///
    /// # Errors
    /// [`HostError::Failed`] with its output otherwise.
    pub fn expect_success(self) -> Result<Self, HostError> {
        if self.success() {
            return Ok(self);
        }
        Err(HostError::Failed(Box::new(self)))
    }

    /// The first line that contains `text`.
    pub fn line(&self, text: &str) -> Option<&Line> {
        self.lines.iter().find(|line| line.text.contains(text))
    }

    fn new(title: String, exit: Exit, record: Record) -> Self {
        Self {
            title,
            exit,
            stdout: String::from_utf8_lossy(&record.stdout.bytes).into_owned(),
            stderr: String::from_utf8_lossy(&record.stderr.bytes).into_owned(),
            lines: record.lines,
            started_ns: record.started_ns,
            ended_ns: record.ended_ns,
        }
    }
}

/// A process that runs in the nested host beside the scenario. Dropping the
/// handle leaves the process alone; it ends with the host.
#[derive(Debug)]
pub struct Process {
    shared: Arc<Shared>,
    id: u32,
    pid: u32,
    title: String,
    deadline: Instant,
    limit: Duration,
    /// How many lines [`Process::wait_line`] has passed.
    passed: usize,
}

impl Process {
    pub(super) fn start(shared: &Arc<Shared>, step: &Step) -> Result<Self, HostError> {
        let id = shared.session.new_id();
        let deadline = Instant::now() + step.limit;
        let title = step.title();
        let argv = step.argv.clone();
        let sent = shared.session.send(&Request::Start { id, argv });
        sent.map_err(|waited| shared.give_up(waited, &title, step.limit, Some(id)))?;
        let begun =
            shared
                .session
                .wait_for(id, deadline, |record| match (record.pid, &record.refused) {
                    (Some(pid), _) => Some(Ok(pid)),
                    (None, Some(reason)) => Some(Err(reason.clone())),
                    (None, None) => None,
                });
        let pid = match begun {
            Ok(Ok(pid)) => pid,
            Ok(Err(reason)) => return Err(HostError::Refused { title, reason }),
            Err(waited) => return Err(shared.give_up(waited, &title, step.limit, Some(id))),
        };
        let process = Self {
            shared: Arc::clone(shared),
            id,
            pid,
            title,
            deadline,
            limit: step.limit,
            passed: 0,
        };
        if !step.input.is_empty() {
            process.write(&step.input)?;
        }
        Ok(process)
    }

    /// Its process id in the nested host.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    fn request(&self, request: &Request) -> Result<(), HostError> {
        self.shared
            .session
            .send(request)
            .map_err(|waited| self.give_up(waited, self.limit))
    }

    fn give_up(&self, waited: super::session::Waited, limit: Duration) -> HostError {
        self.shared
            .give_up(waited, &self.title, limit, Some(self.id))
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// [`HostError`] when the nested host is gone. (A process that has ended
    /// already drops it.)
    pub fn write(&self, bytes: &[u8]) -> Result<(), HostError> {
        // Pieces, so that no line of the protocol grows without bound.
        for piece in bytes.chunks(16 << 10) {
            self.request(&Request::Input {
                id: self.id,
                bytes: encode_bytes(piece),
            })?;
        }
        Ok(())
    }

    /// Closes its standard input.
    ///
    /// # Errors
    /// [`HostError`] when the nested host is gone.
    pub fn close_stdin(&self) -> Result<(), HostError> {
        self.request(&Request::CloseInput { id: self.id })
    }

    /// Sends it a signal, by number (see signal(7): 9 is SIGKILL, 15 SIGTERM).
    ///
    /// # Errors
    /// [`HostError`] when the nested host is gone.
    pub fn signal(&self, signal: i32) -> Result<(), HostError> {
        self.request(&Request::Signal {
            id: self.id,
            signal,
        })
    }

    /// Waits for the next line, among those that earlier calls did not pass;
    /// `None` when the process has ended and there is none.
    ///
    /// # Errors
    /// After `limit` the nested host is ended: [`HostError::TimeLimit`].
    pub fn next_line(&mut self, limit: Duration) -> Result<Option<Line>, HostError> {
        let from = self.passed;
        let deadline = Instant::now() + limit;
        let next = self.shared.session.wait_for(self.id, deadline, |record| {
            match record.lines.get(from) {
                Some(line) => Some(Some(line.clone())),
                None => record.exit.map(|_| None),
            }
        });
        let next = next.map_err(|waited| self.give_up(waited, limit))?;
        self.passed += usize::from(next.is_some());
        Ok(next)
    }

    /// Waits for a line that contains `text`, among those that earlier calls
    /// did not pass.
    ///
    /// # Errors
    /// [`HostError::Ended`] when the process ends first. After `limit` the
    /// nested host is ended: [`HostError::TimeLimit`].
    pub fn wait_line(&mut self, text: &str, limit: Duration) -> Result<Line, HostError> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.next_line(left)? {
                Some(line) if line.text.contains(text) => return Ok(line),
                Some(_) => {}
                None => {
                    return Err(HostError::Ended {
                        title: self.title.clone(),
                        text: text.to_owned(),
                        tail: self.shared.session.record(self.id).tail(super::TAIL_LINES),
                    });
                }
            }
        }
    }

    /// Closes its standard input and waits for its end.
    ///
    /// # Errors
    /// When the step's time limit, counted from its start, passes, the nested
    /// host is ended: [`HostError::TimeLimit`].
    pub fn wait(self) -> Result<Outcome, HostError> {
        self.close_stdin()?;
        let exit = self
            .shared
            .session
            .wait_for(self.id, self.deadline, |record| record.exit)
            .map_err(|waited| self.give_up(waited, self.limit))?;
        let record = self.shared.session.record(self.id);
        Ok(Outcome::new(self.title, exit, record))
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        self.shared.session.record(self.id).exit.is_none()
    }
}

impl Host {
    /// Runs a step to its end.
    ///
    /// # Errors
    /// [`HostError`]; a step that fails is an outcome, not an error (see
    /// [`Outcome::expect_success`]).
    pub fn run(&self, step: &Step) -> Result<Outcome, HostError> {
        self.start(step)?.wait()
    }

    /// Runs a shell script that must succeed, and gives its standard output.
    ///
    /// # Errors
    /// [`HostError::Failed`] when it exits with another status than 0.
    pub fn shell(&self, script: &str) -> Result<String, HostError> {
        let outcome = self.run(&Step::shell(script))?;
        Ok(outcome.expect_success()?.stdout)
    }

    /// Starts a step and leaves it running.
    ///
    /// # Errors
    /// [`HostError::Refused`] when the program cannot be started.
    pub fn start(&self, step: &Step) -> Result<Process, HostError> {
        Process::start(&self.shared, step)
    }
}
