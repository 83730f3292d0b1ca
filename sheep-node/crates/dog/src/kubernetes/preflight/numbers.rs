//! Versions and quantities as Kubernetes writes them.

/// `v1.35.4-eks` or `6.8.0-51-generic` as its first two numbers.
pub(super) fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim_start_matches('v').split('.');
    let number = |part: Option<&str>| -> Option<u32> {
        let digits: String = part?.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    Some((number(parts.next())?, number(parts.next())?))
}

/// `47093746742`, `100Gi`, `1500m` in whole bytes, rounded down.
pub(super) fn quantity(text: &str) -> Option<u64> {
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: f64 = number.parse().ok()?;
    let scale: f64 = match unit {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        "Pi" => 1024.0 * 1024.0 * 1024.0 * 1024.0 * 1024.0,
        exponent => 10f64.powi(exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    let bytes = number * scale;
    // A disk of 16 EiB is a mistake.
    (bytes < 1.8e19).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_kernels_and_of_kubernetes() {
        for (text, numbers) in [
            ("v1.35.4", Some((1, 35))),
            ("v1.33.1-gke.100", Some((1, 33))),
            ("6.8.0-51-generic", Some((6, 8))),
            ("6.12+deb13", Some((6, 12))),
            ("6", None),
            ("", None),
        ] {
            assert_eq!(version(text), numbers, "{text}");
        }
    }

    #[test]
    fn quantities() {
        for (text, bytes) in [
            ("47093746742", Some(47_093_746_742)),
            ("100Gi", Some(100 << 30)),
            ("1.5Ki", Some(1536)),
            ("2k", Some(2000)),
            ("1500m", Some(1)),
            ("1e3", Some(1000)),
            ("12E", Some(12_000_000_000_000_000_000)),
            ("", None),
            ("Gi", None),
            ("1Zi", None),
            ("99E", None),
        ] {
            assert_eq!(quantity(text), bytes, "{text}");
        }
    }
}
