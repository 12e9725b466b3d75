//! Every interleaving of a guest that programs a vector, a device that
//! signals, the interrupts thread, KVM's work queue and calls that fail.
//!
//! The code under test is the real [`Route`], [`Core`] and table, on a model
//! of the kernel. A step is what they do under one lock. Between two steps,
//! and before every call into the kernel inside of one, anything may happen
//! that needs no lock: see [`Chance`]. The search visits every state that can
//! be reached, by replaying the shortest way to it; states are finite, as
//! versions and counters have no meaning beyond their order. In each it asks:
//!
//! * was anything delivered that should not have been ([`Violation`]),
//! * is the pending bit right while the vector is masked,
//! * does everything that was signalled arrive, when the guest unmasks and
//!   the others go on until they rest; and when the route is dropped.
//!
//! That a mistake would be found is shown by making some ([`Mutant`],
//! [`Defect`]).

use std::collections::{BTreeMap, HashSet, VecDeque};

use passthrough::ports::MsiMessage;

use super::kernel::{Kernel, WatchId};
use super::model_kernel::{Chance, Defect, ModelKernel, Violation, World};
use super::route::{Core, Promotion, Route, Shape};
use super::table::Gsi;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Chance(Chance),
    /// The guest unmasks, or reprograms, with one of two messages.
    Connect(u32),
    /// The guest masks.
    Disconnect,
    /// epoll answers the interrupts thread, which has no lock yet.
    Wake,
    Signalled,
    Seat,
    Commit,
    Promote,
    /// Another route has KVM take the table.
    OtherCommit,
}

const ACTIONS: [Action; 11] = [
    Action::Chance(Chance::Fire),
    Action::Chance(Chance::Work),
    Action::Connect(1),
    Action::Connect(2),
    Action::Disconnect,
    Action::Wake,
    Action::Signalled,
    Action::Seat,
    Action::Commit,
    Action::Promote,
    Action::OtherCommit,
];

/// What happens inside of a step, and before which of its calls.
type Inside = Option<(usize, Chance)>;

/// Mistakes that the interrupts thread could make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// It injects after it has let go of the lock.
    InjectLater,
    /// It makes irqfds without giving KVM the table.
    NoCommit,
    /// It gives KVM the table as it was when the route was seated.
    OldTable,
    /// It forgets about a signalled route that it could not promote.
    DropWoken,
}

/// Where the interrupts thread is with the route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Idle,
    Queued,
    Seated,
    Committed,
}

struct Run {
    core: Core<ModelKernel>,
    route: Route<ModelKernel>,
    /// What the guest has programmed, while it does not mask.
    guest: Option<u32>,
    woken: bool,
    stage: Stage,
    mutant: Option<Mutant>,
    /// A mutant's booty.
    in_hand: Option<u32>,
    old_table: BTreeMap<Gsi, MsiMessage>,
}

/// All that the future depends on.
type State = (
    World,
    (Shape, Option<(u32, bool)>, bool),
    Option<u32>,
    (bool, Stage, bool),
    (Option<u32>, Vec<u32>),
);

fn message(data: u32) -> MsiMessage {
    MsiMessage {
        address: 0xfee0_0000,
        data,
    }
}

impl Run {
    fn new(game: Game) -> Self {
        let kernel = ModelKernel::new(game.defect, game.refusals);
        Self {
            core: Core::new(kernel),
            route: Route::new(WatchId(1), ()),
            guest: None,
            woken: false,
            stage: Stage::Idle,
            mutant: game.mutant,
            in_hand: None,
            old_table: BTreeMap::new(),
        }
    }

    fn kernel(&self) -> &ModelKernel {
        &self.core.kernel
    }

    fn state(&self) -> State {
        (
            self.kernel().world(),
            self.route.shape(&self.core),
            self.guest,
            (self.woken, self.stage, self.core.table().is_behind()),
            (
                self.in_hand,
                self.old_table.values().map(|m| m.data).collect(),
            ),
        )
    }

    fn is_enabled(&self, action: Action) -> bool {
        let world = self.kernel().world();
        // The thread handles what epoll answered, then promotes.
        let promoting = matches!(self.stage, Stage::Seated | Stage::Committed);
        match action {
            Action::Chance(chance) => world.can(chance),
            Action::Connect(_) => true,
            Action::Disconnect => self.guest.is_some(),
            Action::Wake => world.watched && world.counter > 0 && !self.woken && !promoting,
            Action::Signalled => self.woken,
            Action::Seat => self.stage == Stage::Queued && !self.woken,
            Action::Commit => self.stage == Stage::Seated,
            Action::Promote => self.stage == Stage::Committed,
            Action::OtherCommit => self.core.table().is_behind(),
        }
    }

