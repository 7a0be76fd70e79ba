//! `strftime_now`, which some chat templates use to tell the model the date.

/// The current date and time (UTC) in the format of C's and Python's `strftime`.
///
/// # Errors
/// If the format has a directive that is not known, or where there is no clock (bare WebAssembly).
pub(crate) fn strftime_now(format: &str) -> Result<String, String> {
    strftime(format, seconds_since_1970()?)
}

#[cfg(not(all(target_arch = "wasm32", target_os = "unknown")))]
fn seconds_since_1970() -> Result<u64, String> {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map(|time| time.as_secs())
        .map_err(|_| "the clock is before 1970".to_string())
}

/// `SystemTime::now` panics there.
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
fn seconds_since_1970() -> Result<u64, String> {
    Err("there is no clock here for strftime_now".to_string())
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// 1 January 1970 was a Thursday.
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

fn strftime(format: &str, seconds: u64) -> Result<String, String> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let weekday = DAYS[(days % 7) as usize];
    let month_name = MONTHS[month as usize - 1];
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let hour_12 = (hour + 11) % 12 + 1;

    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        // `%-d` is `%d` without its zero.
        let (padded, directive) = match letters.next() {
            Some('-') => (false, letters.next()),
            other => (true, other),
        };
        let number = |number: u64| match padded {
            true => format!("{number:02}"),
            false => number.to_string(),
        };
        out += &match directive {
            Some('Y') => year.to_string(),
            Some('y') => number(year % 100),
            Some('m') => number(month),
            Some('d') => number(day),
            Some('e') => format!("{day:2}"),
            Some('B') => month_name.to_string(),
            Some('b') => month_name[..3].to_string(),
            Some('A') => weekday.to_string(),
            Some('a') => weekday[..3].to_string(),
            Some('H') => number(hour),
            Some('I') => number(hour_12),
            Some('M') => number(minute),
            Some('S') => number(second),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_string(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('%') => "%".to_string(),
            Some(other) => return Err(format!("strftime_now does not know %{other}")),
            None => return Err("strftime_now's format ends in %".to_string()),
        };
    }
    Ok(out)
}

/// Year, month and day of the n-th day since 1970, in the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    // Count in eras of 400 years (146,097 days) from 1 March of year 0, so that the leap day comes last in a year.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        let cases = [
            (0, "Thu 01 Jan 1970 12:00:00 AM"),
            (951_782_400, "Tue 29 Feb 2000 12:00:00 AM"),
            (1_709_251_199, "Thu 29 Feb 2024 11:59:59 PM"),
            (4_107_542_400, "Mon 01 Mar 2100 12:00:00 AM"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(strftime("%a %d %b %Y %I:%M:%S %p", seconds).unwrap(), expected);
        }
        assert_eq!(strftime("%-d %B %F %T %%", 86_400).unwrap(), "2 January 1970-01-02 00:00:00 %");
        assert!(strftime("%Q", 0).is_err());
        assert!(strftime("%", 0).is_err());
    }
}
