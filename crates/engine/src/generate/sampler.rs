//! Chooses the next token of one sequence: the likeliest, or by chance among the likelier ones.
//!
//! Filters apply in the order of transformers: temperature, `top_k`, `top_p`, `min_p`. The vocabulary is never sorted
//! as a whole: with `top_k` only its survivors are, with `top_p` as many of the largest as it takes.

use crate::generate::logits::{Scored, argmax, exponential, largest, sum_of_exponentials};
use crate::generate::random::Random;
use crate::options::GenerateOptions;

/// How a request chooses tokens.
#[derive(Clone, Debug)]
pub(crate) struct Sampler {
    sampling: Option<Sampling>,
}

#[derive(Clone, Debug)]
struct Sampling {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    random: Random,
}

/// A token that may be drawn, with its share: the likeliest token weighs 1.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    id: u32,
    weight: f32,
}

impl Sampler {
    /// `seed` is only used when sampling.
    pub(crate) fn new(options: &GenerateOptions, seed: u64) -> Self {
        let sampling = options.is_sampling().then(|| Sampling {
            temperature: options.temperature.unwrap_or(1.0),
            top_k: options.top_k.unwrap_or(0),
            top_p: options.top_p.unwrap_or(1.0),
            min_p: options.min_p.unwrap_or(0.0),
            random: Random::new(seed),
        });
        Self { sampling }
    }

    /// The next token; `None` when the logits are not numbers.
    pub(crate) fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        let best = argmax(logits)?;
        let Some(sampling) = &mut self.sampling else { return u32::try_from(best).ok() };
        let candidates = sampling.candidates(logits, logits[best]);
        Some(draw(&candidates, sampling.random.unit()))
    }
}

impl Sampling {
    /// The tokens that may be drawn, and their shares (not normalised).
    fn candidates(&self, logits: &[f32], max: f32) -> Vec<Candidate> {
        let mut candidates = if self.top_k > 0 && self.top_k < logits.len() {
            let mut kept = self.weigh(&largest(logits, self.top_k), max);
            let total = kept.iter().map(|candidate| f64::from(candidate.weight)).sum();
            kept.truncate(nucleus(&kept, total, self.top_p));
            kept
        } else if self.top_p < 1.0 {
            self.nucleus_of_all(logits, max)
        } else {
            self.all(logits, max)
        };
        candidates.retain(|candidate| candidate.weight >= self.min_p && candidate.weight > 0.0);
        candidates
    }

    fn all(&self, logits: &[f32], max: f32) -> Vec<Candidate> {
        let scale = self.temperature.recip();
        let candidate = |(id, value): (u32, &f32)| Candidate { id, weight: exponential((value - max) * scale) };
        (0..).zip(logits).map(candidate).collect()
    }

    /// Looks at ever more of the largest values until they hold `top_p` of everything.
    fn nucleus_of_all(&self, logits: &[f32], max: f32) -> Vec<Candidate> {
        let total = sum_of_exponentials(logits, max, self.temperature);
        let mut count = 64;
        loop {
            let mut kept = self.weigh(&largest(logits, count), max);
            let size = nucleus(&kept, total, self.top_p);
            if size < kept.len() || count >= logits.len() {
                kept.truncate(size);
                return kept;
            }
            count *= 8;
        }
    }

    fn weigh(&self, scored: &[Scored], max: f32) -> Vec<Candidate> {
        let scale = self.temperature.recip();
        let weight = |value: f32| exponential((value - max) * scale);
        let id = |idx: usize| u32::try_from(idx).expect("a vocabulary is smaller than 2^32");
        scored.iter().map(|scored| Candidate { id: id(scored.idx), weight: weight(scored.value) }).collect()
    }
}

/// How many of the candidates (largest first) it takes to hold `top_p` of `total`.
fn nucleus(candidates: &[Candidate], total: f64, top_p: f32) -> usize {
    let mut before = 0.0;
    for (idx, candidate) in candidates.iter().enumerate() {
        if idx > 0 && before >= f64::from(top_p) * total {
            return idx;
        }
        before += f64::from(candidate.weight);
    }
    candidates.len()
}

