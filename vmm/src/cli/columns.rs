use super::style::{Style, Tone};

/// A cell and what it is to the reader.
pub(super) type Cell = (String, Option<Tone>);

/// A head and the rows below it, columns aligned.
pub(super) fn draw<const N: usize>(head: [&str; N], rows: &[[Cell; N]], style: Style) -> String {
    let head = head.map(|title| (title.to_owned(), Some(Tone::Strong)));
    let all = || std::iter::once(&head).chain(rows);
    let mut widths = [0; N];
    for row in all() {
        for (width, (text, _)) in widths.iter_mut().zip(row) {
            *width = text.chars().count().max(*width);
        }
    }
    let lines = all().map(|row| {
        let cells = row.iter().zip(widths).map(|((text, tone), width)| {
            let space = " ".repeat(width - text.chars().count());
            let text = tone.map_or_else(|| text.clone(), |tone| style.paint(tone, text));
            text + &space
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        line.trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}
