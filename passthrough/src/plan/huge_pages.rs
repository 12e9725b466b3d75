use super::size::human;
use super::{Check, Item, Request, Subject};
use crate::host::Survey;
use crate::viability::Remedy;

/// Checks that the huge pages that were asked for are there.
pub(super) fn check(survey: &Survey, request: &Request, items: &mut Vec<Item>) {
    let (Some(page), Some(memory)) = (request.huge_pages, request.memory_bytes) else {
        return;
    };
    items.push(one(survey, page, memory));
}

fn one(survey: &Survey, page: u64, memory: u64) -> Item {
    let failed = |reason: String| Item::failed(Check::HugePages, Subject::Host, reason);
    let pools = &survey.huge_pages;
    let Some(pool) = pools
        .iter()
        .find(|pool| pool.page_bytes == page && page != 0)
    else {
        let sizes: Vec<_> = pools.iter().map(|pool| human(pool.page_bytes)).collect();
        let sizes = if sizes.is_empty() {
            "none".to_owned()
        } else {
            sizes.join(", ")
        };
        return failed(format!(
            "the host has no huge pages of {}; the sizes that it has: {sizes}",
            human(page)
        ))
        .fix(Remedy::advice(
            "choose another size, or none; pages of 1 GiB need hugepagesz=1G on the kernel's command line",
        ));
    };
    let need = memory.div_ceil(page);
    let available = pool.available();
    let reason = format!(
        "{} of guest memory need {need} huge pages of {}, and {available} are free",
        human(memory),
        human(page)
    );
    if need <= available {
        return Item::passed(Check::HugePages, Subject::Host, reason);
    }
    let total = pool.total.saturating_add(need - available);
    let script = format!("echo {total} > {}", pool.path());
    failed(reason)
        .fix(Remedy::privileged(&survey.process, script))
        .fix(Remedy::advice(
            "if too few appear, memory is in pieces: reserve them at boot with hugepages= on the kernel's command line",
        ))
}
