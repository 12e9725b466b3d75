use std::any::Any;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Journal;
use super::line::FakeLines;
use crate::iommu::{AddressSpace, IovaRange, MapError, Peers, SpaceLimits};
use crate::ports::{
    HostMemory, InterruptLine, InterruptPin, InterruptRoute, InterruptRouter, MemoryMapper,
    MemoryMapping, MsiMessage, PortError,
};
use crate::sys;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the routes of a [`FakeRouter`] share.
#[derive(Debug, Default)]
struct Connected {
    /// The connected ones by number.
    routes: BTreeMap<u32, (File, MsiMessage)>,
    /// What the guest got before routes were changed.
    delivered: Vec<MsiMessage>,
}

impl Connected {
    /// Connects a route, or disconnects it. What was signalled before has been
    /// delivered as it was.
    fn set(&mut self, number: u32, route: Option<(File, MsiMessage)>) {
        if let Some((mut event, message)) = self.routes.remove(&number)
            && drain(&mut event) > 0
        {
            self.delivered.push(message);
        }
        if let Some(route) = route {
            self.routes.insert(number, route);
        }
    }
}

/// Routes with real events and a guest that takes notes.
///
/// As a plain embedder has it: there is one table of routes, which is written
/// as a whole for each [`InterruptRoute::connect`], but once for each
/// [`InterruptRouter::connect_all`].
#[derive(Debug, Default)]
pub struct FakeRouter {
    journal: Journal,
    connected: Arc<Mutex<Connected>>,
    made: Mutex<u32>,
    routes_left: Mutex<Option<u32>>,
    tables: Arc<AtomicU64>,
    refuse_connects: Arc<AtomicU64>,
    lines: FakeLines,
}

impl FakeRouter {
    /// A router that writes into `journal`.
    pub fn new(journal: &Journal) -> Self {
        Self {
            journal: journal.clone(),
            ..Self::default()
        }
    }

    /// Gives out only so many routes more.
    pub fn only_routes(&self, routes: u32) {
        *lock(&self.routes_left) = Some(routes);
    }

    /// The messages that the guest got since it was last asked, once for all
    /// signals of a route.
    pub fn delivered(&self) -> Vec<MsiMessage> {
        let mut connected = lock(&self.connected);
        let mut messages = std::mem::take(&mut connected.delivered);
        for (event, message) in connected.routes.values_mut() {
            if drain(event) > 0 {
                messages.push(*message);
            }
        }
        messages
    }

    /// How often the table of routes has been written.
    pub fn tables(&self) -> u64 {
        self.tables.load(Ordering::Relaxed)
    }

    /// Has no interrupt lines.
    pub fn without_lines(&self) {
        self.lines.none();
    }

    /// Has lines that don't learn when the guest acknowledges.
    pub fn without_resampling(&self) {
        self.lines.deaf();
    }

    /// Refuses the next so many connections of the line.
    pub fn refuse_lines(&self, connections: u64) {
        self.lines.refuse_connects(connections);
    }

    /// Whether the function's line is asserted now.
    pub fn line_is_asserted(&self) -> bool {
        self.lines.is_asserted()
    }

    /// The guest acknowledges the interrupt of the function's line, which is
    /// let go. To be followed by [`super::FakeDevice::see_unmask`].
    pub fn acknowledge_line(&self) {
        self.lines.acknowledge();
    }

    /// Refuses the next so many connections.
    pub fn refuse_connects(&self, connections: u64) {
        self.refuse_connects.store(connections, Ordering::Relaxed);
    }
}

/// Takes an event's count.
fn drain(event: &mut File) -> u64 {
    let mut count = [0; 8];
    event
        .read_exact(&mut count)
        .map_or(0, |()| u64::from_ne_bytes(count))
}

impl InterruptRouter for FakeRouter {
    fn new_route(&self) -> Result<Box<dyn InterruptRoute>, PortError> {
        if let Some(left) = &mut *lock(&self.routes_left) {
            *left = left.checked_sub(1).ok_or("no routes left")?;
        }
        self.journal.step(format_args!("new route"))?;
        let mut made = lock(&self.made);
        let number = *made;
        *made += 1;
        self.journal.note(format!("route {number} new"));
        Ok(Box::new(FakeRoute {
            number,
            event: File::from(sys::event()?),
            journal: self.journal.clone(),
            connected: Arc::clone(&self.connected),
            tables: Arc::clone(&self.tables),
            refuse_connects: Arc::clone(&self.refuse_connects),
        }))
    }

