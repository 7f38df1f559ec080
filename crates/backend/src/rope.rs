//! Rotary position embedding: frequencies, their scaling, and the angles of a step's rows.

use crate::ops::{Backend, RopePairing};
use crate::tensor::Tensor;

/// Rotary position embedding (Su et al. 2021): the angle of each pair of elements per position.
pub struct Rope {
    inverse_frequencies: Vec<f32>,
    pairing: RopePairing,
}

/// How a model stretches its rotary frequencies beyond the context that it was first trained with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Llama 3.1's: long waves are slowed by `factor`, short ones kept, those between blended
    /// (transformers `modeling_rope_utils.py`, `_compute_llama3_parameters`).
    Llama3 {
        /// How far long waves are stretched.
        factor: f64,
        /// Waves longer than the original context over this are stretched fully.
        low_freq_factor: f64,
        /// Waves shorter than the original context over this are kept.
        high_freq_factor: f64,
        /// The original context in tokens.
        original_max_position_embeddings: f64,
    },
    /// All positions divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
}

/// The rotation angles of one step's rows, shared by all layers.
pub struct RopeRows<B: Backend> {
    pub(crate) cos: Tensor<B>,
    pub(crate) sin: Tensor<B>,
    pub(crate) pairing: RopePairing,
}

impl<B: Backend> RopeRows<B> {
    /// Angles `[rows, pairs]` in radians, for models whose positions are more than one number.
    ///
    /// # Panics
    /// If the angles do not fill that many rows.
    #[track_caller]
    pub fn new(backend: &B, angles: &[f32], rows: usize, pairing: RopePairing) -> Self {
        assert!(rows == 0 || angles.len().is_multiple_of(rows), "{} angles for {rows} rows", angles.len());
        let shape = [rows, angles.len() / rows.max(1)];
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.iter().map(|angle| angle.sin_cos()).unzip();
        Self { cos: Tensor::new(backend, &cos, &shape), sin: Tensor::new(backend, &sin, &shape), pairing }
    }
}

impl Rope {
    /// Frequencies for heads of which `head_dim` elements turn.
    pub fn new(head_dim: usize, theta: f64, scaling: Option<RopeScaling>) -> Self {
        let plain = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64));
        let scaled = plain.map(|frequency| scaling.map_or(frequency, |scaling| scaling.apply(frequency)));
        let inverse_frequencies = scaled.map(|frequency| frequency as f32).collect();
        Self { inverse_frequencies, pairing: RopePairing::Halves }
    }

    /// The same frequencies for other pairs of elements than [`RopePairing::Halves`].
    #[must_use]
    pub fn with_pairing(self, pairing: RopePairing) -> Self {
        Self { pairing, ..self }
    }

    /// Angles for rows at these positions.
    pub fn rows<B: Backend>(&self, backend: &B, positions: &[usize]) -> RopeRows<B> {
        let angles = positions.iter().flat_map(|&position| {
            // The reference multiplies in float32; a float64 product would differ at large positions.
            self.inverse_frequencies.iter().map(move |frequency| position as f32 * frequency)
        });
        let angles: Vec<f32> = angles.collect();
        RopeRows::new(backend, &angles, positions.len(), self.pairing)
    }

    /// How far each pair turns per position, in radians.
    pub fn inverse_frequencies(&self) -> &[f32] {
        &self.inverse_frequencies
    }
}

impl RopeScaling {
    fn apply(self, frequency: f64) -> f64 {
        match self {
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let waves = original_max_position_embeddings * frequency / std::f64::consts::TAU;
                let blend = ((waves - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                (1.0 - blend) * frequency / factor + blend * frequency
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_keeps_short_waves_and_slows_long_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        assert_eq!(scaling.apply(1.0), 1.0);
        assert_eq!(scaling.apply(1e-5), 1e-5 / 32.0);
        let between = scaling.apply(std::f64::consts::TAU / 8192.0 * 2.5);
        assert!((between / (std::f64::consts::TAU / 8192.0 * 2.5) - (0.5 + 0.5 / 32.0)).abs() < 1e-12);
    }
}
