//! QEMU's monitor, by its machine protocol (QEMU, docs/interop/qmp-spec.txt).

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use thiserror::Error;

/// The longest wait for the answer to a command. QEMU answers at once, unless
/// the machine that runs the lab is very busy.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// How many events are kept for one who may still ask for them.
const KEPT_EVENTS: usize = 256;

/// Why QEMU did not do what its monitor was asked.
#[derive(Debug, Error)]
pub enum QmpError {
    /// The socket failed.
    #[error("cannot talk to QEMU's monitor: {0}")]
    Io(#[from] io::Error),
    /// QEMU closed it.
    #[error("QEMU closed its monitor")]
    Closed,
    /// A line is not of the protocol.
    #[error("QEMU's monitor said {line:?}: {source}")]
    Malformed {
        /// The line.
        line: String,
        /// Why.
        source: serde_json::Error,
    },
    /// QEMU refused a command.
    #[error("QEMU refused '{command}': {reason}")]
    Refused {
        /// The command with its arguments.
        command: String,
        /// QEMU's words.
        reason: String,
    },
    /// Nothing came in time.
    #[error("QEMU's monitor did not say {what} in {limit:?}")]
    TimeLimit {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
}

/// Something that QEMU tells by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// Its name: `DEVICE_DELETED`.
    pub name: String,
    /// What it is about.
    pub data: Value,
}

#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<Failure>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    id: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Failure {
    desc: String,
}

/// The monitor's other end: commands out, answers and events in.
#[derive(Debug)]
pub(super) struct Qmp {
    port: BufReader<UnixStream>,
    /// What has come of a line whose end has not.
    partial: Vec<u8>,
    events: VecDeque<Event>,
    last_id: u64,
    greeted: bool,
}

impl Qmp {
    /// A monitor at the other end of `port`; nothing is said yet.
    pub(super) fn new(port: UnixStream) -> Self {
        Self {
            port: BufReader::new(port),
            partial: Vec::new(),
            events: VecDeque::new(),
            last_id: 0,
            greeted: false,
        }
    }

    /// Has QEMU carry out a command, and gives its answer.
    pub(super) fn execute(
        &mut self,
        command: &str,
        arguments: Map<String, Value>,
    ) -> Result<Value, QmpError> {
        if !self.greeted {
            // No command is taken before this one; QEMU's greeting is passed over.
            self.ask("qmp_capabilities", Map::new())?;
            self.greeted = true;
        }
        self.ask(command, arguments)
    }

    fn ask(&mut self, command: &str, arguments: Map<String, Value>) -> Result<Value, QmpError> {
        self.last_id += 1;
        let id = self.last_id;
        let title = title(command, &arguments);
        let request = json!({ "execute": command, "arguments": arguments, "id": id });
        self.port
            .get_mut()
            .write_all(format!("{request}\n").as_bytes())?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let Some(message) = self.next_message(deadline)? else {
                return Err(QmpError::TimeLimit {
                    what: format!("whether it did '{title}'"),
                    limit: ANSWER_LIMIT,
                });
            };
            // An answer to an earlier command that was not waited for to its end.
            if message.id.is_some_and(|of| of != id) {
                continue;
            }
            if let Some(answer) = message.answer {
                return Ok(answer);
            }
            if let Some(failure) = message.error {
                return Err(QmpError::Refused {
                    command: title,
                    reason: failure.desc,
                });
            }
        }
    }

    /// The next event for which `is` holds, also one that came before.
    pub(super) fn wait_event(
        &mut self,
        what: &str,
        limit: Duration,
        is: impl Fn(&Event) -> bool,
    ) -> Result<Event, QmpError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(index) = self.events.iter().position(&is)
                && let Some(event) = self.events.remove(index)
            {
                return Ok(event);
            }
            if self.next_message(deadline)?.is_none() {
                return Err(QmpError::TimeLimit {
                    what: what.to_owned(),
                    limit,
                });
            }
        }
    }

    /// Reads one line, and keeps it if it's an event; `None` after the deadline.
    fn next_message(&mut self, deadline: Instant) -> Result<Option<Message>, QmpError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.port.get_ref().set_read_timeout(Some(left))?;
            // What was read before a failure stays in `partial`.
            match self.port.read_until(b'\n', &mut self.partial) {
                Ok(_) if self.partial.ends_with(b"\n") => break,
                Ok(_) => return Err(QmpError::Closed),
                Err(error) if is_time_out(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let line = std::mem::take(&mut self.partial);
        let mut message: Message =
            serde_json::from_slice(&line).map_err(|source| QmpError::Malformed {
                line: String::from_utf8_lossy(&line).trim_end().to_owned(),
                source,
            })?;
        if let Some(name) = message.event.take() {
            if self.events.len() == KEPT_EVENTS {
                self.events.pop_front();
            }
            let data = message.data.take();
            self.events.push_back(Event { name, data });
        }
        Ok(Some(message))
    }
}

