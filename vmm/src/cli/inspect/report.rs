use std::fmt::Write;

use devices::pci::{BarIndex, PciAddress};
use passthrough::Placement;
use passthrough::inspect::{
    Access, Area, Bytes, Capability, Difference, Identity, Inspection, Region, RegionKind,
    RegionPart, Resets, Source,
};

use super::{Names, Style, Tone, class_name};

/// So many bytes of a difference are shown; `--raw` shows all.
const BYTES_SHOWN: usize = 8;
/// What sysfs gives to anybody (drivers/pci/pci-sysfs.c).
const UNPRIVILEGED: usize = 64;

/// All of an inspection, for reading.
pub(super) fn write(inspection: &Inspection, names: &Names, style: Style) -> String {
    let heading = |text: &str| style.paint(Tone::Strong, text);
    let mut text = head(inspection, names, style);
    if !inspection.regions.is_empty() {
        text += &format!("\n\n{}", heading("REGIONS"));
        text += &regions(inspection, style);
    }
    if !inspection.interrupts.is_empty() {
        text += &format!("\n\n{}", heading("INTERRUPTS"));
        text += &interrupts(inspection, style);
    }
    if !inspection.capabilities.is_empty() {
        text += &format!("\n\n{}", heading("CAPABILITIES"));
        for capability in &inspection.capabilities {
            text += &self::capability(capability, style);
        }
    }
    if inspection.guest.is_some() {
        text += &format!("\n\n{}", heading("HOST AGAINST GUEST"));
        match inspection.differences.as_slice() {
            [] => text += "\n  no byte of config space differs",
            all => text.extend(all.iter().map(|one| difference(one, style))),
        }
    }
    text
}

fn head(inspection: &Inspection, names: &Names, style: Style) -> String {
    let Inspection {
        device, identity, ..
    } = inspection;
    let Identity {
        vendor, device: id, ..
    } = *identity;
    let title = format!(
        "{device} {vendor:04x}:{id:04x} {}",
        class_name(identity.class)
    );
    let mut text = style.paint(Tone::Strong, &title);
    if let Some(name) = names.full(vendor, id) {
        text += &format!("\n{name}");
    }
    text += &format!(
        "\nsubsystem {:04x}:{:04x}, revision {:02x}, header type {}{}",
        identity.subsystem_vendor,
        identity.subsystem_device,
        identity.revision,
        identity.header_type,
        if identity.multi_function {
            ", one of several functions"
        } else {
            ""
        }
    );
    text += &format!("\nresets: {}", resets(&inspection.resets));
    text += "\nhost's view: ";
    text += match inspection.source {
        Source::Vfio => "as VFIO shows it, which keeps some of the hardware to itself",
        Source::Sysfs => "the hardware's, from sysfs",
    };
    let read = inspection.physical.0.len();
    let cut = inspection.source == Source::Sysfs && read <= UNPRIVILEGED;
    if cut {
        text += &format!(", of which only {read} bytes can be read without root");
    }
    text += "\nguest's view: ";
    text += &match (&inspection.guest, &inspection.refusal) {
        (Some(_), _) => match inspection.placement {
            Placement::RootBus => "on the root bus, before its first write".to_owned(),
            Placement::BehindPort => "behind a root port, before its first write".to_owned(),
        },
        (None, _) if cut => style.paint(Tone::Caution, "not known: run it as root"),
        (None, Some(reason)) => style.paint(Tone::Bad, &format!("none: {reason}")),
        (None, None) => style.paint(Tone::Bad, "none"),
    };
    text
}

fn resets(resets: &Resets) -> String {
    let along = |hit: &[PciAddress]| {
        let names: Vec<_> = hit.iter().map(ToString::to_string).collect();
        names.join(", ")
    };
    match (resets.function, resets.methods.as_slice(), &resets.bus) {
        (true, [], _) => "by itself".to_owned(),
        (true, methods, _) => format!("by itself ({})", methods.join(", ")),
        (false, _, None) => "none".to_owned(),
        (false, _, Some(hit)) if hit.is_empty() => "only by a hot reset of its bus".to_owned(),
        (false, _, Some(hit)) => {
            format!("only by a hot reset of its bus, along with {}", along(hit))
        }
    }
}

fn regions(inspection: &Inspection, style: Style) -> String {
    let regions = &inspection.regions;
    let rows = regions.iter().map(|region| {
        let address = match (region.address, region.kind) {
            (Some(address), RegionKind::Io) => format!("ports {address:#x}"),
            (Some(address), _) => format!("{address:#x}"),
            (None, _) => "-".to_owned(),
        };
        [
            region_name(region),
            size(region.size),
            kind(region.kind),
            address,
        ]
    });
    let rows = aligned(rows.collect());
    let mut text = String::new();
    for (row, region) in rows.into_iter().zip(regions) {
        text += &format!("\n  {row}");
        // The guest's config space is what the rest of the report is about.
        if inspection.guest.is_some() && region.kind != RegionKind::Config {
            let lines = parts(region).into_iter().chain(region.reason.clone());
            text.extend(lines.map(|line| under(&line, style)));
        }
    }
    text
}

