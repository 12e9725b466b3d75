//! Routes on the host's own KVM: a vCPU that never runs collects what is
//! delivered in its local APIC.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvm_bindings::kvm_lapic_state;
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use passthrough::ports::{InterruptRoute, InterruptRouter, MsiMessage};

use super::{Router, RouterStats};

/// Offset of the spurious vector register, whose bit 8 turns the APIC on.
const SPURIOUS: usize = 0xf0;
/// Offset of the first interrupt request register; each has 32 bits.
const REQUESTED: usize = 0x200;

/// For machines with better things to do.
const PATIENCE: Duration = Duration::from_secs(30);

struct Guest {
    vcpu: VcpuFd,
    router: Router,
}

impl Guest {
    /// Nothing where there is no KVM, which is said.
    fn new() -> Option<Self> {
        let kvm = match Kvm::new() {
            Ok(kvm) => kvm,
            Err(error) => {
                eprintln!("not tested, as /dev/kvm can't be opened: {error}");
                return None;
            }
        };
        let vm = Arc::new(kvm.create_vm().unwrap());
        assert!(vm.check_extension(Cap::SignalMsi));
        vm.create_irq_chip().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut apic = vcpu.get_lapic().unwrap();
        apic.regs[SPURIOUS + 1] |= 1;
        vcpu.set_lapic(&apic).unwrap();
        let router = Router::new(vm).unwrap();
        Some(Self { vcpu, router })
    }

    fn route(&self) -> Box<dyn InterruptRoute> {
        self.router.new_route().unwrap()
    }

    /// Takes the vectors that were delivered.
    fn take(&self) -> Vec<u8> {
        let mut apic = self.vcpu.get_lapic().unwrap();
        let vectors = requested(&apic);
        for register in 0..8 {
            let at = REQUESTED + register * 16;
            apic.regs[at..at + 4].fill(0);
        }
        self.vcpu.set_lapic(&apic).unwrap();
        vectors
    }

