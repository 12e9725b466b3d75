//! Guests of a few instructions on the real `/dev/kvm`.

mod children;
mod ends;
mod kernel;
mod late_writes;
mod terminal;
