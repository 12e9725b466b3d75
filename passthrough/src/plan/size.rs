/// `bytes` as people write them, in the largest unit that is exact, or with
/// one digit after the point.
pub(super) fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut shift = 0;
    let mut unit = "bytes";
    for name in UNITS {
        if bytes >> (shift + 10) == 0 {
            break;
        }
        shift += 10;
        unit = name;
    }
    let whole = bytes >> shift;
    // Rounded down: a limit is never shown larger than it is.
    let tenth = ((bytes - (whole << shift)) as u128 * 10) >> shift;
    match tenth {
        0 => format!("{whole} {unit}"),
        _ => format!("{whole}.{tenth} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::human;

    #[test]
    fn sizes_read_well() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (8 << 20, "8 MiB"),
            (512 << 20, "512 MiB"),
            (3 << 29, "1.5 GiB"),
            (1 << 39, "512 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
