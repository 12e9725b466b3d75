use std::io;
use std::str::FromStr;

use devices::pci::PciAddress;

use super::pci::{DEVICES, Unreadable};
use super::sysfs::Host;

/// Reads one function's attributes and keeps what went wrong.
pub(super) struct Reader<'a> {
    host: &'a Host,
    name: &'a str,
    /// What its folder holds, sorted: what is not there is not asked for.
    attributes: Vec<String>,
    pub(super) unreadable: Vec<Unreadable>,
}

impl<'a> Reader<'a> {
    /// Lists what there is of `name`; nothing when the function is gone.
    pub(super) fn new(host: &'a Host, name: &'a str) -> Option<Self> {
        let mut reader = Self {
            host,
            name,
            attributes: Vec::new(),
            unreadable: Vec::new(),
        };
        match host.list(&format!("{DEVICES}/{name}")) {
            Ok(attributes) => reader.attributes = attributes?,
            Err(error) => reader.fail(".", &error),
        }
        Some(reader)
    }

    /// Whether the function has `attribute`.
    pub(super) fn has(&self, attribute: &str) -> bool {
        let names = &self.attributes;
        names
            .binary_search_by(|name| name.as_str().cmp(attribute))
            .is_ok()
    }

    /// An attribute's text, when there is one that can be read.
    pub(super) fn text(&mut self, attribute: &str) -> Option<String> {
        if !self.has(attribute) {
            return None;
        }
        let answer = self
            .host
            .text(&format!("{DEVICES}/{}/{attribute}", self.name));
        self.asked(attribute, answer).flatten()
    }

    /// The names in a folder of the function.
    pub(super) fn list(&mut self, attribute: &str) -> Vec<String> {
        if !self.has(attribute.split('/').next().unwrap_or_default()) {
            return Vec::new();
        }
        let answer = self
            .host
            .list(&format!("{DEVICES}/{}/{attribute}", self.name));
        self.asked(attribute, answer).flatten().unwrap_or_default()
    }

    pub(super) fn fail(&mut self, attribute: &str, error: &io::Error) {
        self.unreadable.push(Unreadable::new(attribute, error));
    }

    pub(super) fn senseless(&mut self, attribute: &str, text: &str) {
        let text: String = text.chars().take(80).collect();
        self.unreadable.push(Unreadable {
            attribute: attribute.to_owned(),
            reason: format!("'{text}' makes no sense there"),
        });
    }

    fn asked<T>(&mut self, attribute: &str, answer: io::Result<T>) -> Option<T> {
        answer.map_err(|error| self.fail(attribute, &error)).ok()
    }

    /// The last part of where a link points.
    pub(super) fn link_name(&mut self, attribute: &str) -> Option<String> {
        if !self.has(attribute) {
            return None;
        }
        let answer = self
            .host
            .link_name(&format!("{DEVICES}/{}/{attribute}", self.name));
        self.asked(attribute, answer).flatten()
    }

    /// The number at the end of where a link points.
    pub(super) fn number(&mut self, attribute: &str) -> Option<u32> {
        self.linked(attribute)
    }

    /// The address at the end of where a link points.
    pub(super) fn address(&mut self, attribute: &str) -> Option<PciAddress> {
        self.linked(attribute)
    }

    fn linked<T: FromStr>(&mut self, attribute: &str) -> Option<T> {
        let name = self.link_name(attribute)?;
        let value = name.parse().ok();
        if value.is_none() {
            self.senseless(attribute, &name);
        }
        value
    }

    /// An attribute's value.
    pub(super) fn parsed<T>(&mut self, attribute: &str, parse: fn(&str) -> Option<T>) -> Option<T> {
        let text = self.text(attribute)?;
        let value = parse(&text);
        if value.is_none() {
            self.senseless(attribute, &text);
        }
        value
    }
}
