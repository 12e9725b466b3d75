//! What the lab and its agent say to each other: one JSON object a line.
//!
//! Bytes of a process (input and output) stand in strings, one character
//! U+0000 to U+00FF for each byte, so that nothing is lost and text stays
//! readable.

use serde::{Deserialize, Serialize};

/// The name of the virtio-serial port that carries the protocol.
pub const PORT_NAME: &str = "lab.agent";

/// What the lab asks of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Start a process; everything later names it by `id`.
    Start {
        /// Chosen by the lab, unique in the life of the host.
        id: u32,
        /// Program and arguments; the program is looked for in `PATH`.
        argv: Vec<String>,
    },
    /// Write to the process's standard input.
    Input {
        /// Which process.
        id: u32,
        /// The bytes, see the module.
        bytes: String,
    },
    /// Close the process's standard input.
    CloseInput {
        /// Which process.
        id: u32,
    },
    /// Send a signal to the process (to it alone, not to its group).
    Signal {
        /// Which process.
        id: u32,
        /// The signal's number.
        signal: i32,
    },
    /// Write back what is dirty and power the host off.
    PowerOff,
}

/// Which of a process's two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// It exited with this status.
    Status(i32),
    /// A signal of this number ended it.
    Signal(i32),
}

/// What the agent reports. `ns` is the host's `CLOCK_MONOTONIC` in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The agent is ready.
    Ready {
        /// When.
        ns: u64,
    },
    /// The process was started.
    Started {
        /// Which process.
        id: u32,
        /// Its process id in the host.
        pid: u32,
        /// Just before it was started.
        ns: u64,
    },
    /// The process could not be started, or a request named an unknown one.
    Refused {
        /// Which process.
        id: u32,
        /// Why.
        reason: String,
    },
    /// The process wrote something.
    Output {
        /// Which process.
        id: u32,
        /// Where to.
        stream: Stream,
        /// The bytes, see the module.
        bytes: String,
        /// When the agent read it.
        ns: u64,
    },
    /// The process ended, and its output is complete.
    Exited {
        /// Which process.
        id: u32,
        /// How.
        exit: Exit,
        /// When.
        ns: u64,
    },
}

/// The string that stands for `bytes`.
pub fn encode_bytes(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// The bytes that `text` stands for; `None` when a character is above U+00FF.
pub fn decode_bytes(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|c| u8::try_from(c).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_the_way_through_json() {
        let bytes: Vec<u8> = (0..=255).collect();
        let event = Event::Output {
            id: 7,
            stream: Stream::Stderr,
            bytes: encode_bytes(&bytes),
            ns: u64::MAX,
        };
        let line = serde_json::to_string(&event).unwrap();
        assert!(!line.contains('\n'), "an event is one line: {line}");
        let Event::Output { bytes: text, .. } = serde_json::from_str(&line).unwrap() else {
            panic!("another event came back from {line}");
        };
        assert_eq!(decode_bytes(&text).unwrap(), bytes);
    }

    #[test]
    fn a_character_that_is_no_byte_is_refused() {
        assert_eq!(decode_bytes("a\u{100}"), None);
    }

    #[test]
    fn the_wire_form_is_stable() {
        let text = r#"{"request":"start","id":1,"argv":["true"]}"#;
        let request: Request = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
    }
}
