use std::fmt;

use serde::{Deserialize, Serialize};

/// Several measurements of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// The one in the middle, or the mean of the two that are.
    pub median: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of `samples`; nothing when there are none.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        let median = if sorted.len().is_multiple_of(2) {
            sorted.get(middle - 1)?.midpoint(upper)
        } else {
            upper
        };
        Some(Self {
            min: *sorted.first()?,
            median,
            max: *sorted.last()?,
        })
    }
}

/// The median, and from where to where: `95 (93-120)`.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { min, median, max } = self;
        f.pad(&format!("{median:.0} ({min:.0}-{max:.0})"))
    }
}

/// With a tenth, for what takes a few milliseconds.
pub(super) struct Fine(pub(super) Spread);

impl fmt::Display for Fine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spread { min, median, max } = self.0;
        f.pad(&format!("{median:.1} ({min:.1}-{max:.1})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_one_counts_whatever_the_order() {
        let odd = Spread::of(&[9.0, 1.0, 4.0]).unwrap();
        assert_eq!((odd.min, odd.median, odd.max), (1.0, 4.0, 9.0));
        let even = Spread::of(&[4.0, 1.0, 9.0, 2.0]).unwrap();
        assert_eq!(even.median, 3.0);
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(format!("[{odd:>9}]"), "[  4 (1-9)]");
        let spread = Spread::of(&[1.0, 2.25, 4.0]).unwrap();
        assert_eq!(Fine(spread).to_string(), "2.2 (1.0-4.0)");
    }
}
