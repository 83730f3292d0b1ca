//! Sizes as people write them: `10G`, `512M`, `1TiB`, `4096`.

use std::fmt;
use std::str::FromStr;

/// A number of bytes. Units are powers of 1024, whether written `G`, `GB` or `GiB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// A size that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SizeError(String);

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not a size below 16 EiB: write a number and a unit, like 10G, 512M, 1TiB or 4096",
            self.0
        )
    }
}

impl std::error::Error for SizeError {}

const UNITS: [&str; 7] = ["", "K", "M", "G", "T", "P", "E"];

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let error = || SizeError(text.to_owned());
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let unit = unit.trim().to_ascii_uppercase();
        let short = unit.strip_suffix("IB").or_else(|| unit.strip_suffix('B')).unwrap_or(&unit);
        let power = UNITS.iter().position(|known| *known == short).ok_or_else(error)?;
        // "1iB" is nothing.
        if power == 0 && unit.starts_with('I') {
            return Err(error());
        }
        let scale = 1u128 << (10 * power);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || number.ends_with('.') || fraction.len() > 9 || number.matches('.').count() > 1
        {
            return Err(error());
        }
        let whole: u128 = whole.parse().map_err(|_| error())?;
        let parts: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| error())? };
        let fraction_bytes = parts * scale / 10u128.pow(fraction.len() as u32);
        let bytes = whole.checked_mul(scale).and_then(|bytes| bytes.checked_add(fraction_bytes));
        bytes.and_then(|bytes| u64::try_from(bytes).ok()).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for Size {
    /// The largest unit with at most one digit after the point, rounded down; `{:#}` only a unit that is exact,
    /// so that the text can be read back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = f.alternate();
        let fits = |power: &usize| {
            let scale = 1u64 << (10 * power);
            self.0 >= scale && (!exact || self.0.is_multiple_of(scale))
        };
        let power = (1..UNITS.len()).rev().find(fits).unwrap_or(0);
        let scale = 1u64 << (10 * power);
        let tenths = u128::from(self.0 % scale) * 10 / u128::from(scale);
        let point = if tenths > 0 { format!(".{tenths}") } else { String::new() };
        let unit = UNITS.get(power).copied().unwrap_or_default();
        let suffix = if power == 0 { "B" } else { "iB" };
        f.pad(&format!("{}{point} {unit}{suffix}", self.0 / scale))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        let table: &[(&str, Option<u64>)] = &[
            ("4096", Some(4096)),
            ("4096B", Some(4096)),
            ("10G", Some(10 << 30)),
            ("10g", Some(10 << 30)),
            ("10GB", Some(10 << 30)),
            ("512M", Some(512 << 20)),
            ("1TiB", Some(1 << 40)),
            ("1 TiB", Some(1 << 40)),
            ("1.5G", Some(3 << 29)),
            ("0", Some(0)),
            ("15E", Some(15 << 60)),
            ("16E", None),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("", None),
            ("G", None),
            ("-1", None),
            ("1X", None),
            ("1iB", None),
            ("1.", None),
            ("1.2.3G", None),
            ("1 G 2", None),
        ];
        for (text, bytes) in table {
            assert_eq!(text.parse::<Size>().ok().map(|size| size.0), *bytes, "{text:?}");
        }
    }

    #[test]
    fn exact_text_reads_back() {
        for bytes in [0, 1, 512, 1024, 1536, 10 << 30, (10 << 30) + 512, u64::MAX] {
            assert_eq!(format!("{:#}", Size(bytes)).parse(), Ok(Size(bytes)));
        }
        assert_eq!(Size(1536).to_string(), "1.5 KiB");
        assert_eq!(Size(10 << 30).to_string(), "10 GiB");
        assert_eq!(Size(u64::MAX).to_string(), "15.9 EiB");
        assert_eq!(Size(7).to_string(), "7 B");
    }
}
