//! A pool of threads that share the caller's work, and come back before the caller goes on.
//!
//! # Work
//! The items of a region are cut into one run per thread. Every thread takes its own run item by item (neighbouring
//! items lie side by side in memory, so each thread reads one stream), then helps the others with theirs: a thread that
//! the system holds up leaves its share to the rest. The caller works too, so work gets done even if every other
//! thread is late, and a thread that comes when nothing is left does nothing.
//!
//! # Waiting
//! A worker without work first spins, then spins and yields, then sleeps. It sleeps [`SPIN`] after its last job, or,
//! while an [`Awake`] guard lives (a forward pass, whose operations follow each other within microseconds), after
//! [`SPIN_AWAKE`]. From [`YIELD`] on it yields between looks: on a machine with more threads than cores, the one that it
//! waits for may need its core. An idle pool takes no processor time.
//!
//! # Why the unsafe code is sound
//! A job is a closure on the caller's stack; the pool keeps a pointer to it whose lifetime the compiler cannot see.
//! Everything is decided by one atomic number, [`Shared::gate`]: how many regions were opened so far, whether one is
//! open now, and how many workers are inside. A worker enters by adding one to the count inside, and what it gets back
//! tells it, in the same step, whether the region was open; only then does it read the pointer, and it leaves by
//! subtracting one. [`Region::drop`], which runs also when the caller's part panics, first closes the gate, so that
//! nobody who enters from then on reads the pointer, and returns only when the count inside has been zero, so that those
//! who entered before have left. Hence the closure outlives its use, and the pointer is written (by the one caller that
//! holds [`ThreadPool::owner`]) only while nobody reads it. Closing and opening are release operations, entering is an
//! acquire operation, leaving a release that the caller acquires: what one side wrote, the other sees.
//!
//! Items are handed out by counters that only grow ([`Claims`]), so each is taken once: [`Items::take`].

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{Builder, JoinHandle, yield_now};
use std::time::{Duration, Instant};

/// Threads that wait for work; they end when the pool is dropped.
pub(crate) struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the caller whose work it is; anybody else computes alone meanwhile.
    owner: Mutex<()>,
}

/// Keeps the pool's threads awake while it lives.
pub struct Awake(Arc<Shared>);

struct Shared {
    /// Workers inside (in units of [`ONE_INSIDE`]), whether a region is [`OPEN`], regions so far ([`ONE_REGION`]).
    gate: AtomicU64,
    job: JobPointer,
    claims: Claims,
    /// [`Awake`] guards that live.
    awake: AtomicUsize,
    /// Workers that sleep or are about to; counted under the lock.
    sleepers: AtomicUsize,
    /// Whether the caller sleeps until the last worker has left.
    caller_sleeps: AtomicBool,
    lock: Mutex<()>,
    /// Signals work (or the end) to sleeping workers.
    work: Condvar,
    /// Signals to a sleeping caller that the last worker has left.
    left: Condvar,
    has_panicked: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    is_over: AtomicBool,
}

/// What is done in a region, given the number of the thread that does it.
type Job<'a> = dyn Fn(usize) + Sync + 'a;

