//! The Gregorian calendar, as far as a real-time clock needs it. UTC only.

/// Seconds in a day.
const DAY: i64 = 86_400;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH: i64 = 719_468;
/// Days in 400 years, after which the calendar repeats.
const ERA: i64 = 146_097;

/// A second on the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DateTime {
    pub(super) year: i64,
    /// 1 to 12.
    pub(super) month: u8,
    /// 1 to 31.
    pub(super) day: u8,
    /// 0 to 23.
    pub(super) hour: u8,
    /// 0 to 59.
    pub(super) minute: u8,
    /// 0 to 59.
    pub(super) second: u8,
}

impl DateTime {
    /// From seconds since 1970-01-01.
    ///
    /// Years are counted from March here: the leap day is then the last of the
    /// year, and the months before it follow one rule.
    pub(super) fn from_unix(seconds: i64) -> Self {
        let (days, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        let days = days + EPOCH;
        let (era, day_of_era) = (days.div_euclid(ERA), days.rem_euclid(ERA));
        let leap_days = day_of_era / 1_460 - day_of_era / 36_524 + day_of_era / 146_096;
        let year_of_era = (day_of_era - leap_days) / 365;
        let day_of_year = day_of_era - days_before_year(year_of_era);
        // 0 is March. Five months, from March or August on, have 153 days.
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - days_before_month(month) + 1;
        let (month, next_year) = if month < 10 {
            (month + 3, 0)
        } else {
            (month - 9, 1)
        };
        Self {
            year: era * 400 + year_of_era + next_year,
            month: month as u8,
            day: day as u8,
            hour: (second / 3_600) as u8,
            minute: (second / 60 % 60) as u8,
            second: (second % 60) as u8,
        }
    }

    /// Seconds since 1970-01-01; nothing when there is no such day or time.
    pub(super) fn to_unix(self) -> Option<i64> {
        let in_range = (0..=9_999).contains(&self.year)
            && (1..=12).contains(&self.month)
            && (1..=31).contains(&self.day)
            && self.hour < 24
            && self.minute < 60
            && self.second < 60;
        if !in_range {
            return None;
        }
        let (month, year) = if self.month > 2 {
            (i64::from(self.month) - 3, self.year)
        } else {
            (i64::from(self.month) + 9, self.year - 1)
        };
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let day_of_year = days_before_month(month) + i64::from(self.day) - 1;
        let days = era * ERA + days_before_year(year_of_era) + day_of_year - EPOCH;
        let second =
            i64::from(self.hour) * 3_600 + i64::from(self.minute) * 60 + i64::from(self.second);
        let seconds = days * DAY + second;
        // The 31st of a shorter month would come out as a day of the next.
        (Self::from_unix(seconds) == self).then_some(seconds)
    }

    /// 1 (Sunday) to 7 (Saturday).
    pub(super) fn day_of_week(seconds: i64) -> u8 {
        // 1970-01-01 was a Thursday.
        ((seconds.div_euclid(DAY) + 4).rem_euclid(7) + 1) as u8
    }
}

/// Days from an era's start to its `year`, which begins in March.
fn days_before_year(year: i64) -> i64 {
    year * 365 + year / 4 - year / 100
}

/// Days from 1 March to the start of `month`, 0 being March.
fn days_before_month(month: i64) -> i64 {
    (153 * month + 2) / 5
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn date(year: i64, month: u8, day: u8) -> DateTime {
        DateTime {
            year,
            month,
            day,
            hour: 0,
            minute: 0,
            second: 0,
        }
    }

    #[test]
    fn known_instants() {
        for (seconds, expected, weekday) in [
            (0, date(1970, 1, 1), 5),
            (951_782_400, date(2000, 2, 29), 3),
            (951_868_800, date(2000, 3, 1), 4),
            (1_709_164_800, date(2024, 2, 29), 5),
            (4_107_542_400, date(2100, 3, 1), 2),
            (-86_400, date(1969, 12, 31), 4),
            (-2_203_891_200, date(1900, 3, 1), 5),
            (253_402_214_400, date(9999, 12, 31), 6),
        ] {
            assert_eq!(DateTime::from_unix(seconds), expected);
            assert_eq!(expected.to_unix(), Some(seconds));
            assert_eq!(DateTime::day_of_week(seconds), weekday, "{expected:?}");
        }
        let end = DateTime::from_unix(1_735_689_599);
        assert_eq!((end.year, end.month, end.day), (2024, 12, 31));
        assert_eq!((end.hour, end.minute, end.second), (23, 59, 59));
    }

    #[test]
    fn days_that_do_not_exist() {
        for (year, month, day) in [
            (2023, 2, 29),
            (1900, 2, 29),
            (2100, 2, 29),
            (2000, 2, 30),
            (2024, 4, 31),
            (2024, 0, 1),
            (2024, 13, 1),
            (2024, 1, 0),
            (2024, 1, 32),
            (10_000, 1, 1),
            (-1, 1, 1),
        ] {
            assert_eq!(
                date(year, month, day).to_unix(),
                None,
                "{year}-{month}-{day}"
            );
        }
        for (hour, minute, second) in [(24, 0, 0), (0, 60, 0), (0, 0, 60), (255, 255, 255)] {
            let time = DateTime {
                hour,
                minute,
                second,
                ..date(2024, 1, 1)
            };
            assert_eq!(time.to_unix(), None);
        }
    }

    /// Day by day through 500 years, against the rule as people say it.
    #[test]
    fn every_day_follows_the_last() {
        let mut day = date(1800, 1, 1);
        let mut seconds = day.to_unix().unwrap();
        while day.year < 2300 {
            let leap = day.year % 4 == 0 && (day.year % 100 != 0 || day.year % 400 == 0);
            let length = match day.month {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day = match (day.month, day.day) {
                (12, 31) => date(day.year + 1, 1, 1),
                (month, last) if last == length => date(day.year, month + 1, 1),
                (month, some) => date(day.year, month, some + 1),
            };
            seconds += DAY;
            assert_eq!(DateTime::from_unix(seconds), day);
            assert_eq!(day.to_unix(), Some(seconds));
        }
    }

    proptest! {
        #[test]
        fn goes_round(seconds in -62_167_219_200_i64..253_402_300_800) {
            prop_assert_eq!(DateTime::from_unix(seconds).to_unix(), Some(seconds));
        }

        #[test]
        fn no_date_panics(year: i64, month: u8, day: u8, hour: u8, minute: u8, second: u8) {
            let _ = DateTime { year, month, day, hour, minute, second }.to_unix();
        }
    }
}
