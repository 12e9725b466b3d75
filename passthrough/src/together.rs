//! Waits that go on beside each other.

use std::sync::{Mutex, PoisonError};
use std::thread::{self, Builder};

/// Does `work` with all of `items` at the same time, and waits for it. The answers
/// are in the order of the items. Where threads can't be had, fewer do all of it. A
/// panic goes on here.
pub(crate) fn together<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let count = items.len();
    let left = Mutex::new(items.into_iter().enumerate());
    let done = Mutex::new(Vec::with_capacity(count));
    let labour = || {
        loop {
            let next = left.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((place, item)) = next else { break };
            let answer = work(item);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            done.push((place, answer));
        }
    };
    thread::scope(|scope| {
        // This thread has nothing else to do.
        for _ in 1..count {
            if Builder::new().spawn_scoped(scope, labour).is_err() {
                break;
            }
        }
        labour();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, answer)| answer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn all_are_at_work_at_once_and_answer_in_order() {
        // Each waits for the others: one after the other would never end.
        let barrier = Barrier::new(5);
        let done = together((0..5).collect(), |number| {
            barrier.wait();
            number * 2
        });
        assert_eq!(done, [0, 2, 4, 6, 8]);
        assert_eq!(together(Vec::<u8>::new(), |number| number), [0; 0]);
    }
}
