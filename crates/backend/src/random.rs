//! [`RandomWeights`]: weights that exist nowhere, for measuring speed and memory, which do not depend on values.

use std::cell::Cell;

use ocelli_formats::{Dtype, SharedBytes, TensorData};

use crate::error::Result;

/// A checkpoint that holds whatever a model asks for, in the shape it asks for, as bfloat16. Every tensor is made when
/// it is asked for and kept by nobody else.
///
/// Vectors named `weight` (norms) or `running_var` are about 1, other vectors about 0, and the rows of matrices have a length of about
/// 1, so that numbers neither vanish nor overflow on their way through a model.
#[derive(Debug)]
pub struct RandomWeights {
    state: Cell<u64>,
}

impl RandomWeights {
    /// The same seed gives the same weights, if they are asked for in the same order.
    pub fn new(seed: u64) -> Self {
        Self { state: Cell::new(seed) }
    }

    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorData> {
        let count: usize = shape.iter().product();
        let size = count * Dtype::BF16.size();
        let (middle, reach) = match shape {
            [_] if name.ends_with("weight") || name.ends_with("running_var") => (1.0, 0.1),
            [_] => (0.0, 0.02),
            _ => (0.0, (3.0 / (count / shape[0].max(1)).max(1) as f32).sqrt()),
        };
        let block = self.block(count.min(BLOCK), middle, reach);
        let mut bytes = Vec::with_capacity(size);
        while bytes.len() < size {
            bytes.extend_from_slice(&block[..block.len().min(size - bytes.len())]);
        }
        Ok(TensorData::new(Dtype::BF16, shape.to_vec(), SharedBytes::from(bytes))?)
    }

    /// Values between `middle - reach` and `middle + reach` as bfloat16.
    fn block(&self, count: usize, middle: f32, reach: f32) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2 * count);
        let mut state = self.state.get();
        for _ in 0..count {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let uniform = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            // The upper half of a float32 is a bfloat16.
            bytes.extend(((middle + reach * uniform).to_bits() >> 16).to_le_bytes()[..2].iter());
        }
        self.state.set(state);
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
        let weights = RandomWeights::new(1);
        let norm = weights.tensor("norm.weight", &[50]).unwrap().to_f32().unwrap();
        assert!(norm.iter().all(|value| (0.89..1.11).contains(value)));
        let matrix = weights.tensor("up.weight", &[200, 400]).unwrap().to_f32().unwrap();
        for row in matrix.chunks(400) {
            let length = row.iter().map(|value| value * value).sum::<f32>();
            assert!((0.7..1.3).contains(&length), "{length}");
        }
        let again = RandomWeights::new(1).tensor("norm.weight", &[50]).unwrap();
        assert_eq!(again.to_f32().unwrap(), norm);
    }
}
