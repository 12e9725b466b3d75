use std::path::PathBuf;

use super::build::{self, BuildError, RECIPE};
use super::version::{KernelVersion, PACKAGE_PREFIX};
use crate::cache::Cache;
use crate::digest::{DigestError, sha256_parts};
use crate::prerequisites;
use crate::progress::say;

/// How the names of the cache's kernels begin; their version and the digest of
/// what they are made of follow.
const ENTRY_PREFIX: &str = "kernel-";

/// The directory of a kernel out of the cache, or built into it. A kernel in the
/// cache is used also when Debian has a newer version of the source by now:
/// asking would need the network at every start.
pub(super) fn get(cache: &Cache, version: KernelVersion) -> Result<PathBuf, BuildError> {
    if let Some(path) = find(cache, version)? {
        return Ok(path);
    }
    // Both kernels under one lock: two builds at a time would be no faster.
    let what = "it builds a kernel for the lab, which takes some minutes";
    let _lock = cache.lock("kernel.lock", what)?;
    if let Some(path) = find(cache, version)? {
        return Ok(path);
    }
    prerequisites::ensure(cache, prerequisites::BUILD)?;
    say(&format!(
        "{version} is not there for the lab yet; it is built once, in some minutes"
    ));
    let place = build::place(cache)?;
    let package = build::fetch(&place, version)?;
    let entry = entry_name(version, &package.name)?;
    let path = cache.entry(&entry, what, |partial| {
        build::build(&place, version, &package, partial)
    })?;
    place.finish();
    Ok(path)
}

/// The directory of the kernel in the cache, if there is one: of several the
/// newest.
pub(super) fn find(cache: &Cache, version: KernelVersion) -> Result<Option<PathBuf>, BuildError> {
    let mut found = Vec::new();
    for entry in cache.names(ENTRY_PREFIX)? {
        let rest = entry.strip_prefix(ENTRY_PREFIX).unwrap_or_default();
        let Some((of, _)) = rest.split_once('-') else {
            continue;
        };
        // What was made of anything else has another digest in its name.
        if entry == entry_name(version, &format!("{PACKAGE_PREFIX}{of}"))? {
            found.push((numbers(of), entry));
        }
    }
    let newest = found.into_iter().max();
    Ok(newest.map(|(_, entry)| cache.path(&entry)))
}

/// The name of the cache's entry: it depends on all that the kernel does.
fn entry_name(version: KernelVersion, package: &str) -> Result<String, DigestError> {
    let key = sha256_parts(&[
        package.as_bytes(),
        version.fragment().as_bytes(),
        RECIPE.as_bytes(),
    ])?;
    let of = package.strip_prefix(PACKAGE_PREFIX).unwrap_or(package);
    Ok(format!("{ENTRY_PREFIX}{of}-{}", key.short()))
}

/// A version such as `7.10`, to be compared.
fn numbers(version: &str) -> Vec<u32> {
    let parts = version.split('.');
    parts.map(|part| part.parse().unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_newest_kernel_of_this_recipe_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path().to_owned()).unwrap();
        let (longterm, recent) = (KernelVersion::Longterm, KernelVersion::Recent);
        let make = |version, of: &str, suffix: &str| {
            let name = entry_name(version, &format!("{PACKAGE_PREFIX}{of}")).unwrap();
            let path = cache.path(&format!("{name}{suffix}"));
            fs::create_dir(&path).unwrap();
            path
        };
        assert_eq!(find(&cache, recent).unwrap(), None);
        // Of another configuration, and of a build that did not end.
        fs::create_dir(cache.path("kernel-7.11-0123456789abcdef")).unwrap();
        fs::create_dir(cache.path("kernel-0123456789abcdef")).unwrap();
        make(recent, "7.12", ".partial");
        assert_eq!(find(&cache, recent).unwrap(), None);

        make(recent, "7.2", "");
        let newest = make(recent, "7.10", "");
        make(recent, "7.9", "");
        assert_eq!(find(&cache, recent).unwrap(), Some(newest));
        assert_eq!(find(&cache, longterm).unwrap(), None);
        let other = make(longterm, "6.12", "");
        assert_eq!(find(&cache, longterm).unwrap(), Some(other));
    }
}
