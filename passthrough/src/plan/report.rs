use std::fmt;

use super::{Outcome, Plan};

impl fmt::Display for Plan {
    /// The report for a user: a line for each item, the way out below those
    /// that have one, and the answer at the end, without a line end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for item in &self.items {
            let mark = match item.outcome {
                Outcome::Passed => '✓',
                Outcome::Warning => '!',
                Outcome::Failed => '✗',
            };
            writeln!(f, "{mark} {}", item.reason)?;
            for remedy in &item.remedies {
                writeln!(f, "    fix: {remedy}")?;
            }
        }
        let failed = self.failures().count();
        let total = self.items.len();
        match (failed, self.devices.len()) {
            (0, 0) => write!(f, "ready: no device was asked for"),
            (0, 1) => write!(f, "ready: the device can be given to a guest"),
            (0, devices) => write!(f, "ready: the {devices} devices can be given to a guest"),
            _ => write!(f, "not ready: {failed} of {total} checks failed"),
        }
    }
}