struct JobPointer(UnsafeCell<Option<*const Job<'static>>>);

// SAFETY: the closure is `Sync`; who may read or write the cell when is decided by the gate (see above).
unsafe impl Sync for JobPointer {}

// SAFETY: a pointer to a `Sync` closure may go to another thread.
unsafe impl Send for JobPointer {}

const ONE_INSIDE: u64 = 1;
const INSIDE: u64 = OPEN - 1;
/// More workers than that there are not: see `MAX_THREADS`.
const OPEN: u64 = 1 << 16;
const ONE_REGION: u64 = OPEN << 1;

impl ThreadPool {
    /// A pool of `threads`, the caller's thread included.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            job: JobPointer(UnsafeCell::new(None)),
            claims: Claims::new(threads),
            awake: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            caller_sleeps: AtomicBool::new(false),
            lock: Mutex::default(),
            work: Condvar::new(),
            left: Condvar::new(),
            has_panicked: AtomicBool::new(false),
            panic: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let mut pool = Self { shared, workers: Vec::new(), owner: Mutex::new(()) };
        for number in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let builder = Builder::new().name(format!("ocelli-cpu-{number}"));
            pool.workers.push(builder.spawn(move || shared.serve(number))?);
        }
        Ok(pool)
    }

    /// Number of threads, the caller's included.
    pub(crate) fn len(&self) -> usize {
        self.workers.len() + 1
    }

    /// Wakes the workers up and keeps them awake until the guard is dropped.
    pub(crate) fn keep_awake(&self) -> Awake {
        if !self.workers.is_empty() {
            self.shared.awake.fetch_add(1, Ordering::SeqCst);
            self.shared.wake_sleepers();
        }
        Awake(Arc::clone(&self.shared))
    }

    /// Calls `compute` for every item, on all threads; returns when all calls have returned.
    ///
    /// # Panics
    /// If a call panics, with its payload.
    pub(crate) fn for_each<I>(&self, items: I, compute: impl Fn(I::Item) + Sync)
    where
        I: IntoIterator,
        I::Item: Send,
    {
        if self.workers.is_empty() {
            return items.into_iter().for_each(compute);
        }
        let _owner = match self.owner.try_lock() {
            Ok(owner) => owner,
            Err(TryLockError::Poisoned(owner)) => owner.into_inner(),
            Err(TryLockError::WouldBlock) => return items.into_iter().for_each(compute),
        };
        let items = Items::new(items);
        let claims = &self.shared.claims;
        claims.reset();
        self.run(&|thread| {
            claims.each(thread, items.len(), |at| {
                // SAFETY: claims give every number below the number of items out once.
                let item = unsafe { items.take(at) };
                compute(item.expect("an item is taken once"));
            });
        });
    }

    /// Runs `job` on this thread and, as they come, on others; the caller holds [`Self::owner`].
    fn run(&self, job: &Job<'_>) {
        let region = Region::open(&self.shared, job);
        job(0);
        drop(region);
        if self.shared.has_panicked.load(Ordering::Relaxed) {
            let payload = lock(&self.shared.panic).take();
            self.shared.has_panicked.store(false, Ordering::Relaxed);
            if let Some(payload) = payload {
                resume_unwind(payload);
            }
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        self.shared.gate.fetch_add(ONE_REGION, Ordering::SeqCst);
        self.shared.wake_sleepers();
        for worker in self.workers.drain(..) {
            // A worker's panics are caught; there is nothing to report while dropping.
            let _ = worker.join();
        }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        // A pool without workers did not count.
        if self.0.claims.runs.len() > 1 {
            self.0.awake.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// The time during which workers can reach a job.
struct Region<'a> {
    shared: &'a Shared,
}

impl<'a> Region<'a> {
    fn open(shared: &'a Shared, job: &Job<'_>) -> Self {
        let job: *const Job<'_> = job;
        // SAFETY: only the lifetime changes; `Region::drop` ends all use of the pointer while the closure lives.
        let job = unsafe { std::mem::transmute::<*const Job<'_>, *const Job<'static>>(job) };
        // SAFETY: the gate is closed and nobody who was let in is inside, so nobody reads the cell; nobody else
        // writes it, because the caller owns the pool.
        unsafe { *shared.job.0.get() = Some(job) };
        // If the caller's own part panicked last time, nobody has taken the others' panics.
        if shared.has_panicked.swap(false, Ordering::Relaxed) {
            lock(&shared.panic).take();
        }
        shared.gate.fetch_add(ONE_REGION | OPEN, Ordering::SeqCst);
        shared.wake_sleepers();
        Self { shared }
    }
}

impl Drop for Region<'_> {
    fn drop(&mut self) {
        let shared = self.shared;
        let is_empty = || shared.gate.load(Ordering::Acquire) & INSIDE == 0;
        if shared.gate.fetch_and(!OPEN, Ordering::AcqRel) & INSIDE == 0 || spin_until(is_empty, || SPIN) {
            return;
        }
        let mut guard = lock(&shared.lock);
        shared.caller_sleeps.store(true, Ordering::SeqCst);
        while shared.gate.load(Ordering::SeqCst) & INSIDE != 0 {
            guard = shared.left.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        shared.caller_sleeps.store(false, Ordering::SeqCst);
    }
}

impl Shared {
    /// The life of worker `number`.
    fn serve(&self, number: usize) {
        let mut seen = 0;
        loop {
            self.wait_for_region(seen);
            if self.is_over.load(Ordering::Acquire) {
                return;
            }
            let gate = self.gate.fetch_add(ONE_INSIDE, Ordering::AcqRel);
            seen = regions(gate);
            if gate & OPEN != 0 {
                self.work(number);
            }
            if self.gate.fetch_sub(ONE_INSIDE, Ordering::SeqCst) & INSIDE == ONE_INSIDE
                && self.caller_sleeps.load(Ordering::SeqCst)
            {
                drop(lock(&self.lock));
                self.left.notify_one();
            }
        }
    }

    /// Does this worker's part of the job; it has been let in.
    fn work(&self, number: usize) {
        // SAFETY: this worker is inside and saw the gate open, so nobody writes the cell, the last write was before the
        // gate was opened, and `Region::drop` waits while this worker uses the closure.
        let result = catch_unwind(AssertUnwindSafe(|| unsafe {
            if let Some(job) = *self.job.0.get() {
                (*job)(number);
            }
        }));
        if let Err(payload) = result {
            lock(&self.panic).get_or_insert(payload);
            self.has_panicked.store(true, Ordering::Relaxed);
        }
    }

    /// Returns when there was a region that this worker has not seen.
    fn wait_for_region(&self, seen: u64) {
        let is_new = || regions(self.gate.load(Ordering::Acquire)) != seen;
        let patience = || if self.awake.load(Ordering::Relaxed) > 0 { SPIN_AWAKE } else { SPIN };
        while !spin_until(is_new, patience) {
            let guard = lock(&self.lock);
            // Either the caller sees a sleeper, or the sleeper sees the region.
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            if regions(self.gate.load(Ordering::SeqCst)) == seen {
                drop(self.work.wait(guard).unwrap_or_else(PoisonError::into_inner));
            }
        }
    }

    fn wake_sleepers(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let guard = lock(&self.lock);
            // They count themselves again before they sleep again.
            self.sleepers.store(0, Ordering::SeqCst);
            drop(guard);
            self.work.notify_all();
        }
    }
}

fn regions(gate: u64) -> u64 {
    gate / ONE_REGION
}

/// Gives the numbers below some number out, each once: to every thread those of its own run, then those of others.
struct Claims {
    /// How many of its run each thread, and those that helped it, have taken or tried to.
    runs: Vec<Padded>,
}

/// A counter that shares no cache line (nor the neighbour that is fetched with it) with others.
#[repr(align(128))]
struct Padded(AtomicUsize);

impl Claims {
    fn new(threads: usize) -> Self {
        Self { runs: (0..threads).map(|_| Padded(AtomicUsize::new(0))).collect() }
    }

    /// Begins anew; nobody claims meanwhile.
    fn reset(&self) {
        for run in &self.runs {
            run.0.store(0, Ordering::Relaxed);
        }
    }

    /// Calls `compute` for the numbers below `count` that `thread` gets.
    fn each(&self, thread: usize, count: usize, mut compute: impl FnMut(usize)) {
        let threads = self.runs.len();
        for run in (thread..threads).chain(0..thread) {
            let (start, end) = (run * count / threads, (run + 1) * count / threads);
            let taken = &self.runs[run].0;
            // Looking first keeps the lines of exhausted runs shared.
            while taken.load(Ordering::Relaxed) < end - start {
                let at = start + taken.fetch_add(1, Ordering::Relaxed);
                if at >= end {
                    break;
                }
                compute(at);
            }
        }
    }
}

/// Items that threads take by number.
struct Items<T>(Vec<UnsafeCell<Option<T>>>);

// SAFETY: items are only ever moved out, each by one thread (the contract of `take`), like sending them.
unsafe impl<T: Send> Sync for Items<T> {}

impl<T> Items<T> {
    fn new(items: impl IntoIterator<Item = T>) -> Self {
        Self(items.into_iter().map(|item| UnsafeCell::new(Some(item))).collect())
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    /// Moves an item out.
    ///
    /// # Safety
    /// Nobody else takes the same item, now or earlier or later, while others may.
    unsafe fn take(&self, at: usize) -> Option<T> {
        // SAFETY: by contract nobody else touches this cell.
        unsafe { (*self.0[at].get()).take() }
    }
}

/// How long a thread waits without sleeping when it does not know that something will come.
const SPIN: Duration = if cfg!(miri) { Duration::ZERO } else { Duration::from_micros(50) };

/// How long a worker waits without sleeping during a forward pass: longer than any operation that one thread computes.
const SPIN_AWAKE: Duration = if cfg!(miri) { Duration::ZERO } else { Duration::from_millis(5) };

/// How long a thread waits before it offers its core to others between two looks.
const YIELD: Duration = Duration::from_micros(30);

/// Waits until `is_so` (and returns true), or for as long as `patience` says.
fn spin_until(is_so: impl Fn() -> bool, patience: impl Fn() -> Duration) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..LOOKS {
            if is_so() {
                return true;
            }
            hint::spin_loop();
        }
        let waited = start.elapsed();
        if waited >= patience() {
            return false;
        }
        if waited >= YIELD {
            yield_now();
        }
    }
}

