//! A small KVM virtual machine monitor for assigned PCI devices.
//!
//! [`vm`] is where the floors are wired; everything else is one part of a
//! machine: [`memory`], [`vcpu`], [`interrupts`], [`boot`], [`platform`].

pub mod arrival;
pub mod boot;
pub mod cli;
pub mod config;
pub mod dma;
pub mod event_loop;
pub mod interrupts;
pub mod kvm;
pub mod lines;
pub mod mapper;
pub mod memory;
pub mod outcome;
pub mod platform;
pub mod request;
pub mod rom;
pub mod stats;
mod sys;
pub mod timeline;
pub mod topology;
pub mod vcpu;
pub mod vm;
pub mod wiring;
