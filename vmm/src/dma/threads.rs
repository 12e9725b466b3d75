use std::thread::available_parallelism;

/// Why not more: a handful of cores, each zeroing some 10 GB/s, is all that a
/// memory controller can take. Further threads only take CPUs from the guest,
/// which boots meanwhile, and each of them holds up the others' mmap(2).
const MOST: usize = 8;

/// How many threads populate guest RAM unless the user says so: one for each
/// CPU that this process may use, up to eight.
pub fn default_threads() -> usize {
    available_parallelism().map_or(1, |cpus| cpus.get().min(MOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_always_one() {
        assert!((1..=MOST).contains(&default_threads()));
    }
}
