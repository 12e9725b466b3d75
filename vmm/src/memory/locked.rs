use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises this process's limit on locked memory (`RLIMIT_MEMLOCK`), so that
/// `need` bytes of guest RAM can be pinned for devices, as far as the user may.
///
/// Process-wide: for the command, not for an embedding monitor. Where it may
/// not, everything stays as it is, and the plan says what to do.
pub fn raise_locked_memory(need: u64) {
    let now = getrlimit(Resource::Memlock);
    let Some(wanted) = wanted(&now, need) else {
        return;
    };
    let (from, to) = (text(now.current), text(wanted.current));
    match setrlimit(Resource::Memlock, wanted) {
        Ok(()) => log::info!(
            "the limit on locked memory was raised from {from} to {to}: guest RAM takes {need} bytes"
        ),
        Err(error) => log::info!(
            "the limit on locked memory stays {from}, and guest RAM takes {need} bytes: {error}"
        ),
    }
}

/// The limit to ask for; nothing when it is high enough.
///
/// Up to the hard limit the soft one may go, and goes all the way: some kernel
/// interfaces (iommufd) count what all processes of a user have pinned. Beyond,
/// which takes `CAP_SYS_RESOURCE`, no more than what is needed.
fn wanted(now: &Rlimit, need: u64) -> Option<Rlimit> {
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= need);
    if enough(now.current) {
        return None;
    }
    let most = if enough(now.maximum) {
        now.maximum
    } else {
        Some(need)
    };
    Some(Rlimit {
        current: most,
        maximum: most,
    })
}

fn text(limit: Option<u64>) -> String {
    limit.map_or("unlimited".to_owned(), |limit| format!("{limit} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_goes_up_to_the_hard_one_and_no_further_than_needed() {
        let limit = |current, maximum| Rlimit { current, maximum };
        let limits = |now| {
            let wanted = wanted(&now, 512);
            wanted.map(|limit| (limit.current, limit.maximum))
        };
        assert_eq!(limits(limit(None, None)), None);
        assert_eq!(limits(limit(Some(512), Some(512))), None);
        assert_eq!(limits(limit(Some(8), None)), Some((None, None)));
        let both = Some((Some(1024), Some(1024)));
        assert_eq!(limits(limit(Some(8), Some(1024))), both);
        let both = Some((Some(512), Some(512)));
        assert_eq!(limits(limit(Some(8), Some(8))), both);
    }

    #[test]
    fn what_is_enough_is_left_alone() {
        let before = getrlimit(Resource::Memlock);
        raise_locked_memory(0);
        let after = getrlimit(Resource::Memlock);
        assert_eq!(
            (before.current, before.maximum),
            (after.current, after.maximum)
        );
    }
}
