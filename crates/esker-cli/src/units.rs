//! Arguments with a unit: `30d`, `10M`, `5%`.

use std::time::Duration;

/// A duration in seconds, minutes, hours, days or weeks.
pub fn duration(text: &str) -> Result<Duration, String> {
    let units = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400), ("w", 7 * 86_400)];
    let said = units.iter().find_map(|(unit, secs)| Some((text.strip_suffix(unit)?, *secs)));
    let (number, secs) = said.ok_or("a time has a unit: 90s, 10m, 12h, 30d, 4w")?;
    let secs = parse(number)?.checked_mul(secs);
    secs.map(Duration::from_secs).ok_or_else(|| "that is too long".to_owned())
}

/// A number of bytes, at least one; decimal units.
pub fn bytes(text: &str) -> Result<u64, String> {
    let units = [("k", 1_000), ("M", 1_000_000), ("G", 1_000_000_000)];
    let said = units.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
    let (number, unit) = said.unwrap_or((text, 1));
    match parse(number)?.checked_mul(unit) {
        Some(0) => Err("that is nothing".to_owned()),
        Some(bytes) => Ok(bytes),
        None => Err("that is too much".to_owned()),
    }
}

/// A share in percent.
pub fn share(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').ok_or("a share is in percent: 5%")?;
    let percent: f64 = number.parse().map_err(|_| format!("{number:?} is no number"))?;
    if !(percent > 0.0 && percent <= 100.0) {
        return Err("a share is above 0% and at most 100%".to_owned());
    }
    Ok(percent / 100.0)
}

fn parse(number: &str) -> Result<u64, String> {
    let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse().ok().filter(|_| plain).ok_or_else(|| format!("{number:?} is no whole number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_understood_and_nothing_else() {
        assert_eq!(duration("30d"), Ok(Duration::from_secs(30 * 86_400)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!((bytes("7"), bytes("10M")), (Ok(7), Ok(10_000_000)));
        assert_eq!((share("5%"), share("100%")), (Ok(0.05), Ok(1.0)));
        for bad in
            ["", "30", "d", "-1d", "1.5d", "30 d", "99999999999999999999w", "9999999999999999w"]
        {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "0", "0k", "k", "+1", "10MB", "99999999999G"] {
            assert!(bytes(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "5", "%", "0%", "-1%", "101%", "NaN%", "inf%"] {
            assert!(share(bad).is_err(), "{bad:?}");
        }
    }
}
