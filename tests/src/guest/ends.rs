use super::{Function, GuestError, Memory, marker};

/// What is tried of each end, or all of a smaller BAR.
const PAGE: u64 = 4096;

/// Writes to the first and to the last page of a memory BAR, and tells what
/// either keeps.
///
/// # Errors
/// [`GuestError`] when there is no such BAR.
pub fn ends(function: &Function, index: u8) -> Result<(), GuestError> {
    function.decode(true)?;
    let bar = function.bar(index)?;
    let page = PAGE.min(bar.size);
    let first = Memory::map(bar.start, page)?;
    let last = Memory::map(bar.start + bar.size - page, page)?;
    let top = page as usize - 4;
    first.write::<u32>(0, 0x1122_3344)?;
    last.write::<u32>(top, 0x5566_7788)?;
    marker(
        "ends",
        &format!(
            "address={function} index={index} start={} size={} first={} last={}",
            bar.start,
            bar.size,
            first.read::<u32>(0)?,
            last.read::<u32>(top)?,
        ),
    );
    Ok(())
}
