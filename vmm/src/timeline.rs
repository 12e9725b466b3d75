//! Where the time of a run went.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::sys::monotonic_ns;

/// The points in the life of a VM that are worth a time stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Milestone {
    /// The process began.
    Start,
    /// The plan was made and says go.
    Plan,
    /// The devices are open.
    DevicesOpen,
    /// Kernel and initrd are in guest memory.
    KernelLoaded,
    /// The first vCPU is about to enter the guest.
    FirstVcpuEntry,
    /// All of guest RAM can be reached by devices.
    MemoryMapped,
    /// The guest ended.
    GuestEnded,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Event {
    name: Milestone,
    /// On `CLOCK_MONOTONIC`, comparable between processes.
    monotonic_ns: u64,
}

/// Time stamps of a run, in the order they came. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Timeline(Arc<Mutex<Vec<Event>>>);

impl Timeline {
    /// Begins now.
    pub fn start() -> Self {
        let this = Self(Arc::default());
        this.mark(Milestone::Start);
        this
    }

    /// Notes that `name` has been reached now.
    pub fn mark(&self, name: Milestone) {
        let event = Event {
            name,
            monotonic_ns: monotonic_ns(),
        };
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let start = events
            .first()
            .map_or(event.monotonic_ns, |first| first.monotonic_ns);
        let since = event.monotonic_ns.saturating_sub(start);
        log::info!(
            "{name:?} after {}.{:03} ms",
            since / 1_000_000,
            since / 1000 % 1000
        );
        events.push(event);
    }

    /// Writes the events as JSON: `{"events":[{"name":…,"monotonic_ns":…}]}`.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        #[derive(Serialize)]
        struct Document<'a> {
            events: &'a [Event],
        }
        let events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        fs::write(path, serde_json::to_vec(&Document { events: &events })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_written_in_order() {
        let timeline = Timeline::start();
        timeline.mark(Milestone::FirstVcpuEntry);
        let file = tempfile::NamedTempFile::new().unwrap();
        timeline.save(file.path()).unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let events = value["events"].as_array().unwrap();
        assert_eq!(events[0]["name"], "start");
        assert_eq!(events[1]["name"], "first-vcpu-entry");
        assert!(events[0]["monotonic_ns"].as_u64() <= events[1]["monotonic_ns"].as_u64());
    }
}