    fn connect_all(
        &self,
        routes: &mut [(&mut dyn InterruptRoute, MsiMessage)],
    ) -> Vec<Result<(), PortError>> {
        self.tables.fetch_add(1, Ordering::Relaxed);
        let set = |(route, message): &mut (&mut dyn InterruptRoute, MsiMessage)| {
            let route: &mut dyn Any = *route;
            match route.downcast_mut::<FakeRoute>() {
                Some(route) => route.set(*message),
                None => Err("a route of another router".into()),
            }
        };
        routes.iter_mut().map(set).collect()
    }

    fn new_line(&self, pin: InterruptPin) -> Result<Option<Box<dyn InterruptLine>>, PortError> {
        self.lines.new_line(pin, &self.journal)
    }
}

#[derive(Debug)]
struct FakeRoute {
    number: u32,
    event: File,
    journal: Journal,
    connected: Arc<Mutex<Connected>>,
    tables: Arc<AtomicU64>,
    refuse_connects: Arc<AtomicU64>,
}

impl FakeRoute {
    fn set(&self, message: MsiMessage) -> Result<(), PortError> {
        let (number, data) = (self.number, message.data);
        self.journal
            .note(format!("route {number} connect {data:#x}"));
        self.journal.step(format_args!("route connect"))?;
        let left = |left: u64| left.checked_sub(1);
        let refuse = &self.refuse_connects;
        if refuse
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left)
            .is_ok()
        {
            return Err("told to refuse".into());
        }
        let event = self.event.try_clone()?;
        lock(&self.connected).set(number, Some((event, message)));
        Ok(())
    }
}

impl InterruptRoute for FakeRoute {
    fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn connect(&mut self, message: MsiMessage) -> Result<(), PortError> {
        self.tables.fetch_add(1, Ordering::Relaxed);
        self.set(message)
    }

    fn disconnect(&mut self) -> Result<(), PortError> {
        self.journal
            .note(format!("route {} disconnect", self.number));
        self.journal.step(format_args!("route disconnect"))?;
        lock(&self.connected).set(self.number, None);
        Ok(())
    }

    fn is_pending(&self) -> bool {
        // Looks at the count and puts it back.
        let Ok(mut event) = self.event.try_clone() else {
            return false;
        };
        let count = drain(&mut event);
        count > 0 && event.write_all(&count.to_ne_bytes()).is_ok()
    }
}

impl Drop for FakeRoute {
    fn drop(&mut self) {
        self.journal.note(format!("route {} drop", self.number));
        lock(&self.connected).set(self.number, None);
    }
}

/// A guest's address space that takes notes.
#[derive(Debug, Default)]
pub struct FakeMapper {
    journal: Journal,
    refuse: Mutex<bool>,
    posted: Arc<Mutex<BTreeMap<u64, u64>>>,
}

impl FakeMapper {
    /// A mapper that writes into `journal`.
    pub fn new(journal: &Journal) -> Self {
        Self {
            journal: journal.clone(),
            refuse: Mutex::new(false),
            posted: Arc::default(),
        }
    }

    /// Where writes may come late: addresses and sizes. Not in the journal.
    pub fn posted(&self) -> Vec<(u64, u64)> {
        lock(&self.posted).clone().into_iter().collect()
    }

    /// Refuses every map from now on, or no longer.
    pub fn refuse(&self, refuse: bool) {
        *lock(&self.refuse) = refuse;
    }
}

impl MemoryMapper for FakeMapper {
    fn map(
        &self,
        address: u64,
        memory: Arc<dyn HostMemory>,
    ) -> Result<Box<dyn MemoryMapping>, PortError> {
        let size = memory.size();
        self.journal.step(format_args!("guest map"))?;
        self.journal
            .note(format!("guest map {address:#x} {size:#x}"));
        if *lock(&self.refuse) {
            return Err("the place is taken".into());
        }
        Ok(Box::new(FakeMapping {
            address,
            journal: self.journal.clone(),
            _memory: memory,
        }))
    }

    fn post_writes(&self, address: u64, size: u64) -> Option<Box<dyn MemoryMapping>> {
        let before = lock(&self.posted).insert(address, size);
        assert_eq!(before, None, "writes at {address:#x} are late already");
        Some(Box::new(FakePosting {
            address,
            posted: Arc::clone(&self.posted),
        }))
    }
}

