//! Times as people write and read them.

use std::time::Duration;

const MS_PER_SECOND: u64 = 1_000;
const MS_PER_MINUTE: u64 = 60 * MS_PER_SECOND;
const MS_PER_HOUR: u64 = 60 * MS_PER_MINUTE;
const MS_PER_DAY: u64 = 24 * MS_PER_HOUR;

/// From the largest to the smallest.
const UNITS: [(&str, u64); 5] =
    [("d", MS_PER_DAY), ("h", MS_PER_HOUR), ("m", MS_PER_MINUTE), ("s", MS_PER_SECOND), ("ms", 1)];

/// Reads `500ms`, `10s`, `2m`, `1h`, `7d`; seconds without a unit.
pub fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "expected a number and ms, s, m, h or d".to_owned())?;
    let unit = if unit.is_empty() { "s" } else { unit };
    let found = UNITS.iter().find(|(name, _)| *name == unit);
    let (_, ms) = found.ok_or_else(|| format!("unknown unit `{unit}`: expected ms, s, m, h or d"))?;
    Ok(Duration::from_millis(number.saturating_mul(*ms)))
}

/// The same, from `least` to `most`.
pub fn parse_within(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let duration = parse(text)?;
    if (least..=most).contains(&duration) {
        return Ok(duration);
    }
    Err(format!("expected {} to {}", exact(ms(least)), exact(ms(most))))
}

/// Whole milliseconds, as the wire has them.
pub fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds in the largest unit that tells them exactly, as [`parse`] reads it.
pub fn exact(ms: u64) -> String {
    let fits = |(_, unit): &&(&str, u64)| ms != 0 && ms.is_multiple_of(*unit);
    match UNITS.iter().find(fits) {
        Some((name, unit)) => format!("{}{name}", ms / unit),
        None => format!("{}s", ms / MS_PER_SECOND),
    }
}

/// About how long something takes, for a person who waits.
pub fn about(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().ceil().max(1.0);
    let minutes = (seconds / 60.0).round();
    if seconds <= 90.0 {
        return format!("{seconds:.0} s");
    }
    if minutes <= 90.0 {
        return format!("{minutes:.0} min");
    }
    format!("{:.1} h", seconds / 3600.0)
}

/// Milliseconds since 1970 as `2026-11-22 16:54:28Z`; `-` for 0, which nobody set.
pub fn utc(unix_ms: u64) -> String {
    if unix_ms == 0 {
        return "-".to_owned();
    }
    let (days, in_day) = (unix_ms / MS_PER_DAY, unix_ms % MS_PER_DAY);
    let (year, month, day) = date(days);
    let (hour, minute) = (in_day / MS_PER_HOUR, in_day % MS_PER_HOUR / MS_PER_MINUTE);
    let second = in_day % MS_PER_MINUTE / MS_PER_SECOND;
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a number of days since 1970. Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms",
/// `civil_from_days`: years begin with March there, so that the leap day is the last one.
fn date(days_since_1970: u64) -> (u64, u64, u64) {
    const DAYS_FROM_0000_03_01_TO_1970: u64 = 719_468;
    const DAYS_PER_ERA: u64 = 146_097;
    let days = days_since_1970 + DAYS_FROM_0000_03_01_TO_1970;
    let (era, day_of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse("10"), Ok(Duration::from_secs(10)));
        assert_eq!(parse("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse("7d"), Ok(Duration::from_secs(7 * 24 * 3600)));
        for text in ["", "s", "1w", "-1s", "1.5s"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bounds_are_named() {
        let (least, most) = (Duration::from_secs(1), Duration::from_secs(3600));
        assert_eq!(parse_within("1h", least, most), Ok(most));
        for text in ["0s", "999ms", "61m", "99999999999999999999h", "999999999999999999d"] {
            assert!(parse_within(text, least, most).is_err(), "{text}");
        }
        assert_eq!(parse_within("0s", least, most), Err("expected 1s to 1h".to_owned()));
    }

    #[test]
    fn what_is_shown_is_read_again() {
        for (ms, text) in
            [(600_000, "10m"), (90_000, "90s"), (1_500, "1500ms"), (86_400_000, "1d"), (0, "0s")]
        {
            assert_eq!(exact(ms), text);
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)));
        }
    }

    #[test]
    fn what_is_left_is_told_roughly() {
        for (seconds, text) in [(0, "1 s"), (90, "90 s"), (91, "2 min"), (5_400, "90 min"), (9_000, "2.5 h")]
        {
            assert_eq!(about(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (unix_s, text) in [
            (0, "-"),
            (1, "1970-01-01 00:00:01Z"),
            (951_782_399, "2000-02-28 23:59:59Z"),
            (951_782_400, "2000-02-29 00:00:00Z"),
            (1_709_251_200, "2024-03-01 00:00:00Z"),
            (1_795_366_468, "2026-11-22 16:54:28Z"),
            (4_107_542_400, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(utc(unix_s * 1_000), text);
        }
    }
}
