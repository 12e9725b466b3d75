use std::collections::{BTreeMap, BTreeSet};

use devices::pci::PciAddress;
use passthrough::host::{Function, GroupId};
use passthrough::viability::{Isolation, Verdict};

use super::{Inventory, Style, Tone, driver, driver_tone, id};

const LEGEND: &str = "\
Joined at the left: one IOMMU group. Its devices can reach each other's memory and
go to one guest together, or not at all. '-': no IOMMU, can't be given to a guest.";

/// A function and the lines that hang it on its bridge.
struct Row<'a> {
    function: &'a Function,
    branch: String,
}

/// Each function below its bridge. At the left the group; rows of one group
/// that stand together are joined.
///
/// ```text
///    3  0000:00:1c.0 PCI bridge (pcieport)
///   12  └─ 0000:01:00.0 NVMe controller (vfio-pci)
/// ╭  5  0000:00:1d.0 PCI bridge
/// │  5  ├─ 0000:02:01.0 Ethernet controller (e1000)
/// ╰  5  └─ 0000:02:02.0 Ethernet controller
/// ```
pub(super) fn draw(inventory: &Inventory<'_>, style: Style) -> String {
    let rows = rows(inventory);
    let groups = rows.iter().map(|row| row.function.group);
    let groups: Vec<_> = groups.collect();
    let label = |group: Option<GroupId>| group.map_or("-".to_owned(), |id| id.to_string());
    let width = groups.iter().map(|group| label(*group).len()).max();
    let mut lines: Vec<_> = rows
        .iter()
        .enumerate()
        .map(|(at, row)| {
            let function = row.function;
            let bracket = bracket(inventory, &groups, at);
            let number = format!("{:>1$}", label(function.group), width.unwrap_or(0));
            let group = style.paint(
                inventory.group_tone(function),
                &format!("{bracket} {number}"),
            );
            let branch = style.paint(Tone::Faint, &row.branch);
            let class = inventory.class(function);
            let driver = match (driver(function), driver_tone(function)) {
                ("-", _) => String::new(),
                (driver, Some(tone)) => format!(" ({})", style.paint(tone, driver)),
                (driver, None) => format!(" ({driver})"),
            };
            let name = inventory.name(function).unwrap_or_else(|| id(function));
            let name = style.paint(Tone::Faint, &name);
            format!(
                "{group}  {branch}{} {class}{driver}  {name}",
                function.address
            )
        })
        .collect();
    let causes = causes(inventory);
    if !causes.is_empty() {
        lines.push(String::new());
        lines.extend(causes);
    }
    lines.push(String::new());
    lines.push(style.paint(Tone::Faint, LEGEND));
    lines.join("\n")
}

/// Why the devices of each shared group can't be told apart, a line each.
fn causes(inventory: &Inventory<'_>) -> Vec<String> {
    let groups = inventory.survey.groups.keys();
    let verdicts = groups.filter_map(|id| Verdict::judge(inventory.survey, *id));
    verdicts
        .filter_map(|verdict| match &verdict.isolation {
            Isolation::Isolated => None,
            shared => Some(format!("group {}: {shared}", verdict.group)),
        })
        .collect()
}

/// The piece of the bracket beside row `at`.
fn bracket(inventory: &Inventory<'_>, groups: &[Option<GroupId>], at: usize) -> char {
    let group = groups.get(at).copied().flatten();
    let Some(id) = group.filter(|id| inventory.group_size(*id) > 1) else {
        return ' ';
    };
    let same = |other: Option<usize>| {
        let other = other.and_then(|at| groups.get(at));
        other.is_some_and(|other| *other == Some(id))
    };
    match (same(at.checked_sub(1)), same(at.checked_add(1))) {
        (false, true) => '╭',
        (true, true) => '│',
        (true, false) => '╰',
        // Its other devices stand elsewhere.
        (false, false) => '╶',
    }
}