#[derive(Debug)]
struct FakePosting {
    address: u64,
    posted: Arc<Mutex<BTreeMap<u64, u64>>>,
}

impl MemoryMapping for FakePosting {}

impl Drop for FakePosting {
    fn drop(&mut self) {
        lock(&self.posted).remove(&self.address);
    }
}

#[derive(Debug)]
struct FakeMapping {
    address: u64,
    journal: Journal,
    _memory: Arc<dyn HostMemory>,
}

impl MemoryMapping for FakeMapping {}

impl Drop for FakeMapping {
    fn drop(&mut self) {
        self.journal
            .note(format!("guest unmap {:#x}", self.address));
    }
}

/// An address space that takes notes: 39 bits wide, without the interrupt
/// window, as the usual VT-d is.
#[derive(Debug)]
pub struct FakeSpace {
    journal: Journal,
    limits: SpaceLimits,
    peers: Peers,
    maps: Mutex<BTreeMap<u64, Arc<dyn HostMemory>>>,
    errno: Mutex<Option<i32>>,
    refuse_unmap: Mutex<bool>,
}

impl FakeSpace {
    /// A space that writes into `journal`, with one device in it already, so
    /// that the next has a peer.
    pub fn new(journal: &Journal) -> Self {
        let space = Self::empty(journal);
        space.peers.add_device();
        space
    }

    /// A space that writes into `journal`, with no device in it.
    pub fn empty(journal: &Journal) -> Self {
        let ranges = [(0, 0xfedf_ffff), (0xfef0_0000, 0x7f_ffff_ffff)];
        Self {
            journal: journal.clone(),
            limits: SpaceLimits {
                ranges: ranges.map(|(start, last)| IovaRange { start, last }).into(),
                page_sizes: 0x4020_1000,
                max_maps: Some(65_535),
            },
            peers: Peers::default(),
            maps: Mutex::default(),
            errno: Mutex::new(None),
            refuse_unmap: Mutex::new(false),
        }
    }

    /// Refuses every map from now on with `errno`, or no longer.
    pub fn refuse(&self, errno: Option<i32>) {
        *lock(&self.errno) = errno;
    }

    /// Refuses to unmap from now on, or no longer.
    pub fn refuse_unmap(&self, refuse: bool) {
        *lock(&self.refuse_unmap) = refuse;
    }

    /// What is mapped, by first address, and how many bytes.
    pub fn mapped(&self) -> Vec<(u64, u64)> {
        let maps = lock(&self.maps);
        let range = |(iova, memory): (&u64, &Arc<dyn HostMemory>)| (*iova, memory.size() as u64);
        maps.iter().map(range).collect()
    }
}

impl AddressSpace for FakeSpace {
    fn limits(&self) -> &SpaceLimits {
        &self.limits
    }

    fn map(&self, iova: u64, memory: Arc<dyn HostMemory>) -> Result<(), MapError> {
        let size = memory.size() as u64;
        self.journal.note(format!("dma map {iova:#x} {size:#x}"));
        let told = match *lock(&self.errno) {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => self.journal.step(format_args!("dma map")),
        };
        told.map_err(|source| MapError {
            action: "map",
            iova,
            size,
            reason: "told to refuse".to_owned(),
            source,
        })?;
        lock(&self.maps).insert(iova, memory);
        Ok(())
    }

    fn unmap(&self, iova: u64) -> Result<(), MapError> {
        self.journal.note(format!("dma unmap {iova:#x}"));
        let refused = |reason: &str, errno| MapError {
            action: "unmap",
            iova,
            size: 0,
            reason: reason.to_owned(),
            source: io::Error::from_raw_os_error(errno),
        };
        let fails = self.journal.step(format_args!("dma unmap")).is_err();
        if fails || *lock(&self.refuse_unmap) {
            return Err(refused("told to refuse", libc::EIO));
        }
        match lock(&self.maps).remove(&iova) {
            Some(_) => Ok(()),
            None => Err(refused("nothing is mapped there", libc::ENOENT)),
        }
    }

    fn unmap_all(&self) -> Result<(), MapError> {
        self.peers.withdraw(|| {
            self.journal.note("dma unmap all".to_owned());
            lock(&self.maps).clear();
            Ok(())
        })
    }

    fn peers(&self) -> &Peers {
        &self.peers
    }
}