fn is_time_out(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

fn title(command: &str, arguments: &Map<String, Value>) -> String {
    let mut title = command.to_owned();
    for (name, value) in arguments {
        title.push(' ');
        title.push_str(name);
        title.push('=');
        match value {
            Value::String(text) => title.push_str(text),
            other => title.push_str(&other.to_string()),
        }
    }
    title
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const GREETING: &str = r#"{"QMP":{"version":{},"capabilities":["oob"]}}"#;

    /// A QEMU that says `greeting`, then for each request the next of `answers`,
    /// and gives the requests.
    fn fake(answers: &'static [&'static str]) -> (Qmp, thread::JoinHandle<Vec<Value>>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let qemu = thread::spawn(move || {
            theirs
                .write_all(format!("{GREETING}\r\n").as_bytes())
                .unwrap();
            let mut requests = Vec::new();
            let mut lines = BufReader::new(theirs.try_clone().unwrap()).lines();
            for answer in answers {
                let request = lines.next().unwrap().unwrap();
                requests.push(serde_json::from_str(&request).unwrap());
                theirs.write_all(answer.as_bytes()).unwrap();
            }
            requests
        });
        (Qmp::new(ours), qemu)
    }

    fn arguments(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn the_first_command_comes_after_the_negotiation() {
        let (mut qmp, qemu) = fake(&[
            "{\"return\": {}, \"id\": 1}\r\n",
            "{\"return\": {\"running\": true}, \"id\": 2}\r\n",
        ]);
        let answer = qmp.execute("query-status", Map::new()).unwrap();
        assert_eq!(answer, json!({ "running": true }));
        let requests = qemu.join().unwrap();
        assert_eq!(requests[0]["execute"], "qmp_capabilities");
        assert_eq!(
            requests[1],
            json!({ "execute": "query-status", "arguments": {}, "id": 2 })
        );
    }

    #[test]
    fn a_refusal_has_qemus_words() {
        let (mut qmp, _) = fake(&[
            "{\"return\": {}, \"id\": 1}\n",
            "{\"id\": 2, \"error\": {\"class\": \"GenericError\", \"desc\": \"Bus 'x' not found\"}}\n",
        ]);
        let given = arguments(json!({ "driver": "edu", "bus": "x" }));
        let error = qmp.execute("device_add", given).unwrap_err();
        assert_eq!(
            error.to_string(),
            "QEMU refused 'device_add bus=x driver=edu': Bus 'x' not found"
        );
    }

    #[test]
    fn events_are_kept_while_an_answer_is_waited_for() {
        let (mut qmp, _) = fake(&[
            "{\"return\": {}, \"id\": 1}\n{\"event\": \"RTC_CHANGE\", \"data\": {\"offset\": 0}}\n",
            "{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"nic\"}}\n\
             {\"return\": {}, \"id\": 1}\n{\"return\": 7, \"id\": 2}\n",
        ]);
        let answer = qmp.execute("device_del", Map::new()).unwrap();
        assert_eq!(answer, json!(7), "the answer to another command is none");
        let is = |event: &Event| event.name == "DEVICE_DELETED";
        let event = qmp.wait_event("a deletion", ANSWER_LIMIT, is).unwrap();
        assert_eq!(event.data, json!({ "device": "nic" }));
        let again = qmp.wait_event("a deletion", Duration::from_millis(1), is);
        assert!(
            matches!(again, Err(QmpError::TimeLimit { .. } | QmpError::Closed)),
            "{again:?}"
        );
    }

    #[test]
    fn a_line_may_come_in_pieces_and_late() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut qmp = Qmp::new(ours);
        theirs.write_all(b"{\"event\": \"SHUT").unwrap();
        let soon = Duration::from_millis(5);
        let is = |event: &Event| event.name == "SHUTDOWN";
        let early = qmp.wait_event("an end", soon, is).unwrap_err();
        assert_eq!(
            early.to_string(),
            "QEMU's monitor did not say an end in 5ms"
        );
        theirs.write_all(b"DOWN\"}\n").unwrap();
        assert!(qmp.wait_event("an end", ANSWER_LIMIT, is).is_ok());
    }

    #[test]
    fn nonsense_and_the_end_are_told() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut qmp = Qmp::new(ours);
        theirs.write_all(b"what?\n").unwrap();
        let is = |_: &Event| true;
        let error = qmp.wait_event("x", ANSWER_LIMIT, is).unwrap_err();
        assert!(matches!(&error, QmpError::Malformed { line, .. } if line == "what?"));
        drop(theirs);
        let error = qmp.wait_event("x", ANSWER_LIMIT, is).unwrap_err();
        assert!(matches!(error, QmpError::Closed));
    }
}