/// Looks between two questions for the time.
const LOOKS: usize = 32;

/// Nothing here is left half done by a panic, so a poisoned lock is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const ROUNDS: usize = if cfg!(miri) { 3 } else { 300 };

    #[test]
    fn every_item_is_computed_once() {
        for threads in [1, 2, 3, 8] {
            let pool = ThreadPool::new(threads).unwrap();
            for round in 0..ROUNDS {
                let mut values = vec![0usize; round % 40];
                pool.for_each(values.iter_mut().enumerate(), |(at, value)| *value += at + 1);
                assert!(values.iter().enumerate().all(|(at, &value)| value == at + 1), "{values:?}");
            }
        }
    }

    #[test]
    fn sleeping_workers_wake_up() {
        let pool = ThreadPool::new(2).unwrap();
        for _ in 0..3 {
            thread::sleep(Duration::from_millis(2));
            let (mine, theirs) = (thread::current().id(), AtomicBool::new(false));
            // The first item ends only when the second has been taken by the other thread.
            let deadline = Instant::now() + Duration::from_secs(20);
            pool.for_each(0..2, |_| {
                if thread::current().id() != mine {
                    theirs.store(true, Ordering::Release);
                }
                while !theirs.load(Ordering::Acquire) && Instant::now() < deadline {
                    thread::yield_now();
                }
            });
            assert!(theirs.load(Ordering::Acquire));
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_pool_usable() {
        let pool = ThreadPool::new(3).unwrap();
        for unlucky in 0..ROUNDS.min(30) {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.for_each(0..30, |item| assert!(item != unlucky, "item {item}"));
            }));
            let payload = result.unwrap_err();
            assert_eq!(payload.downcast_ref::<String>().unwrap(), &format!("item {unlucky}"));
            let sum = AtomicUsize::new(0);
            pool.for_each(0..10, |item| _ = sum.fetch_add(item, Ordering::Relaxed));
            assert_eq!(sum.into_inner(), 45);
        }
    }

    #[test]
    fn panics_of_all_threads_at_once_do_not_reach_the_next_caller() {
        let pool = ThreadPool::new(4).unwrap();
        for _ in 0..ROUNDS.min(30) {
            let all = || pool.for_each(0..40, |item| panic!("item {item}"));
            assert!(catch_unwind(AssertUnwindSafe(all)).is_err());
            pool.for_each(0..40, |_| {});
        }
    }

    #[test]
    fn items_that_a_panic_left_are_dropped_once() {
        struct Counted<'a>(&'a AtomicUsize);
        impl Drop for Counted<'_> {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let pool = ThreadPool::new(3).unwrap();
        for count in [0, 1, 2, 3, 10] {
            let dropped = AtomicUsize::new(0);
            let items = (0..count).map(|_| Counted(&dropped));
            let unlucky = || pool.for_each(items, |_item| panic!("unlucky"));
            assert_eq!(catch_unwind(AssertUnwindSafe(unlucky)).is_err(), count > 0);
            assert_eq!(dropped.into_inner(), count);
        }
    }

    #[test]
    fn claims_cover_every_number_once() {
        for (threads, count) in [(1, 3), (2, 0), (2, 1), (3, 7), (4, 3), (7, 64)] {
            let claims = Claims::new(threads);
            let taken: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            thread::scope(|scope| {
                for thread in 0..threads {
                    let each = |at: usize| _ = taken[at].fetch_add(1, Ordering::Relaxed);
                    let claims = &claims;
                    scope.spawn(move || claims.each(thread, count, each));
                }
            });
            assert!(taken.into_iter().all(|taken| taken.into_inner() == 1), "{threads} threads, {count} numbers");
        }
        let (claims, mut order) = (Claims::new(3), Vec::new());
        claims.each(1, 9, |at| order.push(at));
        assert_eq!(order, [3, 4, 5, 6, 7, 8, 0, 1, 2]);
    }

    #[test]
    fn guards_keep_the_pool_awake_and_let_it_sleep() {
        let pool = ThreadPool::new(2).unwrap();
        let guards = [pool.keep_awake(), pool.keep_awake()];
        let sum = AtomicUsize::new(0);
        pool.for_each(0..10, |item| _ = sum.fetch_add(item, Ordering::Relaxed));
        assert_eq!(pool.shared.awake.load(Ordering::Relaxed), 2);
        drop(guards);
        assert_eq!((sum.into_inner(), pool.shared.awake.load(Ordering::Relaxed)), (45, 0));
        let asleep = || pool.shared.sleepers.load(Ordering::Relaxed) == 1;
        let deadline = Instant::now() + Duration::from_secs(20);
        while !asleep() && Instant::now() < deadline {
            thread::yield_now();
        }
        assert!(asleep());
        // A guard may outlive the pool.
        let guard = pool.keep_awake();
        drop(pool);
        drop(guard);
    }

    #[test]
    fn two_callers_and_nested_work_do_not_wait_for_each_other() {
        let pool = ThreadPool::new(2).unwrap();
        let total = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        pool.for_each(0..4, |_| {
                            pool.for_each(0..2, |_| _ = total.fetch_add(1, Ordering::Relaxed));
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 3 * ROUNDS * 8);
    }
}
