//! [`RandomWeights`]: weights that exist nowhere, for measuring speed and memory, which do not depend on values.

use std::cell::RefCell;
use std::rc::Rc;

use ocelli_formats::{Dtype, SharedBytes, TensorData};

use crate::error::Result;

/// A checkpoint that holds whatever a model asks for, in the shape it asks for, as bfloat16. Clones share it.
///
/// Vectors named `weight` (norms) are about 1, other vectors about 0, and the rows of matrices have a length of about
/// 1, so that numbers neither vanish nor overflow on their way through a model.
#[derive(Clone, Debug)]
pub struct RandomWeights {
    state: Rc<RefCell<State>>,
    /// Beyond this many bytes, weights are zeros in memory that is never touched: see [`RandomWeights::fits`].
    most_bytes: u64,
}

#[derive(Debug)]
struct State {
    random: u64,
    made: Vec<(String, Vec<usize>)>,
    bytes: u64,
}

impl RandomWeights {
    /// Weights of at most `most_bytes`; the same seed gives the same ones.
    pub fn new(seed: u64, most_bytes: u64) -> Self {
        let state = State { random: seed, made: Vec::new(), bytes: 0 };
        Self { state: Rc::new(RefCell::new(state)), most_bytes }
    }

    /// Names and shapes of all tensors that were asked for.
    pub fn made(&self) -> Vec<(String, Vec<usize>)> {
        self.state.borrow().made.clone()
    }

    /// Bytes of all tensors that were asked for.
    pub fn bytes(&self) -> u64 {
        self.state.borrow().bytes
    }

    /// Whether all of them fitted. A model that did not fit must not be used; what it would need is known.
    pub fn fits(&self) -> bool {
        self.bytes() <= self.most_bytes
    }

    pub(crate) fn tensor(&self, name: String, shape: &[usize]) -> Result<TensorData> {
        let mut state = self.state.borrow_mut();
        let count: usize = shape.iter().product();
        let size = count * Dtype::BF16.size();
        state.bytes += size as u64;
        let bytes = if state.bytes > self.most_bytes {
            vec![0; size]
        } else {
            let (middle, reach) = match shape {
                [_] if name.ends_with("weight") => (1.0, 0.1),
                [_] => (0.0, 0.02),
                _ => (0.0, (3.0 / (count / shape[0].max(1)).max(1) as f32).sqrt()),
            };
            let block = state.block(count.min(BLOCK), middle, reach);
            let mut bytes = Vec::with_capacity(size);
            while bytes.len() < size {
                bytes.extend_from_slice(&block[..block.len().min(size - bytes.len())]);
            }
            bytes
        };
        state.made.push((name, shape.to_vec()));
        Ok(TensorData::new(Dtype::BF16, shape.to_vec(), SharedBytes::from(bytes))?)
    }
}

impl State {
    /// Values between `middle - reach` and `middle + reach` as bfloat16.
    fn block(&mut self, count: usize, middle: f32, reach: f32) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2 * count);
        for _ in 0..count {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let uniform = (self.random >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            // The upper half of a float32 is a bfloat16.
            bytes.extend(((middle + reach * uniform).to_bits() >> 16).to_le_bytes()[..2].iter());
        }
        bytes
    }
}

/// Values after which a tensor repeats itself: few enough to be made quickly, and a prime, so that no two rows of a
/// matrix begin at the same one.
const BLOCK: usize = 65_521;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_suit_their_place() {
        let weights = RandomWeights::new(1, 1 << 20);
        let norm = weights.tensor("norm.weight".into(), &[50]).unwrap().to_f32().unwrap();
        assert!(norm.iter().all(|value| (0.89..1.11).contains(value)));
        let matrix = weights.tensor("up.weight".into(), &[200, 400]).unwrap().to_f32().unwrap();
        for row in matrix.chunks(400) {
            let length = row.iter().map(|value| value * value).sum::<f32>();
            assert!((0.7..1.3).contains(&length), "{length}");
        }
        assert_eq!(weights.made()[1], ("up.weight".to_owned(), vec![200, 400]));
        let again = RandomWeights::new(1, 1 << 20).tensor("norm.weight".into(), &[50]).unwrap();
        assert_eq!(again.to_f32().unwrap(), norm);
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let weights = RandomWeights::new(1, 1000);
        weights.tensor("a.weight".into(), &[10, 10]).unwrap();
        assert!(weights.fits());
        weights.tensor("b.weight".into(), &[100, 10]).unwrap();
        assert!(!weights.fits());
        assert_eq!(weights.bytes(), 2200);
    }
}
