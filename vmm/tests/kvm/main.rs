//! Guests of a few instructions on the real `/dev/kvm`.

mod ends;
mod kernel;
mod terminal;