    /// Takes a step. Answers how many calls it made, and whether what should
    /// happen inside of it did.
    fn step(&mut self, action: Action, inside: Inside) -> (usize, bool) {
        self.kernel().begin(inside);
        match action {
            Action::Chance(chance) => self.kernel().happen(chance),
            Action::Connect(data) => {
                self.kernel().allow(self.guest, Some(data));
                let routes = [(&self.route, message(data))];
                if Route::connect_all(&self.core, &routes)[0].is_ok() {
                    self.guest = Some(data);
                }
                self.kernel().allow(self.guest, None);
            }
            Action::Disconnect => {
                if self.route.disconnect(&self.core).is_ok() {
                    self.guest = None;
                }
                self.kernel().allow(self.guest, None);
            }
            Action::Wake => self.woken = true,
            Action::Signalled => self.signalled(),
            Action::Seat => {
                let seated = self.route.seat(&self.core).unwrap();
                self.stage = if seated { Stage::Seated } else { Stage::Idle };
                if self.mutant == Some(Mutant::OldTable) {
                    self.old_table = self.core.table().messages().clone();
                }
            }
            Action::Commit => self.commit(),
            Action::Promote => {
                let promoted = self.route.promote(&self.core);
                self.stage = match promoted {
                    Ok(Promotion::Later) => Stage::Queued,
                    _ => Stage::Idle,
                };
            }
            // Refused or not, it is the other's matter.
            Action::OtherCommit => drop(self.core.commit()),
        }
        self.kernel().end()
    }

    fn signalled(&mut self) {
        if self.mutant == Some(Mutant::InjectLater) {
            let Some(data) = self.in_hand.take() else {
                if let Shape::Watched(data) = self.route.shape(&self.core).0
                    && self.kernel().take(&()) > 0
                {
                    self.in_hand = Some(data);
                } else {
                    self.woken = false;
                }
                return;
            };
            let _ = self.kernel().inject(message(data));
            self.woken = false;
            return;
        }
        self.woken = false;
        if self.route.signalled(&self.core) && self.mutant != Some(Mutant::DropWoken) {
            self.stage = Stage::Queued;
        }
        if self.mutant == Some(Mutant::DropWoken) {
            let _ = self.kernel().unwatch(&());
        }
    }

    fn commit(&mut self) {
        let committed = match self.mutant {
            Some(Mutant::NoCommit) => {
                self.core.table().committed();
                true
            }
            Some(Mutant::OldTable) => {
                let committed = self.kernel().set_table(&self.old_table).is_ok();
                if committed {
                    self.core.table().committed();
                }
                committed
            }
            _ => self.core.commit().is_ok(),
        };
        self.stage = Stage::Committed;
        if !committed {
            self.route.dequeue();
            self.stage = Stage::Idle;
        }
    }

    /// Is this state all right?
    fn check(&self) -> Result<(), Violation> {
        if let Some(violation) = self.kernel().violation() {
            return Err(violation);
        }
        let world = self.kernel().world();
        if self.guest.is_none() && (world.counter > 0) != world.is_outstanding() {
            return Err(Violation::Pending);
        }
        Ok(())
    }

    /// Lets everybody but guest and device go on until they rest.
    fn rest(&mut self) {
        let idle = [
            Action::Chance(Chance::Work),
            Action::Signalled,
            Action::Wake,
            Action::Seat,
            Action::Commit,
            Action::Promote,
        ];
        for _ in 0..100 {
            match idle.into_iter().find(|action| self.is_enabled(*action)) {
                Some(action) => self.step(action, None),
                None => return,
            };
        }
        panic!("the interrupts thread does not come to rest");
    }

    /// From here on, does everything arrive?
    fn check_end(mut self, dropped: bool) -> Result<(), Violation> {
        if dropped {
            let was_masked = self.guest.is_none();
            self.kernel().begin(None);
            self.route.release(&self.core).unwrap();
            self.kernel().allow(None, None);
            self.rest();
            self.check_arrived(was_masked)?;
            assert_eq!(self.core.table().len(), 0, "the GSI is given back");
            return Ok(());
        }
        self.rest();
        if self.guest.is_none() {
            self.step(Action::Connect(1), None);
            self.rest();
        }
        self.check_arrived(false)
    }