    /// Waits until `vector` was delivered.
    fn arrives(&self, vector: u8) {
        let deadline = Instant::now() + PATIENCE;
        while !requested(&self.vcpu.get_lapic().unwrap()).contains(&vector) {
            let stats = self.router.stats();
            assert!(Instant::now() < deadline, "no vector {vector}: {stats:?}");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Waits until `vector` was delivered, and takes it.
    fn expect(&self, vector: u8) {
        self.arrives(vector);
        assert_eq!(self.take(), [vector]);
    }

    /// Waits until the counters are as `done` wants them.
    fn wait(&self, what: &str, done: impl Fn(&RouterStats) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(&self.router.stats()) {
            let stats = self.router.stats();
            assert!(Instant::now() < deadline, "{what}: {stats:?}");
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

fn requested(apic: &kvm_lapic_state) -> Vec<u8> {
    let is_set = |vector: &u8| {
        let at = REQUESTED + usize::from(vector / 32) * 16 + usize::from(vector % 32 / 8);
        apic.regs[at] as u8 >> (vector % 8) & 1 != 0
    };
    (0..=u8::MAX).filter(is_set).collect()
}

fn message(vector: u8) -> MsiMessage {
    MsiMessage {
        address: 0xfee0_0000,
        data: vector.into(),
    }
}

fn signal(route: &dyn InterruptRoute) {
    let event = route.event().try_clone_to_owned().unwrap();
    File::from(event).write_all(&1_u64.to_ne_bytes()).unwrap();
}

#[test]
fn the_first_signal_is_injected_and_the_next_go_by_irqfd() {
    let Some(guest) = Guest::new() else { return };
    let mut route = guest.route();
    route.connect(message(0x41)).unwrap();
    let stats = guest.router.stats();
    assert_eq!((stats.gsis, stats.tables, stats.irqfds), (0, 0, 0));
    signal(&*route);
    guest.expect(0x41);
    guest.wait("promotion", |stats| stats.promotions == 1);
    for _ in 0..10 {
        signal(&*route);
        assert_eq!(guest.take(), [0x41], "at once, by the kernel");
    }
    let stats = guest.router.stats();
    let expected = RouterStats {
        routes: 1,
        gsis: 1,
        tables: 1,
        table_entries: 41,
        irqfds: 1,
        promotions: 1,
        injections: 1,
        ..RouterStats::default()
    };
    assert_eq!(stats, expected);
}

#[test]
fn a_held_route_keeps_signals_and_connecting_delivers_them() {
    let Some(guest) = Guest::new() else { return };
    let mut route = guest.route();
    signal(&*route);
    assert!(route.is_pending() && route.is_pending());
    route.connect(message(0x41)).unwrap();
    assert_eq!(guest.take(), [0x41], "before connect returns");
    route.disconnect().unwrap();
    assert!(!route.is_pending());
    signal(&*route);
    assert!(guest.take().is_empty());
    route.connect(message(0x42)).unwrap();
    assert_eq!(guest.take(), [0x42]);
    signal(&*route);
    guest.expect(0x42);
    guest.wait("promotion", |stats| stats.promotions == 1);

    // The same by irqfd, which needs no table of its own now.
    route.disconnect().unwrap();
    assert!(!route.is_pending(), "what was delivered is not pending");
    signal(&*route);
    signal(&*route);
    assert!(route.is_pending());
    assert!(guest.take().is_empty());
    route.connect(message(0x42)).unwrap();
    guest.expect(0x42);
    let stats = guest.router.stats();
    assert_eq!(
        (stats.tables, stats.irqfds, stats.irqfds_removed),
        (1, 2, 1)
    );
    route.disconnect().unwrap();
    assert!(!route.is_pending(), "what KVM found in the counter is gone");
}

#[test]
fn a_new_message_of_a_live_route_is_one_table_and_no_irqfd() {
    let Some(guest) = Guest::new() else { return };
    let mut route = guest.route();
    route.connect(message(0x41)).unwrap();
    signal(&*route);
    guest.wait("promotion", |stats| stats.promotions == 1);
    guest.expect(0x41);
    for vector in [0x42, 0x43, 0x43] {
        route.connect(message(vector)).unwrap();
        signal(&*route);
        assert_eq!(guest.take(), [vector]);
    }
    let stats = guest.router.stats();
    assert_eq!(
        (stats.tables, stats.irqfds, stats.irqfds_removed),
        (3, 1, 0)
    );
}

#[test]
fn new_messages_of_live_routes_are_one_table() {
    let Some(guest) = Guest::new() else { return };
    let mut routes: Vec<_> = (0..32).map(|_| guest.route()).collect();
    for (first, tables) in [(0x40, 0), (0x80, 1), (0xc0, 1), (0xc0, 0)] {
        let before = guest.router.stats().tables;
        let mut batch: Vec<_> = routes
            .iter_mut()
            .zip(first..)
            .map(|(route, vector)| (&mut **route as &mut dyn InterruptRoute, message(vector)))
            .collect();
        let results = guest.router.connect_all(&mut batch);
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        assert_eq!(guest.router.stats().tables - before, tables);
        routes.iter().for_each(|route| signal(&**route));
        let all: Vec<_> = (first..).take(32).collect();
        all.iter().for_each(|vector| guest.arrives(*vector));
        assert_eq!(guest.take(), all);
        guest.wait("promotion", |stats| stats.promotions == 32);
    }
    assert_eq!(guest.router.stats().irqfds, 32);

    let other = Guest::new().unwrap();
    let mut batch: Vec<_> = routes
        .iter_mut()
        .map(|route| (&mut **route as &mut dyn InterruptRoute, message(0x41)))
        .collect();
    let results = other.router.connect_all(&mut batch[..2]);
    assert!(results.iter().all(Result::is_err), "{results:?}");
}

#[test]
fn a_new_message_of_a_masked_route_waits_for_a_signal() {
    let Some(guest) = Guest::new() else { return };
    let mut route = guest.route();
    route.connect(message(0x41)).unwrap();
    signal(&*route);
    guest.wait("promotion", |stats| stats.promotions == 1);
    guest.expect(0x41);
    // As a guest does that moves an interrupt to another CPU.
    for vector in 0x50..0x60 {
        route.disconnect().unwrap();
        route.connect(message(vector)).unwrap();
    }
    assert_eq!(guest.router.stats().tables, 1);
    signal(&*route);
    guest.expect(0x5f);
    guest.wait("promotion", |stats| stats.promotions == 2);
    assert_eq!(guest.router.stats().tables, 2);
    assert_eq!(guest.router.stats().gsis, 1, "the GSI is the old one");
}

#[test]
fn vectors_that_fire_one_by_one_cost_linear_work() {
    let Some(guest) = Guest::new() else { return };
    let mut ratios = Vec::new();
    for vectors in [1, 64, 512, 2048] {
        let before = guest.router.stats();
        let mut routes: Vec<_> = (0..vectors).map(|_| guest.route()).collect();
        for route in &mut routes {
            route.connect(message(0x41)).unwrap();
        }
        assert_eq!(guest.router.stats().tables, before.tables, "no table yet");
        for route in &routes {
            signal(&**route);
            guest.expect(0x41);
        }
        let promoted = before.promotions + vectors;
        guest.wait("promotion", |stats| stats.promotions == promoted);
        let stats = guest.router.stats();
        let entries = stats.table_entries - before.table_entries;
        let tables = stats.tables - before.tables;
        eprintln!("{vectors} vectors: {tables} tables with {entries} entries");
        ratios.push(entries / vectors);
        assert_eq!(stats.irqfds - before.irqfds, vectors);
        for route in &routes {
            signal(&**route);
            assert_eq!(guest.take(), [0x41]);
        }
        assert_eq!(guest.router.stats().injections, stats.injections);
        drop(routes);
        let stats = guest.router.stats();
        assert_eq!((stats.gsis, stats.irqfds), (0, stats.irqfds_removed));
    }
    assert!(ratios.iter().all(|entries| *entries < 100), "{ratios:?}");
    assert!(ratios[3] < 40, "{ratios:?}");
}

#[test]
fn without_a_gsi_user_space_goes_on_delivering() {
    let Some(guest) = Guest::new() else { return };
    let full = 4096 - 40_u64;
    let mut routes: Vec<_> = (0..full + 2).map(|_| guest.route()).collect();
    for route in &mut routes {
        route.connect(message(0x41)).unwrap();
        signal(&**route);
    }
    guest.wait("promotion", |stats| stats.promotions == full);
    guest.expect(0x41);
    for route in &routes {
        signal(&**route);
        guest.expect(0x41);
    }
    let stats = guest.router.stats();
    assert_eq!(stats.gsis, full);
    assert_eq!(stats.lost, 0);
    routes.remove(0);
    signal(&**routes.last().unwrap());
    guest.expect(0x41);
    guest.wait("promotion", |stats| stats.promotions == full + 1);
}

#[test]
fn what_was_signalled_is_delivered_when_a_connected_route_goes() {
    let Some(guest) = Guest::new() else { return };
    for _ in 0..200 {
        let mut route = guest.route();
        route.connect(message(0x41)).unwrap();
        signal(&*route);
        drop(route);
        assert_eq!(guest.take(), [0x41]);
    }
}

#[test]
fn a_message_that_no_cpu_takes_is_counted() {
    let Some(guest) = Guest::new() else { return };
    let mut route = guest.route();
    let mut nobody = message(0x41);
    nobody.address |= 7 << 12;
    signal(&*route);
    route.connect(nobody).unwrap();
    let stats = guest.router.stats();
    assert_eq!((stats.injections, stats.untaken, stats.lost), (1, 1, 0));
}

#[test]
fn a_guest_that_reprograms_under_load_gets_what_it_asks_for() {
    let Some(guest) = Guest::new() else { return };
    let mut route = guest.route();
    let event = route.event().try_clone_to_owned().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut event = File::from(event);
            while !stop.load(Ordering::Relaxed) {
                let _ = event.write(&1_u64.to_ne_bytes());
                std::thread::sleep(Duration::from_micros(20));
            }
        });
        // Ends the other thread when a check fails, too.
        let _end = Ends(&stop);
        for round in 0..300_u32 {
            let vector = 0x40 + (round % 7) as u8;
            route.connect(message(vector)).unwrap();
            guest.arrives(vector);
            if round % 3 == 0 {
                route.connect(message(vector + 0x40)).unwrap();
                guest.arrives(vector + 0x40);
            }
            route.disconnect().unwrap();
            let _ = guest.take();
            std::thread::sleep(Duration::from_micros(50));
            assert!(guest.take().is_empty(), "delivered while it is held");
        }
    });
    signal(&*route);
    assert!(route.is_pending() && guest.take().is_empty());
    let stats = guest.router.stats();
    assert!(stats.promotions > 0 && stats.injections > 0, "{stats:?}");
    assert_eq!((stats.lost, stats.untaken), (0, 0));
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
