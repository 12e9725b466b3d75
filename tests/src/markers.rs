//! The milestones that a guest prints, see `resources/guest-init.sh`.

use std::collections::BTreeMap;

use crate::host::Line;

/// A line `lab: NAME key=value …` of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Its name.
    pub name: String,
    /// Its values, by key.
    pub values: BTreeMap<String, String>,
    /// When it arrived: the nested host's `CLOCK_MONOTONIC` in nanoseconds.
    pub ns: u64,
}

impl Marker {
    /// The marker that a line is, if it is one.
    pub fn parse(line: &Line) -> Option<Self> {
        let mut words = line.text.strip_prefix("lab: ")?.split_whitespace();
        let name = words.next()?.to_owned();
        let pair = |word: &str| {
            let (key, value) = word.split_once('=')?;
            Some((key.to_owned(), value.to_owned()))
        };
        Some(Self {
            name,
            values: words.filter_map(pair).collect(),
            ns: line.ns,
        })
    }

    /// A value, or an empty text when there is none.
    pub fn value(&self, key: &str) -> &str {
        self.values.get(key).map_or("", String::as_str)
    }

    /// A value as a number.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.value(key).parse().ok()
    }
}

/// All markers of an output, in order.
#[derive(Clone, Debug)]
pub struct Markers(Vec<Marker>);

impl Markers {
    /// Those in `lines`.
    pub fn of(lines: &[Line]) -> Self {
        Self(lines.iter().filter_map(Marker::parse).collect())
    }

    /// The first of this name.
    pub fn first(&self, name: &str) -> Option<&Marker> {
        self.0.iter().find(|marker| marker.name == name)
    }

    /// All of this name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Marker> {
        self.0.iter().filter(move |marker| marker.name == name)
    }

    /// The names in order.
    pub fn names(&self) -> Vec<&str> {
        self.0.iter().map(|marker| marker.name.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Stream;

    fn line(text: &str) -> Line {
        Line {
            ns: 7,
            stream: Stream::Stdout,
            text: text.to_owned(),
        }
    }

    #[test]
    fn markers_are_told_from_other_output() {
        let lines = [
            line("[    0.1] lab: not at the beginning"),
            line("lab: init uptime=0.46"),
            line("lab: interrupts uptime=1.0 irq=24 name=nvme0q1 count=12 chip=PCI-MSIX"),
            line("lab: interrupts uptime=1.0 irq=25 name=nvme0q2 count=x"),
        ];
        let markers = Markers::of(&lines);
        assert_eq!(markers.names(), ["init", "interrupts", "interrupts"]);
        let first = markers.first("interrupts").unwrap();
        assert_eq!(
            (first.value("name"), first.number("count")),
            ("nvme0q1", Some(12))
        );
        assert_eq!(first.ns, 7);
        let second = markers.all("interrupts").nth(1).unwrap();
        assert_eq!((second.number("count"), second.value("absent")), (None, ""));
        assert_eq!(markers.first("absent"), None);
    }
}
