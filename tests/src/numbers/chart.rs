//! The way of one guest's start on each monitor, as a picture.

use std::fmt::{self, Formatter};

use super::{Devices, Start};

const WIDTH: f64 = 860.0;
/// Room for the names of monitors.
const LEFT: f64 = 150.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 64.0;
const ROW: f64 = 34.0;
const BAR: f64 = 20.0;

/// What the parts are, and their colours.
const PARTS: [(&str, &str); 4] = [
    ("to the first vCPU entry", "#d1495b"),
    ("to the guest's init", "#8d96a3"),
    ("to the first NVMe read", "#30638e"),
    ("to the end of the process", "#c9d6df"),
];

/// The starts of one guest, drawn (SVG 1.1).
#[derive(Clone, Copy, Debug)]
pub struct Chart<'a> {
    starts: &'a [Start],
    memory_mib: u64,
}

impl<'a> Chart<'a> {
    /// Those of the guest with an NVMe and so much memory.
    pub fn new(starts: &'a [Start], memory_mib: u64) -> Self {
        Self { starts, memory_mib }
    }

    /// Each monitor's name, and when each part ends, in milliseconds.
    fn rows(&self) -> Vec<(String, [f64; 4])> {
        let shown = self
            .starts
            .iter()
            .filter(|start| start.devices == Devices::Nvme && start.memory_mib == self.memory_mib);
        shown
            .filter_map(|start| {
                let read = start.read?.median;
                let ends = [
                    start.entry.median,
                    start.init.median,
                    read,
                    start.exit.median,
                ];
                Some((start.program().to_string(), ends))
            })
            .collect()
    }
}

impl fmt::Display for Chart<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let rows = self.rows();
        let longest = rows.iter().map(|(_, ends)| ends[3]).fold(1.0, f64::max);
        let scale = (WIDTH - LEFT - RIGHT) / longest;
        let bottom = TOP + ROW * rows.len() as f64;
        writeln!(
            f,
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">
<rect width="100%" height="100%" rx="6" fill="#ffffff"/>
<text x="16" y="24" font-size="15" fill="#222">From the start of the process, guest of {} MiB with one NVMe: ms where an instruction takes a nanosecond</text>"##,
            self.memory_mib,
            height = bottom + 34.0
        )?;
        let mut x = 16.0;
        for (name, colour) in PARTS {
            writeln!(
                f,
                r##"<rect x="{x:.0}" y="36" width="12" height="12" fill="{colour}"/><text x="{:.0}" y="47" fill="#444">{name}</text>"##,
                x + 17.0
            )?;
            // About the width of a letter.
            x += 40.0 + 7.0 * name.len() as f64;
        }
        let step = step(longest);
        let mut at = 0.0;
        while at <= longest {
            let x = LEFT + at * scale;
            writeln!(
                f,
                r##"<line x1="{x:.1}" y1="{TOP}" x2="{x:.1}" y2="{bottom}" stroke="#e3e3e3"/><text x="{x:.1}" y="{:.0}" text-anchor="middle" fill="#666">{at:.0}</text>"##,
                bottom + 18.0
            )?;
            at += step;
        }
        for (row, (name, ends)) in rows.iter().enumerate() {
            let y = TOP + ROW * row as f64 + (ROW - BAR) / 2.0;
            let baseline = y + BAR - 5.0;
            writeln!(
                f,
                r##"<text x="{:.0}" y="{baseline:.0}" text-anchor="end" fill="#222">{name}</text>"##,
                LEFT - 8.0
            )?;
            let mut from = 0.0;
            for (to, (_, colour)) in ends.iter().zip(PARTS) {
                let (x, width) = (LEFT + from * scale, (to - from) * scale);
                writeln!(
                    f,
                    r##"<rect x="{x:.1}" y="{y:.0}" width="{width:.1}" height="{BAR}" fill="{colour}"/>"##
                )?;
                from = *to;
            }
        }
        writeln!(f, "</svg>")
    }
}

/// A round distance of marks, of which there are 4 to 10.
fn step(longest: f64) -> f64 {
    let magnitude = 10f64.powf((longest / 4.0).log10().floor());
    let mut step = magnitude;
    for factor in [2.0, 5.0] {
        if magnitude * factor <= longest / 4.0 {
            step = magnitude * factor;
        }
    }
    step
}

#[cfg(test)]
mod tests {
    use super::super::Spread;
    use super::*;

    fn start(ends: [f64; 4], devices: Devices) -> Start {
        let spread = |value| Spread::of(&[value]).unwrap();
        Start::for_test(
            512,
            devices,
            [
                spread(ends[0]),
                spread(ends[1]),
                spread(ends[2]),
                spread(ends[3]),
            ],
        )
    }

    #[test]
    fn a_row_for_each_monitor_with_the_device() {
        let starts = [
            start([100.0, 400.0, 500.0, 1000.0], Devices::Nvme),
            start([50.0, 60.0, 70.0, 80.0], Devices::Nothing),
        ];
        let text = Chart::new(&starts, 512).to_string();
        assert_eq!(text.matches("airlock iommufd").count(), 1);
        // The longest fills the width, and parts are as long as they take.
        let unit = (WIDTH - LEFT - RIGHT) / 1000.0;
        for width in [100.0, 300.0, 100.0, 500.0] {
            let width = format!(r#"width="{:.1}""#, width * unit);
            assert!(text.contains(&width), "{width}\n{text}");
        }
        assert_eq!(
            text.matches("<text").count(),
            text.matches("</text>").count()
        );
        assert!(text.ends_with("</svg>\n"));
        assert!(!Chart::new(&starts, 2048).to_string().contains("airlock"));
    }

    #[test]
    fn marks_are_round() {
        for (longest, expected) in [(1000.0, 200.0), (4100.0, 1000.0), (35.0, 5.0), (90.0, 20.0)] {
            assert_eq!(step(longest), expected, "{longest}");
        }
    }
}
