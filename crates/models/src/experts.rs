//! A feed-forward part of many experts, of which every token asks a few (DeepSeek-V2, `DeepseekV2MoE`). R rows, E
//! experts.
//!
//! Rows are gathered expert by expert, so that each expert's weights are read once per step; those that no row asks
//! for are not touched.

use ocelli_backend::{Backend, Linear, SwiGlu, Tensor, Weights};

use crate::error::Result;

/// Sizes of [`Experts`].
pub(crate) struct ExpertDims {
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    /// E.
    pub(crate) n_experts: usize,
    /// Experts that a row asks.
    pub(crate) n_chosen: usize,
    /// Experts that every row asks; they are one network.
    pub(crate) n_shared: usize,
    /// What the probabilities of the chosen ones are multiplied by.
    pub(crate) scale: f32,
}

/// A router, its experts, and those that are always asked.
pub(crate) struct Experts<B: Backend> {
    gate: Linear<B>,
    experts: Vec<SwiGlu<B>>,
    shared_experts: Option<SwiGlu<B>>,
    n_chosen: usize,
    scale: f32,
}

impl<B: Backend> Experts<B> {
    pub(crate) fn load(w: &Weights<B>, dims: &ExpertDims) -> Result<Self> {
        let (hidden, inner) = (dims.hidden_size, dims.intermediate_size);
        let expert = |expert_idx| Ok(w.at(&format!("experts.{expert_idx}")).swiglu(hidden, inner)?);
        let shared = |w: Weights<B>| w.swiglu(hidden, inner * dims.n_shared);
        Ok(Self {
            gate: w.linear_of_floats("gate", hidden, dims.n_experts)?,
            experts: (0..dims.n_experts).map(expert).collect::<Result<_>>()?,
            shared_experts: (dims.n_shared > 0).then(|| shared(w.at("shared_experts"))).transpose()?,
            n_chosen: dims.n_chosen,
            scale: dims.scale,
        })
    }

    /// `x` [R, hidden] -> the same shape, `residual` added.
    pub(crate) fn forward_add(&self, x: &Tensor<B>, residual: &Tensor<B>) -> Tensor<B> {
        let scores = self.gate.forward(x).to_vec();
        let asked = choose(&scores, self.experts.len(), self.n_chosen);
        let (mut rows, mut factors, mut answers) = (Vec::new(), Vec::new(), Vec::new());
        for (expert, asking) in self.experts.iter().zip(&asked).filter(|(_, asking)| !asking.is_empty()) {
            let own: Vec<usize> = asking.iter().map(|&(row, _)| row).collect();
            answers.push(expert.forward(&x.gather_rows(&own)));
            rows.extend(own);
            factors.extend(asking.iter().map(|&(_, probability)| probability * self.scale));
        }
        let out = match &self.shared_experts {
            Some(shared) => shared.forward_add(x, residual),
            None => residual.clone(),
        };
        if answers.is_empty() {
            return out;
        }
        out.add_scaled_rows(&rows, &factors, &Tensor::concat_rows(&answers.iter().collect::<Vec<_>>()))
    }
}

/// For every expert the rows that ask it, in order, each with the expert's probability among all: the `n_chosen` likeliest
/// of each row of `scores` `[R, n_experts]`; of equal ones the first.
fn choose(scores: &[f32], n_experts: usize, n_chosen: usize) -> Vec<Vec<(usize, f32)>> {
    let mut asked = vec![Vec::new(); n_experts];
    for (row, scores) in scores.chunks_exact(n_experts).enumerate() {
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exponentials: Vec<f32> = scores.iter().map(|score| (score - largest).exp()).collect();
        let sum: f32 = exponentials.iter().sum();
        let mut order: Vec<usize> = (0..n_experts).collect();
        order.sort_by(|&a, &b| exponentials[b].total_cmp(&exponentials[a]));
        for &expert_idx in order.iter().take(n_chosen) {
            asked[expert_idx].push((row, exponentials[expert_idx] / sum));
        }
    }
    asked
}

#[cfg(test)]
mod tests {
    use super::choose;

    #[test]
    fn the_likeliest_experts_are_asked_and_no_others() {
        let asked = choose(&[0.0, 3.0, 1.0, 3.0, 2.0, -1.0, 2.0, 9.0], 4, 2);
        let rows = |expert_idx: usize| asked[expert_idx].iter().map(|&(row, _)| row).collect::<Vec<_>>();
        // The second row's equals: the first of them.
        assert_eq!([rows(0), rows(1), rows(2), rows(3)], [vec![1], vec![0], vec![], vec![0, 1]]);
        let sum = 1f32 + 3f32.exp() * 2.0 + 1f32.exp();
        assert!((asked[1][0].1 - 3f32.exp() / sum).abs() < 1e-6);
    }

    #[test]
    fn huge_scores_overflow_nothing() {
        let asked = choose(&[1e30, -1e30, 1e30], 3, 1);
        assert_eq!(asked[0], [(0, 0.5)]);
    }
}
