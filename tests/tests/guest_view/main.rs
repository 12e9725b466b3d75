//! What guests see of assigned devices, and what becomes of a device when its
//! guest writes to that.

mod config;
mod dma;
mod guest;
mod large;
mod moves;
mod power;
mod rom;
