//! What the machine could do: the limits that measured speeds are compared with.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ocelli_backend::Backend;

use crate::CpuBackend;

/// Bytes per second that the backend's threads read from memory together, out of a buffer of 512 MiB that no cache
/// holds: the limit of decoding, which reads every weight once per token.
pub fn read_bandwidth(backend: &CpuBackend) -> f64 {
    let words = vec![1u64; BUFFER_BYTES / size_of::<u64>()];
    let part = PART_BYTES / size_of::<u64>();
    let read = |part: &[u64]| _ = black_box(part.iter().fold(0, |sum, word| sum ^ word));
    BUFFER_BYTES as f64 / best(|| backend.shared.threads.for_each(words.chunks(part), read))
}

/// Float32 operations per second of the backend's threads together when they do nothing but multiply and add in the
/// backend's instruction set: the limit of vision and prefill with float32 weights.
pub fn multiply_add_peak(backend: &CpuBackend) -> f64 {
    let (_, f32) = peaks(backend).next().expect("every instruction set multiplies float32");
    f32
}

/// Operations per second of the backend's threads together for every kind of arithmetic that the backend's instruction
/// set has, `f32` first, then `bf16` and `int8` where there are such instructions: the limits of vision and prefill.
pub fn peaks(backend: &CpuBackend) -> impl Iterator<Item = (&'static str, f64)> {
    // Many small parts: a thread that is held up leaves its share to the others.
    let parts = 16 * backend.threads();
    backend.shared.kernels.peaks().map(move |peak| {
        let operations = parts * peak.run(ROUNDS);
        let seconds = best(|| backend.shared.threads.for_each(0..parts, |_| _ = peak.run(ROUNDS)));
        (peak.name(), operations as f64 / seconds)
    })
}

/// Seconds that an operation spends on bringing all threads to work and back when they are awake: the price of one
/// parallel region, of which a decode step has a hundred or two.
pub fn region_overhead(backend: &CpuBackend) -> f64 {
    let _awake = backend.begin_step();
    let threads = &backend.shared.threads;
    let region = || {
        let (start, arrived) = (Instant::now(), AtomicUsize::new(0));
        threads.for_each(0..threads.len(), |_| {
            arrived.fetch_add(1, Ordering::Relaxed);
            // Only a thread that waits leaves a part for every other one.
            while arrived.load(Ordering::Relaxed) < threads.len() && start.elapsed() < LATE {
                std::hint::spin_loop();
            }
        });
    };
    best(|| (0..REGIONS).for_each(|_| region())) / REGIONS as f64
}

/// Seconds of a good call: of all calls within 400 ms, a tenth was faster. On a busy machine that is what comes closest
/// to the code's own time.
pub fn best(mut call: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut times = Vec::new();
    while begin.elapsed() < BUDGET || times.len() < 5 {
        let start = Instant::now();
        call();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 10]
}

const REGIONS: usize = 20;
const LATE: Duration = Duration::from_millis(1);
const BUDGET: Duration = Duration::from_millis(400);
const BUFFER_BYTES: usize = 512 << 20;
const PART_BYTES: usize = 4 << 20;
/// Some tens of microseconds of work.
const ROUNDS: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuOptions;

    #[test]
    fn limits_are_plausible() {
        let backend = CpuBackend::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap();
        assert!((0.0..1e-2).contains(&region_overhead(&backend)));
        for limit in [read_bandwidth(&backend), multiply_add_peak(&backend)] {
            assert!((1e7..1e16).contains(&limit), "{limit}");
        }
    }
}
