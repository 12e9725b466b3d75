use passthrough::inspect::Inspection;

use super::{Style, Tone};

const ROW: usize = 16;

/// Config space byte by byte: the host's on the left, the guest's on the
/// right, and a mark on each row in which they differ. A star stands for rows
/// that repeat the one above in both.
///
/// ```text
///       host                                              guest
/// 000:  86 80 d3 10 03 00 10 00 00 00 00 02 00 00 00 00   86 80 d3 10 …
/// *
/// ```
pub(super) fn write(inspection: &Inspection, style: Style) -> String {
    let physical = &inspection.physical.0;
    let guest = inspection.guest.as_ref().map(|bytes| &bytes.0);
    let width = ROW * 3 - 1;
    let title = match guest {
        Some(_) => format!("      {:width$}   guest", "host"),
        None => "      host".to_owned(),
    };
    let mut lines = vec![style.paint(Tone::Strong, &title)];
    let mut above = None;
    let mut starred = false;
    let length = physical.len().max(guest.map_or(0, Vec::len));
    for offset in (0..length).step_by(ROW) {
        let left = row(physical, offset);
        let right = guest.map(|guest| row(guest, offset));
        let last = offset + ROW >= length;
        if above == Some((left, right)) && !last {
            if !std::mem::replace(&mut starred, true) {
                lines.push("*".to_owned());
            }
            continue;
        }
        starred = false;
        above = Some((left, right));
        let mut line = format!("{offset:03x}:  ");
        line += &cells(&left, right.as_ref(), Tone::Caution, style);
        if let Some(right) = &right {
            line += "   ";
            line += &cells(right, Some(&left), Tone::Good, style);
            if (0..ROW).any(|at| differs(&left, right, at)) {
                line += " |";
            }
        }
        lines.push(line.trim_end().to_owned());
    }
    lines.join("\n")
}

/// The bytes of one row; nothing where none could be read.
type Row = [Option<u8>; ROW];

fn row(bytes: &[u8], offset: usize) -> Row {
    std::array::from_fn(|at| bytes.get(offset + at).copied())
}

/// Whether both rows have the byte, and not the same.
fn differs(one: &Row, other: &Row, at: usize) -> bool {
    matches!((one[at], other[at]), (Some(one), Some(other)) if one != other)
}

/// A row, with the bytes in `tone` that are not as in the `other` one.
fn cells(row: &Row, other: Option<&Row>, tone: Tone, style: Style) -> String {
    let cell = |at: usize| {
        let text = match row[at] {
            Some(byte) => format!("{byte:02x}"),
            None => "--".to_owned(),
        };
        match other {
            Some(other) if differs(row, other, at) => style.paint(tone, &text),
            _ => text,
        }
    };
    (0..ROW).map(cell).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use passthrough::inspect::Bytes;

    #[test]
    fn host_and_guest_stand_side_by_side() {
        let mut inspection = sample::nvme();
        let mut physical = vec![0; 0x60];
        physical[..4].copy_from_slice(&[0x36, 0x1b, 0x10, 0x00]);
        physical[0x34] = 0x40;
        let mut guest = physical.clone();
        guest[0x34] = 0x60;
        inspection.physical = Bytes(physical);
        inspection.guest = Some(Bytes(guest));
        let zeros = ["00"; 16].join(" ");
        let first = format!("36 1b 10 00 {}", ["00"; 12].join(" "));
        let list = |byte| format!("00 00 00 00 {byte} {}", ["00"; 11].join(" "));
        let expected = [
            format!("      host{}   guest", " ".repeat(43)),
            format!("000:  {first}   {first}"),
            format!("010:  {zeros}   {zeros}"),
            "*".to_owned(),
            format!("030:  {}   {} |", list("40"), list("60")),
            format!("040:  {zeros}   {zeros}"),
            format!("050:  {zeros}   {zeros}"),
        ];
        assert_eq!(write(&inspection, Style::PLAIN), expected.join("\n"));
        let coloured = write(&inspection, Style::COLOUR);
        assert!(coloured.contains("\x1b[33m40\x1b[0m"), "{coloured}");
        assert!(coloured.contains("\x1b[32m60\x1b[0m"), "{coloured}");
    }

    #[test]
    fn what_could_not_be_read_is_no_zero() {
        let mut inspection = sample::nvme();
        inspection.physical = Bytes(vec![0xaa; 20]);
        inspection.guest = None;
        let text = write(&inspection, Style::PLAIN);
        assert!(text.starts_with("      host\n000:  aa aa"), "{text}");
        assert!(text.ends_with("010:  aa aa aa aa -- -- -- -- -- -- -- -- -- -- -- --"));
        assert!(!text.contains("guest"));
        inspection.physical = Bytes(Vec::new());
        assert_eq!(write(&inspection, Style::PLAIN), "      host");
    }
}
