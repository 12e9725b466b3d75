use super::super::columns::{self, Cell};
use super::{Inventory, Style, driver, driver_tone, id, link};

const HEAD: [&str; 7] = ["ADDRESS", "GROUP", "DRIVER", "LINK", "ID", "CLASS", "NAME"];

/// A line for each function, in the order of addresses, columns aligned.
/// A group that is shared has its size in brackets.
pub(super) fn draw(inventory: &Inventory<'_>, style: Style) -> String {
    let functions = inventory.survey.functions.values();
    let rows: Vec<[Cell; 7]> = functions
        .map(|function| {
            let group = match function.group {
                None => "-".to_owned(),
                Some(group) => match inventory.group_size(group) {
                    0 | 1 => group.to_string(),
                    size => format!("{group} ({size})"),
                },
            };
            [
                (function.address.to_string(), None),
                (group, Some(inventory.group_tone(function))),
                (driver(function).to_owned(), driver_tone(function)),
                (link(function), None),
                (id(function), None),
                (inventory.class(function).to_owned(), None),
                (inventory.name(function).unwrap_or_default(), None),
            ]
        })
        .collect();
    columns::draw(HEAD, &rows, style)
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let survey = sample::survey();
        let table = draw(&sample::inventory(&survey), Style::PLAIN);
        assert_eq!(
            table,
            "ADDRESS       GROUP  DRIVER    LINK       ID         CLASS                NAME\n\
             0000:00:1c.0  3      pcieport  -          1b36:000c  PCI bridge           Red Hat, Inc. device 000c\n\
             0000:00:1d.0  5 (3)  -         -          1b36:000e  PCI bridge           Red Hat, Inc. device 000e\n\
             0000:01:00.0  12     vfio-pci  8 GT/s x4  1b36:0010  NVMe controller      Red Hat, Inc. QEMU NVM Express Controller\n\
             0000:02:01.0  5 (3)  e1000     -          8086:100e  Ethernet controller\n\
             0000:02:02.0  5 (3)  -         -          8086:100e  Ethernet controller\n\
             0000:03:00.0  -      -         -          -          unknown"
        );
    }

    #[test]
    fn colour_changes_no_width() {
        let survey = sample::survey();
        let coloured = draw(&sample::inventory(&survey), Style::COLOUR);
        assert!(
            coloured.contains("\x1b[33m5 (3)\x1b[0m  -         -"),
            "{coloured}"
        );
        assert!(
            coloured.contains("\x1b[32mvfio-pci\x1b[0m  8 GT/s"),
            "{coloured}"
        );
        assert!(coloured.contains("\x1b[31m-\x1b[0m"), "{coloured}");
    }
}
