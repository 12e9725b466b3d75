use std::time::Instant;

use super::{Function, GuestError, marker};

/// Turns a function's memory decoding off, on and off again, and tells how long the
/// last two take, in nanoseconds.
///
/// # Errors
/// [`GuestError`] when the kernel refuses.
pub fn decode(function: &Function) -> Result<(), GuestError> {
    let timed = |on| {
        let begun = Instant::now();
        function.decode(on)?;
        Ok(begun.elapsed().as_nanos())
    };
    function.decode(false)?;
    let (on, off): (u128, u128) = (timed(true)?, timed(false)?);
    marker("decode", &format!("on={on} off={off}"));
    Ok(())
}