/// How the guest reaches a region, a line each.
fn parts(region: &Region) -> Vec<String> {
    let line = |part: &RegionPart| {
        let Area { offset, size } = part.area;
        let access = access(part.access);
        if offset == 0 && size >= region.size {
            return access.to_owned();
        }
        let last = offset.saturating_add(size.saturating_sub(1));
        format!("{offset:#x}-{last:#x} {access}")
    };
    match region.parts.as_slice() {
        [] if region.reason.is_none() => vec!["not in the guest".to_owned()],
        parts => parts.iter().map(line).collect(),
    }
}

fn interrupts(inspection: &Inspection, style: Style) -> String {
    let interrupts = &inspection.interrupts;
    let has_view = inspection.guest.is_some();
    let rows = interrupts.iter().map(|interrupt| {
        let guest = match interrupt.guest {
            _ if !has_view => String::new(),
            0 => "not in the guest".to_owned(),
            count => format!("{count} in the guest"),
        };
        [interrupt.kind.clone(), interrupt.vectors.to_string(), guest]
    });
    let rows = aligned(rows.collect());
    let mut text = String::new();
    for (row, interrupt) in rows.into_iter().zip(interrupts) {
        text += &format!("\n  {row}");
        if let Some(reason) = interrupt.reason.as_ref().filter(|_| has_view) {
            text += &under(reason, style);
        }
    }
    text
}

fn capability(capability: &Capability, style: Style) -> String {
    let Capability {
        offset,
        name,
        section,
        ..
    } = capability;
    let version = match capability.version {
        Some(version) => format!(", version {version}"),
        None => String::new(),
    };
    let source = style.paint(Tone::Faint, &format!("({section}{version})"));
    let mut text = format!("\n  {offset:03x}  {name} {source}");
    for detail in &capability.details {
        text += &format!("\n         {}: {}", detail.name, detail.value);
    }
    if let Some(reason) = &capability.hidden {
        text += &format!(
            "\n         {} {reason}",
            style.paint(Tone::Caution, "hidden:")
        );
    }
    text
}

fn difference(difference: &Difference, style: Style) -> String {
    let Difference {
        offset,
        name,
        section,
        reason,
        ..
    } = difference;
    let physical = style.paint(Tone::Caution, &bytes(&difference.physical));
    let guest = style.paint(Tone::Good, &bytes(&difference.guest));
    let reason = match section.as_str() {
        "" => reason.clone(),
        section => format!("{reason} ({section})"),
    };
    format!("\n  {offset:03x}  {name}: {physical} → {guest}") + &under(&reason, style)
}

/// The first bytes, in the order of their addresses.
fn bytes(bytes: &Bytes) -> String {
    let mut text = String::new();
    for (at, byte) in bytes.0.iter().take(BYTES_SHOWN).enumerate() {
        let space = if at == 0 { "" } else { " " };
        // Writing into a string can't fail.
        let _ = write!(text, "{space}{byte:02x}");
    }
    match bytes.0.len().checked_sub(BYTES_SHOWN) {
        None | Some(0) => text,
        Some(more) => format!("{text} and {more} more"),
    }
}

fn under(line: &str, style: Style) -> String {
    format!("\n         {}", style.paint(Tone::Faint, line))
}

fn region_name(region: &Region) -> String {
    let bar = u8::try_from(region.index).ok().and_then(BarIndex::new);
    match (region.kind, bar) {
        (RegionKind::Rom, _) => "ROM".to_owned(),
        (RegionKind::Config, _) => "config".to_owned(),
        (_, Some(bar)) => bar.to_string(),
        (_, None) => format!("region {}", region.index),
    }
}

fn kind(kind: RegionKind) -> String {
    let memory = |bits, prefetchable| {
        let prefetchable = if prefetchable { ", prefetchable" } else { "" };
        format!("memory, {bits} bits{prefetchable}")
    };
    match kind {
        RegionKind::Memory32 { prefetchable } => memory(32, prefetchable),
        RegionKind::Memory64 { prefetchable } => memory(64, prefetchable),
        RegionKind::Io => "I/O ports".to_owned(),
        RegionKind::Rom => "option ROM".to_owned(),
        RegionKind::Config => "config space".to_owned(),
    }
}

fn access(access: Access) -> &'static str {
    match access {
        Access::Direct => "direct: mapped into the guest",
        Access::Trapped => "trapped: each access leaves the guest",
        Access::MsixTable => "MSI-X table, answered by airlock",
        Access::MsixPendingBits => "MSI-X pending bits, answered by airlock",
    }
}

/// Bytes in the largest unit that leaves a whole number.
fn size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fits = |(shift, _): &&(u32, &str)| bytes >> shift != 0 && bytes.trailing_zeros() >= *shift;
    match units.iter().find(fits) {
        Some((shift, unit)) => format!("{} {unit}", bytes >> shift),
        None if bytes == 1 => "1 byte".to_owned(),
        None => format!("{bytes} bytes"),
    }
}

/// Lines of cells in columns.
fn aligned<const N: usize>(rows: Vec<[String; N]>) -> Vec<String> {
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; N]| {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
#[path = "report_test.rs"]
mod tests;
