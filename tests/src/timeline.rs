//! Where the time of a run went: what `airlock run --timeline` writes, put
//! together with what the lab itself saw. All on the nested host's clock.

use std::fmt;

use serde::Deserialize;

/// A point in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// What happened.
    pub name: String,
    /// When: the nested host's `CLOCK_MONOTONIC` in nanoseconds.
    pub ns: u64,
}

/// Points in the order they happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    points: Vec<Point>,
}

impl Timeline {
    /// What `airlock run --timeline` wrote.
    ///
    /// # Errors
    /// When `text` is not such a document.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Document {
            events: Vec<Event>,
        }
        #[derive(Deserialize)]
        struct Event {
            name: String,
            monotonic_ns: u64,
        }
        let document: Document = serde_json::from_str(text)?;
        let mut timeline = Self::default();
        for event in document.events {
            timeline.add(event.name, event.monotonic_ns);
        }
        Ok(timeline)
    }

    /// Adds a point where it belongs.
    pub fn add(&mut self, name: impl Into<String>, ns: u64) {
        let index = self.points.partition_point(|point| point.ns <= ns);
        let name = name.into();
        self.points.insert(index, Point { name, ns });
    }

    /// All of it, in order.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// When something happened first.
    pub fn ns(&self, name: &str) -> Option<u64> {
        let found = self.points.iter().find(|point| point.name == name);
        found.map(|point| point.ns)
    }

    /// The milliseconds between two points.
    pub fn between(&self, from: &str, to: &str) -> Option<f64> {
        Some(milliseconds(self.ns(from)?, self.ns(to)?))
    }
}

/// A line for each point: when, and how long after the one before.
impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = self.points.first().map_or(0, |point| point.ns);
        for point in &self.points {
            writeln!(
                f,
                "{:>12.1} ms  {:>+10.1} ms  {}",
                milliseconds(0, point.ns),
                milliseconds(before, point.ns),
                point.name
            )?;
            before = point.ns;
        }
        Ok(())
    }
}

fn milliseconds(from: u64, to: u64) -> f64 {
    // Exact below 2^53 ns, which is a hundred days.
    (to as f64 - from as f64) / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"events":[{"name":"start","monotonic_ns":5000000},
        {"name":"first-vcpu-entry","monotonic_ns":8500000}]}"#;

    #[test]
    fn points_of_several_sources_are_put_in_order() {
        let mut timeline = Timeline::parse(TEXT).unwrap();
        timeline.add("guest init", 9_000_000);
        timeline.add("host up", 1_000_000);
        let text = timeline.to_string();
        let names: Vec<_> = text
            .lines()
            .map(|line| line.split("ms").nth(2).unwrap().trim())
            .collect();
        assert_eq!(
            names,
            ["host up", "start", "first-vcpu-entry", "guest init"]
        );
        assert_eq!(
            text.lines().nth(1).unwrap(),
            "         5.0 ms        +4.0 ms  start"
        );
    }

    #[test]
    fn a_span_has_its_sign_and_needs_both_ends() {
        let timeline = Timeline::parse(TEXT).unwrap();
        assert_eq!(timeline.between("start", "first-vcpu-entry"), Some(3.5));
        assert_eq!(timeline.between("first-vcpu-entry", "start"), Some(-3.5));
        assert_eq!(timeline.between("start", "absent"), None);
    }

    #[test]
    fn another_document_is_refused() {
        assert!(Timeline::parse("{}").is_err());
    }
}
