//! What threads cost while there is nothing to do, and while there are more of them than cores. A process of its own:
//! other tests would be counted.

use std::fs;
use std::thread::{self, available_parallelism};
use std::time::{Duration, Instant};

use ocelli_backend::{Backend, Epilogue};
use ocelli_backend_cpu::{CpuBackend, CpuOptions};
use ocelli_formats::TensorData;

#[test]
fn threads_idle_without_cost_and_share_cores_with_others() {
    let cores = available_parallelism().unwrap().get();
    let alone = time(|| work(cores, 40));
    // Twice as many threads as cores, in two pools at once: the same work again, so about twice the time. Far more
    // would mean that threads which wait keep those from running that they wait for.
    let together = time(|| {
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| work(cores + 1, 40));
            }
        });
    });
    assert!(together < 20 * alone + Duration::from_secs(2), "{together:?} instead of twice {alone:?}");

    let backend = backend(4);
    let guard = backend.begin_step();
    products(&backend, 3);
    drop(guard);
    thread::sleep(Duration::from_millis(50));
    let Some(before) = processor_time() else { return println!("SKIP: the system does not tell processor time") };
    thread::sleep(Duration::from_millis(400));
    let used = processor_time().unwrap() - before;
    assert!(used <= Duration::from_millis(20), "{used:?} of processor time while idle");
}

fn work(threads: usize, times: usize) {
    let backend = backend(threads);
    let _step = backend.begin_step();
    products(&backend, times);
}

fn backend(threads: usize) -> CpuBackend {
    CpuBackend::new(CpuOptions { threads: Some(threads), ..CpuOptions::default() }).expect("a backend")
}

/// Products one after another, each of them shared by all threads.
fn products(backend: &CpuBackend, times: usize) {
    let weight = TensorData::from_f32(vec![400, 300], &vec![0.5; 400 * 300]).expect("as many as needed");
    let weight = backend.weight(weight.into()).expect("a float matrix");
    let x = backend.upload(&[1.0; 300]);
    for _ in 0..times {
        let product = backend.download(&backend.linear(&x, 1, &weight, Epilogue::none()));
        assert!(product.iter().all(|&value| value == 150.0));
    }
}

fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Processor time of this process so far, in steps of 10 ms.
fn processor_time() -> Option<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_millis(10 * ticks))
}
