//! A pool of threads that share the caller's work, and come back before the caller goes on.
//!
//! Work is an iterator behind a lock: whoever is free takes the next item. The caller takes items too, so work gets
//! done even if every other thread is late, and a thread that comes when nothing is left does nothing. Workers spin
//! for [`SPIN`] after their last job (operations of a forward pass follow each other within microseconds), then sleep.
//!
//! # Why the unsafe code is sound
//! A job is a closure on the caller's stack; the pool keeps a pointer to it whose lifetime the compiler cannot see.
//! The pointer is reachable only while `State::job` is set. [`Region::drop`], which runs also when the caller's part
//! panics, takes it away and returns only when no worker is active, and a worker becomes active and reads the
//! pointer under the same lock. So no worker holds the pointer after [`ThreadPool::run`] has returned.

use std::any::Any;
use std::hint;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// Threads that wait for work; they end when the pool is dropped.
pub(crate) struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the caller whose work it is; anybody else computes alone meanwhile.
    owner: Mutex<()>,
}

struct Shared {
    state: Mutex<State>,
    /// Signals a new job (or the end) to sleeping workers.
    work: Condvar,
    /// Signals the last active worker's end to a sleeping caller.
    done: Condvar,
    /// Counts jobs; what spinning workers watch.
    jobs: AtomicUsize,
    /// Workers inside the job; what a spinning caller watches. Changes only under the lock.
    active: AtomicUsize,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    /// Workers that may still join.
    seats: usize,
    sleeping: usize,
    panic: Option<Box<dyn Any + Send>>,
    is_over: bool,
}

#[derive(Clone, Copy)]
struct Job(*const (dyn Fn() + Sync));

// SAFETY: the closure is `Sync`, so a pointer to it may be used by other threads.
unsafe impl Send for Job {}

impl ThreadPool {
    /// A pool of `threads`, the caller's thread included.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
            jobs: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
        });
        let mut pool = Self { shared, workers: Vec::new(), owner: Mutex::new(()) };
        for number in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let builder = Builder::new().name(format!("ocelli-cpu-{number}"));
            pool.workers.push(builder.spawn(move || shared.serve())?);
        }
        Ok(pool)
    }

    /// Number of threads, the caller's included.
    pub(crate) fn len(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `compute` for every item, on all threads; returns when all calls have returned.
    ///
    /// # Panics
    /// If a call panics, with its payload.
    pub(crate) fn for_each<I>(&self, work: I, compute: impl Fn(I::Item) + Sync)
    where
        I: Iterator + Send,
        I::Item: Send,
    {
        if self.workers.is_empty() {
            return work.for_each(compute);
        }
        let work = Mutex::new(work);
        self.run(&|| {
            loop {
                // A statement of its own: the lock must not be held while computing.
                let item = lock(&work).next();
                let Some(item) = item else { return };
                compute(item);
            }
        });
    }

    /// Runs `job` on this thread and, as they come, on others.
    fn run(&self, job: &(dyn Fn() + Sync)) {
        let _owner = match self.owner.try_lock() {
            Ok(owner) => owner,
            Err(TryLockError::Poisoned(owner)) => owner.into_inner(),
            Err(TryLockError::WouldBlock) => return job(),
        };
        let region = Region::open(&self.shared, job, self.workers.len());
        job();
        drop(region);
        let panic = lock(&self.shared.state).panic.take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        lock(&self.shared.state).is_over = true;
        self.shared.jobs.fetch_add(1, Ordering::Release);
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            // A worker's panics are caught; there is nothing to report while dropping.
            let _ = worker.join();
        }
    }
}

/// The time during which workers can reach a job.
struct Region<'a> {
    shared: &'a Shared,
}

impl<'a> Region<'a> {
    fn open(shared: &'a Shared, job: &(dyn Fn() + Sync), seats: usize) -> Self {
        let job: *const (dyn Fn() + Sync + '_) = job;
        // SAFETY: only the lifetime changes; `Region::drop` ends all use of the pointer while the closure lives.
        let job = unsafe { std::mem::transmute::<*const (dyn Fn() + Sync + '_), *const (dyn Fn() + Sync)>(job) };
        let mut state = lock(&shared.state);
        state.job = Some(Job(job));
        state.seats = seats;
        // If the caller's own part panicked last time, nobody has taken the others' panics.
        state.panic = None;
        shared.jobs.fetch_add(1, Ordering::Release);
        let anybody_sleeps = state.sleeping > 0;
        drop(state);
        if anybody_sleeps {
            shared.work.notify_all();
        }
        Self { shared }
    }
}

impl Drop for Region<'_> {
    fn drop(&mut self) {
        lock(&self.shared.state).job = None;
        spin_until(|| self.shared.active.load(Ordering::Acquire) == 0);
        let mut state = lock(&self.shared.state);
        while self.shared.active.load(Ordering::Acquire) > 0 {
            state = self.shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    /// A worker's life.
    fn serve(&self) {
        let mut seen = 0;
        loop {
            spin_until(|| self.jobs.load(Ordering::Acquire) != seen);
            let mut state = lock(&self.state);
            while self.jobs.load(Ordering::Acquire) == seen {
                state.sleeping += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.sleeping -= 1;
            }
            seen = self.jobs.load(Ordering::Acquire);
            if state.is_over {
                return;
            }
            let Some(job) = state.join(&self.active) else { continue };
            drop(state);
            // SAFETY: this worker is active, so `Region::drop` waits for it and the closure lives.
            let result = catch_unwind(AssertUnwindSafe(|| unsafe { (*job.0)() }));
            let mut state = lock(&self.state);
            if let Err(payload) = result {
                state.panic.get_or_insert(payload);
            }
            if self.active.fetch_sub(1, Ordering::Release) == 1 {
                self.done.notify_one();
            }
        }
    }
}

impl State {
    /// Makes a worker active if there is a job and room for it.
    fn join(&mut self, active: &AtomicUsize) -> Option<Job> {
        let job = self.job.filter(|_| self.seats > 0)?;
        self.seats -= 1;
        active.fetch_add(1, Ordering::Release);
        Some(job)
    }
}

/// How long a thread waits without sleeping.
const SPIN: Duration = if cfg!(miri) { Duration::ZERO } else { Duration::from_micros(50) };

fn spin_until(is_so: impl Fn() -> bool) {
    let start = Instant::now();
    loop {
        for _ in 0..32 {
            if is_so() {
                return;
            }
            hint::spin_loop();
        }
        if start.elapsed() >= SPIN {
            return;
        }
    }
}

/// Nothing here is left half done by a panic, so a poisoned lock is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
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