/// The candidate at `unit` (in [0, 1)) of the way through all shares.
fn draw(candidates: &[Candidate], unit: f64) -> u32 {
    let total: f64 = candidates.iter().map(|candidate| f64::from(candidate.weight)).sum();
    let mut rest = unit * total;
    for candidate in candidates {
        rest -= f64::from(candidate.weight);
        if rest < 0.0 {
            return candidate.id;
        }
    }
    // Rounding can leave a sliver: it belongs to the last one. The likeliest token is always a candidate.
    candidates.last().expect("the likeliest token is a candidate").id
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sampling(temperature: f32, top_k: usize, top_p: f32, min_p: f32) -> Sampling {
        Sampling { temperature, top_k, top_p, min_p, random: Random::new(1) }
    }

    fn ids(sampling: &Sampling, logits: &[f32]) -> Vec<usize> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut ids: Vec<usize> =
            sampling.candidates(logits, max).iter().map(|candidate| candidate.id as usize).collect();
        ids.sort_unstable();
        ids
    }

    proptest! {
        #[test]
        fn top_p_keeps_the_smallest_sufficient_set(
            logits in prop::collection::vec(-8.0f32..8.0, 1..400),
            top_p in 0.01f32..0.999,
            temperature in 0.2f32..3.0,
        ) {
            let kept = ids(&sampling(temperature, 0, top_p, 0.0), &logits);
            let weight = |idx: usize| f64::from(logits[idx] / temperature).exp();
            let total: f64 = (0..logits.len()).map(weight).sum();
            let mass: f64 = kept.iter().map(|&idx| weight(idx)).sum();
            prop_assert!(mass >= f64::from(top_p) * total * (1.0 - 1e-5));
            let smallest = kept.iter().map(|&idx| weight(idx)).fold(f64::INFINITY, f64::min);
            prop_assert!(kept.len() == 1 || mass - smallest < f64::from(top_p) * total * (1.0 + 1e-5));
            let largest_out = (0..logits.len()).filter(|idx| !kept.contains(idx)).map(weight).fold(0.0, f64::max);
            prop_assert!(largest_out <= smallest);
        }

        #[test]
        fn top_k_and_min_p_keep_what_they_say(
            logits in prop::collection::vec(-8.0f32..8.0, 1..200),
            top_k in 1usize..20,
            min_p in 0.0f32..1.0,
        ) {
            let kept = ids(&sampling(1.0, top_k, 1.0, 0.0), &logits);
            prop_assert_eq!(kept.len(), top_k.min(logits.len()));
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for idx in ids(&sampling(1.0, 0, 1.0, min_p), &logits) {
                prop_assert!((logits[idx] - max).exp() >= min_p - 1e-6);
            }
        }

        #[test]
        fn a_seed_decides_everything(logits in prop::collection::vec(-3.0f32..3.0, 1..50), seed: u64) {
            let options = GenerateOptions { temperature: Some(1.0), top_p: Some(0.9), ..GenerateOptions::greedy() };
            let draw = || {
                let mut sampler = Sampler::new(&options, seed);
                (0..20).map(|_| sampler.choose(&logits).unwrap()).collect::<Vec<_>>()
            };
            prop_assert_eq!(draw(), draw());
        }
    }

    #[test]
    fn draws_follow_the_distribution() {
        let shares = [0.5f32, 0.25, 0.15, 0.1];
        let logits: Vec<f32> = shares.iter().map(|share| share.ln()).collect();
        let options = GenerateOptions { temperature: Some(1.0), ..GenerateOptions::greedy() };
        let mut sampler = Sampler::new(&options, 7);
        let mut counts = [0usize; 4];
        let draws = 40_000;
        for _ in 0..draws {
            counts[sampler.choose(&logits).unwrap() as usize] += 1;
        }
        for (count, share) in counts.iter().zip(shares) {
            let found = *count as f32 / draws as f32;
            assert!((found - share).abs() < 0.01, "{found} instead of {share}");
        }
    }

    #[test]
    fn temperature_sharpens() {
        let logits = [1.0f32, 0.0];
        let options = GenerateOptions { temperature: Some(0.1), ..GenerateOptions::greedy() };
        let mut sampler = Sampler::new(&options, 3);
        let firsts = (0..1000).filter(|_| sampler.choose(&logits) == Some(0)).count();
        assert!(firsts > 990, "{firsts}");
    }

    #[test]
    fn banned_tokens_are_never_drawn() {
        let logits = [f32::NEG_INFINITY, 0.0, f32::NAN, 0.0];
        let options = GenerateOptions { temperature: Some(5.0), ..GenerateOptions::greedy() };
        let mut sampler = Sampler::new(&options, 3);
        assert!((0..1000).all(|_| matches!(sampler.choose(&logits), Some(1 | 3))));
        assert_eq!(sampler.choose(&[f32::NAN; 3]), None);
        assert_eq!(Sampler::new(&GenerateOptions::greedy(), 0).choose(&[0.0, 3.0, 3.0]), Some(1));
    }
}
