use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use rustix::fs::{OFlags, SeekFrom, seek};

use super::{GuestError, at, marker};

/// What random reads take.
const BLOCK: usize = 4096;
/// How many of them one after the other.
const SINGLE: u32 = 1000;
/// How many at a time, and how often each.
const DEPTH: u32 = 32;
const EACH: u32 = 100;
/// What sequential reads take.
const LARGE: usize = 1 << 20;
/// How often the disk is read from beginning to end.
const PASSES: u32 = 4;
/// What reads past the page cache must be aligned to.
const ALIGNMENT: usize = 4096;

/// Measures reads of a disk past the page cache, in nanoseconds each: of 4 KiB at
/// random places, one at a time and 32 at a time (by as many threads), and of 1 MiB
/// from beginning to end.
///
/// # Errors
/// [`GuestError`] when the disk can't be read, or is shorter than 1 MiB.
pub fn disk(path: &Path) -> Result<(), GuestError> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(path)
        .map_err(at(path))?;
    let size = seek(&file, SeekFrom::End(0)).map_err(|error| at(path)(error.into()))?;
    let large = size / LARGE as u64;
    if large == 0 {
        return Err(GuestError::Unexpected(format!(
            "{} has {size} bytes only",
            path.display()
        )));
    }
    let disk = Disk { file: &file, path };
    let places = |seed| Places::new(seed, size / BLOCK as u64);

    disk.read(BLOCK, places(0).take(SINGLE as usize / 10))?;
    let begun = Instant::now();
    disk.read(BLOCK, places(1).take(SINGLE as usize))?;
    let one = begun.elapsed().as_nanos() / u128::from(SINGLE);

    let start = Barrier::new(DEPTH as usize + 1);
    let all = thread::scope(|scope| {
        let reader = |seed| {
            let (disk, start) = (&disk, &start);
            scope.spawn(move || {
                start.wait();
                disk.read(BLOCK, places(seed).take(EACH as usize))
            })
        };
        let readers: Vec<_> = (0..DEPTH).map(|seed| reader(seed + 2)).collect();
        start.wait();
        let begun = Instant::now();
        for reader in readers {
            let gone = |_| GuestError::Unexpected("a reader panicked".to_owned());
            reader.join().map_err(gone)??;
        }
        Ok(begun.elapsed().as_nanos())
    })?;
    let queue = all / u128::from(DEPTH * EACH);

    let begun = Instant::now();
    for _ in 0..PASSES {
        disk.read(LARGE, (0..large).map(|number| number * LARGE as u64))?;
    }
    let sequential = begun.elapsed().as_nanos() / (u128::from(PASSES) * u128::from(large));
    marker(
        "disk",
        &format!("one={one} queue={queue} sequential={sequential}"),
    );
    Ok(())
}

struct Disk<'a> {
    file: &'a File,
    path: &'a Path,
}

impl Disk<'_> {
    fn read(&self, length: usize, places: impl Iterator<Item = u64>) -> Result<(), GuestError> {
        let mut buffer = vec![0; length + ALIGNMENT];
        let skip = buffer.as_ptr().align_offset(ALIGNMENT);
        let buffer = &mut buffer[skip..skip + length];
        for place in places {
            let read = self.file.read_exact_at(buffer, place);
            read.map_err(at(self.path))?;
        }
        Ok(())
    }
}

/// Places of blocks without order, the same for the same seed.
struct Places {
    state: u64,
    blocks: u64,
}

impl Places {
    fn new(seed: u32, blocks: u64) -> Self {
        Self {
            state: u64::from(seed),
            blocks,
        }
    }
}

impl Iterator for Places {
    type Item = u64;

    /// `SplitMix64` (Steele, Lea, Flood 2014).
    fn next(&mut self) -> Option<u64> {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        Some(mixed % self.blocks * BLOCK as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn places_are_blocks_of_the_disk_and_all_over_it() {
        let places: Vec<_> = Places::new(7, 64).take(1000).collect();
        assert!(places.iter().all(|place| place % BLOCK as u64 == 0));
        let found: BTreeSet<_> = places.iter().collect();
        assert_eq!(found.len(), 64);
        assert!(places.iter().max() == Some(&(63 * BLOCK as u64)));
        assert_eq!(places, Places::new(7, 64).take(1000).collect::<Vec<_>>());
        assert_ne!(places, Places::new(8, 64).take(1000).collect::<Vec<_>>());
    }
}