/// The functions in the order of the tree.
fn rows<'a>(inventory: &Inventory<'a>) -> Vec<Row<'a>> {
    let functions = &inventory.survey.functions;
    let mut children: BTreeMap<Option<PciAddress>, Vec<&Function>> = BTreeMap::new();
    for function in functions.values() {
        // A bridge that the survey does not have can't hold the branch.
        let parents = function.parents.iter();
        let parent = parents
            .copied()
            .find(|parent| functions.contains_key(parent));
        children.entry(parent).or_default().push(function);
    }
    let mut rows = Vec::with_capacity(functions.len());
    let mut seen = BTreeSet::new();
    // What is to come, the next one last; with the branch that its children hang on.
    let mut open: Vec<(&Function, String, String)> = Vec::new();
    let roots = children.get(&None).into_iter().flatten();
    open.extend(
        roots
            .rev()
            .map(|root| (*root, String::new(), String::new())),
    );
    while let Some((function, branch, stem)) = open.pop() {
        if !seen.insert(function.address) {
            continue;
        }
        rows.push(Row { function, branch });
        let below = children.get(&Some(function.address));
        let below = below.map(Vec::as_slice).unwrap_or_default();
        for (at, child) in below.iter().enumerate().rev() {
            let (branch, more) = if at + 1 == below.len() {
                ("└─ ", "   ")
            } else {
                ("├─ ", "│  ")
            };
            open.push((child, format!("{stem}{branch}"), format!("{stem}{more}")));
        }
    }
    // Bridges that are each other's parents hang on no root: not in sysfs, but
    // a survey is data.
    let lost = functions.values();
    let lost = lost.filter(|function| !seen.contains(&function.address));
    rows.extend(lost.map(|function| Row {
        function,
        branch: String::new(),
    }));
    rows
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn groups_are_joined_and_bridges_hold_their_devices() {
        let survey = sample::survey();
        let tree = draw(&sample::inventory(&survey), Style::PLAIN);
        let expected = "   3  0000:00:1c.0 PCI bridge (pcieport)  Red Hat, Inc. device 000c
  12  └─ 0000:01:00.0 NVMe controller (vfio-pci)  Red Hat, Inc. QEMU NVM Express Controller
╭  5  0000:00:1d.0 PCI bridge  Red Hat, Inc. device 000e
│  5  ├─ 0000:02:01.0 Ethernet controller (e1000)  8086:100e
╰  5  └─ 0000:02:02.0 Ethernet controller  8086:100e
   -  0000:03:00.0 unknown  -
";
        let rest = tree
            .strip_prefix(expected)
            .unwrap_or_else(|| panic!("{tree}"));
        let why =
            "\ngroup 5: 0000:02:01.0 and 0000:02:02.0 are conventional PCI behind 0000:00:1d.0";
        assert!(rest.starts_with(why), "{tree}");
        assert!(rest.ends_with(&format!("\n\n{LEGEND}")), "{tree}");
    }

    #[test]
    fn a_group_in_two_places_is_not_joined() {
        let mut survey = sample::survey();
        let bridge = "0000:00:1d.0".parse().unwrap();
        survey.functions.remove(&bridge);
        survey
            .functions
            .get_mut(&"0000:02:02.0".parse().unwrap())
            .unwrap()
            .group = None;
        let tree = draw(&sample::inventory(&survey), Style::PLAIN);
        assert!(tree.contains("╶  5  0000:02:01.0"), "{tree}");
        assert!(tree.contains("   -  0000:02:02.0"), "{tree}");
    }

    #[test]
    fn bridges_in_a_circle_end() {
        let mut survey = sample::survey();
        let (a, b) = ("0000:00:1c.0", "0000:00:1d.0");
        for (of, parent) in [(a, b), (b, a)] {
            let function = survey.functions.get_mut(&of.parse().unwrap()).unwrap();
            function.parents = vec![parent.parse().unwrap()];
        }
        let tree = draw(&sample::inventory(&survey), Style::PLAIN);
        let rows: Vec<_> = tree.lines().take(survey.functions.len()).collect();
        for address in survey.functions.keys() {
            let own = format!("{address} ");
            let shown = rows.iter().filter(|row| row.contains(&own)).count();
            assert_eq!(shown, 1, "{tree}");
        }
    }
}