    fn check_arrived(&self, was_masked: bool) -> Result<(), Violation> {
        match self.kernel().violation() {
            Some(violation) => Err(violation),
            None if self.kernel().world().is_outstanding() && !was_masked => Err(Violation::Lost),
            None => Ok(()),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Game {
    mutant: Option<Mutant>,
    defect: Option<Defect>,
    /// How many calls may fail.
    refusals: u8,
}

type Path = Vec<(Action, Inside)>;

/// What a search saw.
#[derive(Debug, Default)]
struct Seen {
    states: HashSet<State>,
    transitions: usize,
    violations: BTreeMap<Violation, Path>,
}

impl Game {
    fn replay(self, path: &Path) -> Run {
        let mut run = Run::new(self);
        for (action, inside) in path {
            run.step(*action, *inside);
        }
        run
    }

    /// Visits every state, shortest ways first.
    fn search(self) -> Seen {
        let mut seen = Seen::default();
        seen.states.insert(Run::new(self).state());
        let mut frontier = VecDeque::from([Path::new()]);
        while let Some(path) = frontier.pop_front() {
            for action in ACTIONS {
                if !self.replay(&path).is_enabled(action) {
                    continue;
                }
                let mut calls = 0;
                let mut next = 0;
                // First undisturbed, then with each chance before each call.
                while let Some(inside) = inside(next, calls) {
                    next += 1;
                    let mut run = self.replay(&path);
                    let (made, happened) = run.step(action, inside);
                    if inside.is_none() {
                        calls = made;
                    } else if !happened {
                        continue;
                    }
                    seen.transitions += 1;
                    let mut path = path.clone();
                    path.push((action, inside));
                    self.look(run, path, &mut seen, &mut frontier);
                }
            }
        }
        seen
    }

    fn look(self, run: Run, path: Path, seen: &mut Seen, frontier: &mut VecDeque<Path>) {
        if let Err(violation) = run.check() {
            seen.violations.entry(violation).or_insert(path);
            return;
        }
        if !seen.states.insert(run.state()) {
            return;
        }
        for dropped in [false, true] {
            if let Err(violation) = self.replay(&path).check_end(dropped) {
                seen.violations.entry(violation).or_insert(path.clone());
            }
        }
        frontier.push_back(path);
    }
}

/// The `number`-th choice of what happens inside of a step with `calls` calls.
fn inside(number: usize, calls: usize) -> Option<Inside> {
    const CHANCES: [Chance; 3] = [Chance::Fire, Chance::Work, Chance::Refuse];
    let Some(number) = number.checked_sub(1) else {
        return Some(None);
    };
    let call = number / CHANCES.len();
    (call < calls).then(|| Some((call, CHANCES[number % CHANCES.len()])))
}

#[test]
fn no_interleaving_loses_or_invents_an_interrupt() {
    let seen = Game {
        refusals: 2,
        ..Game::default()
    }
    .search();
    eprintln!("{} states, {} steps", seen.states.len(), seen.transitions);
    assert!(seen.violations.is_empty(), "{:#?}", seen.violations);
    // The search went where it should: every way, with and without a seat.
    let shapes: HashSet<_> = seen.states.iter().map(|state| state.1).collect();
    let (one, two) = ((1, true), (2, true));
    for shape in [
        (Shape::Held, None, false),
        (Shape::Held, Some(one), true),
        (Shape::Held, Some((1, false)), true),
        (Shape::Watched(1), None, true),
        (Shape::Watched(1), Some(two), false),
        (Shape::Watched(1), Some((2, false)), true),
        (Shape::Direct(one), None, false),
        (Shape::Direct(two), None, true),
    ] {
        assert!(shapes.contains(&shape), "{shape:?} was not reached");
    }
    let (work, races) = seen.states.iter().fold((0, 0), |(work, races), state| {
        let stale = state.3.0 && !state.0.watched;
        (work + usize::from(state.0.work), races + usize::from(stale))
    });
    assert!(work > 0, "an irqfd found its counter signalled");
    assert!(races > 0, "the thread was woken for what is masked by now");
}

#[test]
fn mistakes_are_found() {
    let mutants = [
        (Mutant::InjectLater, Violation::Held),
        (Mutant::InjectLater, Violation::Message),
        (Mutant::NoCommit, Violation::Lost),
        (Mutant::OldTable, Violation::Message),
        (Mutant::DropWoken, Violation::Lost),
    ];
    for (mutant, violation) in mutants {
        let seen = Game {
            mutant: Some(mutant),
            ..Game::default()
        }
        .search();
        let found = seen.violations.get(&violation);
        eprintln!("{mutant:?}: {violation:?} by {found:?}");
        assert!(found.is_some(), "{mutant:?}: {:?}", seen.violations);
    }
    let defects = [
        (Defect::BlindIrqfd, Violation::Lost),
        (Defect::StaleCounter, Violation::Pending),
        (Defect::NoFlush, Violation::Held),
    ];
    for (defect, violation) in defects {
        let seen = Game {
            defect: Some(defect),
            ..Game::default()
        }
        .search();
        let found = seen.violations.get(&violation);
        eprintln!("{defect:?}: {violation:?} by {found:?}");
        assert!(found.is_some(), "{defect:?}: {:?}", seen.violations);
    }
}
