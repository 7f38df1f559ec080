//! The reference backend: every operation as its definition says, sums in float64, one thread, no cleverness.

use std::ops::Range;

use ocelli_backend::{
    Activation, AttentionDims, BLOCK_TOKENS, Backend, ConvolutionDims, Epilogue, Mask, PatchDims, RopeDims,
    RopePairing, Span,
};
use ocelli_formats::WeightData;

/// Obviously correct, hopelessly slow.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReferenceBackend;

/// A matrix `[out, in]`.
pub struct Matrix {
    values: Vec<f32>,
    in_features: usize,
}

/// Keys and values by token slot, each `[K, D]`.
pub struct Slots {
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    kv_heads: usize,
    head_dim: usize,
}

impl Backend for ReferenceBackend {
    type Buffer = Vec<f32>;
    type Weight = Matrix;
    type KvBlocks = Slots;
    type StepGuard = ();

    fn name(&self) -> &'static str {
        "reference"
    }

    fn begin_step(&self) {}

    fn upload(&self, values: &[f32]) -> Vec<f32> {
        values.to_vec()
    }

    fn download(&self, buffer: &Vec<f32>) -> Vec<f32> {
        buffer.clone()
    }

    fn weight(&self, data: WeightData) -> Result<Matrix, String> {
        let values = data.to_f32().map_err(|error| error.to_string())?;
        let in_features = match &data {
            WeightData::Float(data) => data.shape()[1],
            WeightData::Grouped(data) => data.inputs(),
        };
        Ok(Matrix { values, in_features })
    }

    fn linears(&self, x: &Vec<f32>, rows: usize, products: &[(&Matrix, Epilogue<'_, Self>)]) -> Vec<Vec<f32>> {
        products.iter().map(|(weight, epilogue)| product(x, rows, weight, epilogue)).collect()
    }

    fn swiglu(&self, x: &Vec<f32>, rows: usize, gate: &Matrix, up: &Matrix) -> Vec<f32> {
        let silu = Epilogue { activation: Activation::Silu, ..Epilogue::none() };
        let (gate, up) = (product(x, rows, gate, &silu), product(x, rows, up, &Epilogue::none()));
        gate.iter().zip(&up).map(|(gate, up)| gate * up).collect()
    }

    fn embed(&self, table: &Matrix, ids: &[u32]) -> Vec<f32> {
        let row = |&id: &u32| table.values[id as usize * table.in_features..][..table.in_features].to_vec();
        ids.iter().flat_map(row).collect()
    }

    fn add(&self, a: &Vec<f32>, b: &Vec<f32>) -> Vec<f32> {
        a.iter().zip(b).map(|(a, b)| a + b).collect()
    }

    fn add_repeated(&self, x: &Vec<f32>, row: &Vec<f32>) -> Vec<f32> {
        x.iter().zip(row.iter().cycle()).map(|(a, b)| a + b).collect()
    }

    fn rms_norm(&self, x: &Vec<f32>, weight: &Vec<f32>, eps: f32) -> Vec<f32> {
        let row = |row: &[f32]| {
            let scale = 1.0 / (dot(row, row) / row.len() as f64 + f64::from(eps)).sqrt();
            row.iter().zip(weight).map(|(x, w)| (f64::from(*x) * scale * f64::from(*w)) as f32).collect::<Vec<_>>()
        };
        x.chunks(weight.len()).flat_map(row).collect()
    }

    fn layer_norm(&self, x: &Vec<f32>, weight: &Vec<f32>, bias: &Vec<f32>, eps: f32) -> Vec<f32> {
        let row = |row: &[f32]| {
            let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / row.len() as f64;
            let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / row.len() as f64;
            let scale = 1.0 / (variance + f64::from(eps)).sqrt();
            let element = |(x, (w, b)): (&f32, (&f32, &f32))| {
                ((f64::from(*x) - mean) * scale * f64::from(*w) + f64::from(*b)) as f32
            };
            row.iter().zip(weight.iter().zip(bias)).map(element).collect::<Vec<_>>()
        };
        x.chunks(weight.len()).flat_map(row).collect()
    }

    fn mul(&self, a: &Vec<f32>, b: &Vec<f32>) -> Vec<f32> {
        a.iter().zip(b).map(|(a, b)| a * b).collect()
    }

    fn mul_repeated(&self, x: &Vec<f32>, row: &Vec<f32>) -> Vec<f32> {
        x.iter().zip(row.iter().cycle()).map(|(a, b)| a * b).collect()
    }

    fn activate(&self, x: &Vec<f32>, activation: Activation) -> Vec<f32> {
        x.iter().map(|&value| activate(value.into(), activation) as f32).collect()
    }

    fn rope(&self, x: &Vec<f32>, dims: RopeDims, cos: &Vec<f32>, sin: &Vec<f32>) -> Vec<f32> {
        let mut out = x.clone();
        for (at, head) in out.chunks_mut(dims.head_dim).enumerate() {
            for pair in 0..dims.pairs {
                let (first, second) = match dims.pairing {
                    RopePairing::Halves => (pair, pair + dims.pairs),
                    RopePairing::Adjacent => (2 * pair, 2 * pair + 1),
                };
                let angle = at / dims.heads * dims.pairs + pair;
                let (a, b) = (f64::from(head[first]), f64::from(head[second]));
                let (c, s) = (f64::from(cos[angle]), f64::from(sin[angle]));
                head[first] = (a * c - b * s) as f32;
                head[second] = (b * c + a * s) as f32;
            }
        }
        out
    }

    fn attention(
        &self,
        q: &Vec<f32>,
        k: &Vec<f32>,
        v: &Vec<f32>,
        dims: AttentionDims,
        mask: Mask<'_>,
        scale: f32,
    ) -> Vec<f32> {
        let d = dims.head_dim;
        let group = dims.heads / dims.kv_heads;
        let mut out = Vec::with_capacity(q.len());
        for (at, query) in q.chunks(d).enumerate() {
            let (row, kv_head) = (at / dims.heads, at % dims.heads / group);
            let place = |key| ((row / dims.queries * dims.keys + key) * dims.kv_heads + kv_head) * d;
            let seen = || (0..dims.keys).filter(|&key| sees(mask, row % dims.queries, key));
            let keys: Vec<&[f32]> = seen().map(|key| &k[place(key)..][..d]).collect();
            let values: Vec<&[f32]> = seen().map(|key| &v[place(key)..][..d]).collect();
            out.extend(attend(query, &keys, &values, scale));
        }
        out
    }

    fn kv_bytes_per_token(&self, kv_heads: usize, head_dim: usize) -> usize {
        2 * kv_heads * head_dim * size_of::<f32>()
    }

    fn kv_blocks(&self, kv_heads: usize, head_dim: usize) -> Slots {
        Slots { keys: Vec::new(), values: Vec::new(), kv_heads, head_dim }
    }

    fn kv_write(&self, kv: &mut Slots, k: &Vec<f32>, v: &Vec<f32>, slots: &[usize]) {
        let width = kv.kv_heads * kv.head_dim;
        for (row, &slot) in slots.iter().enumerate() {
            kv.grow(slot + 1);
            kv.keys[slot] = k[row * width..][..width].to_vec();
            kv.values[slot] = v[row * width..][..width].to_vec();
        }
    }

    fn kv_copy(&self, kv: &mut Slots, from: usize, to: usize) {
        kv.grow((from.max(to) + 1) * BLOCK_TOKENS);
        for offset in 0..BLOCK_TOKENS {
            kv.keys[to * BLOCK_TOKENS + offset] = kv.keys[from * BLOCK_TOKENS + offset].clone();
            kv.values[to * BLOCK_TOKENS + offset] = kv.values[from * BLOCK_TOKENS + offset].clone();
        }
    }

    fn attention_cached(
        &self,
        q: &Vec<f32>,
        heads: usize,
        kv: &Slots,
        spans: &[Span],
        mask: Mask<'_>,
        scale: f32,
    ) -> Vec<f32> {
        let (d, group) = (kv.head_dim, heads / kv.kv_heads);
        let mut out = vec![0.0; q.len()];
        for span in spans {
            for (i, row) in span.rows.clone().enumerate() {
                let slot = |at: usize| span.blocks[at / BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS;
                let tokens = (0..span.past + span.rows.len()).filter(|&token| sees(mask, span.past + i, token));
                let seen: Vec<usize> = tokens.map(slot).collect();
                for head in 0..heads {
                    let range = head / group * d..(head / group + 1) * d;
                    let keys: Vec<&[f32]> = seen.iter().map(|&slot| &kv.keys[slot][range.clone()]).collect();
                    let values: Vec<&[f32]> = seen.iter().map(|&slot| &kv.values[slot][range.clone()]).collect();
                    let place = (row * heads + head) * d;
                    let attended = attend(&q[place..][..d], &keys, &values, scale);
                    out[place..][..d].copy_from_slice(&attended);
                }
            }
        }
        out
    }

    fn gather_rows(&self, x: &Vec<f32>, width: usize, rows: &[usize]) -> Vec<f32> {
        rows.iter().flat_map(|&row| x[row * width..][..width].to_vec()).collect()
    }

    fn replace_rows(&self, x: &Vec<f32>, width: usize, rows: &[usize], source: &Vec<f32>) -> Vec<f32> {
        let mut out = x.clone();
        for (from, &row) in source.chunks(width).zip(rows) {
            out[row * width..][..width].copy_from_slice(from);
        }
        out
    }

    fn add_scaled_rows(
        &self,
        x: &Vec<f32>,
        width: usize,
        rows: &[usize],
        factors: &[f32],
        source: &Vec<f32>,
    ) -> Vec<f32> {
        let mut out = x.clone();
        for (i, &row) in rows.iter().enumerate() {
            for column in 0..width {
                out[row * width + column] += factors[i] * source[i * width + column];
            }
        }
        out
    }

    fn mean_rows(&self, x: &Vec<f32>, rows: usize, width: usize) -> Vec<f32> {
        let mean = |group: &[f32], column: usize| {
            let sum: f64 = group.iter().skip(column).step_by(width).map(|&value| f64::from(value)).sum();
            (sum / rows as f64) as f32
        };
        let means = |group: &[f32]| (0..width).map(|column| mean(group, column)).collect::<Vec<_>>();
        x.chunks(rows * width).flat_map(means).collect()
    }

    fn columns(&self, x: &Vec<f32>, width: usize, columns: Range<usize>) -> Vec<f32> {
        x.chunks(width).flat_map(|row| row[columns.clone()].to_vec()).collect()
    }

    fn concat_columns(&self, parts: &[(&Vec<f32>, usize)]) -> Vec<f32> {
        let rows = parts.first().map_or(0, |(part, width)| part.len() / width);
        let row = |row: usize| parts.iter().flat_map(move |(part, width)| part[row * width..][..*width].to_vec());
        (0..rows).flat_map(row).collect()
    }

    fn concat(&self, parts: &[&Vec<f32>]) -> Vec<f32> {
        parts.iter().flat_map(|part| part.iter().copied()).collect()
    }

    fn unfold_patches(&self, x: &Vec<f32>, dims: PatchDims) -> Vec<f32> {
        let PatchDims { batch, channels, height, width, patch } = dims;
        let mut out = Vec::with_capacity(x.len());
        for picture in 0..batch {
            for corner in 0..(height / patch) * (width / patch) {
                let (top, left) = (corner / (width / patch) * patch, corner % (width / patch) * patch);
                for inner in 0..channels * patch * patch {
                    let (channel, y, x_offset) = (inner / (patch * patch), inner / patch % patch, inner % patch);
                    out.push(x[((picture * channels + channel) * height + top + y) * width + left + x_offset]);
                }
            }
        }
        out
    }

    fn unfold_windows(&self, x: &Vec<f32>, dims: ConvolutionDims) -> Vec<f32> {
        let [rows, columns] = dims.output();
        let [kernel_height, kernel_width] = dims.kernel;
        let mut out = Vec::new();
        for place in 0..dims.batch * rows * columns {
            for inner in 0..dims.channels * kernel_height * kernel_width {
                let (channel, tap) = (inner / (kernel_height * kernel_width), inner % (kernel_height * kernel_width));
                out.push(pixel(x, &dims, place, [tap / kernel_width, tap % kernel_width], channel));
            }
        }
        out
    }

    fn depthwise(&self, x: &Vec<f32>, weight: &Vec<f32>, bias: Option<&Vec<f32>>, dims: ConvolutionDims) -> Vec<f32> {
        let [rows, columns] = dims.output();
        let channels = dims.channels * dims.multiplier;
        let mut out = Vec::new();
        for at in 0..dims.batch * rows * columns * channels {
            let (place, channel) = (at / channels, at % channels);
            let mut sum = bias.map_or(0.0, |bias| f64::from(bias[channel]));
            for tap in 0..dims.kernel[0] * dims.kernel[1] {
                let tap_at = [tap / dims.kernel[1], tap % dims.kernel[1]];
                let pixel = pixel(x, &dims, place, tap_at, channel / dims.multiplier);
                sum += f64::from(pixel) * f64::from(weight[tap * channels + channel]);
            }
            out.push(sum as f32);
        }
        out
    }
}

/// What a tap of output `place` meets; zero outside of the picture.
fn pixel(x: &[f32], dims: &ConvolutionDims, place: usize, tap: [usize; 2], channel: usize) -> f32 {
    let [rows, columns] = dims.output();
    let (picture, row, column) = (place / (rows * columns), place / columns % rows, place % columns);
    let down = (row * dims.stride[0] + tap[0]).checked_sub(dims.padding[0]).filter(|&y| y < dims.height);
    let across = (column * dims.stride[1] + tap[1]).checked_sub(dims.padding[1]).filter(|&x| x < dims.width);
    let at = |(y, x_at)| x[((picture * dims.height + y) * dims.width + x_at) * dims.channels + channel];
    down.zip(across).map_or(0.0, at)
}

impl Slots {
    fn grow(&mut self, slots: usize) {
        let width = self.kv_heads * self.head_dim;
        let len = self.keys.len().max(slots);
        self.keys.resize(len, vec![0.0; width]);
        self.values.resize(len, vec![0.0; width]);
    }
}

fn product(x: &[f32], rows: usize, weight: &Matrix, epilogue: &Epilogue<'_, ReferenceBackend>) -> Vec<f32> {
    let n_in = weight.in_features;
    let n_out = weight.values.len() / n_in;
    let element = |at: usize| {
        let (row, out) = (at / n_out, at % n_out);
        let (x, w) = (&x[row * n_in..][..n_in], &weight.values[out * n_in..][..n_in]);
        let sum = dot(x, w) + epilogue.bias.map_or(0.0, |bias| f64::from(bias[out]));
        let residual = epilogue.residual.map_or(0.0, |residual| f64::from(residual[at]));
        (activate(sum, epilogue.activation) + residual) as f32
    };
    (0..rows * n_out).map(element).collect()
}

/// Whether the token at a place sees the other one.
fn sees(mask: Mask<'_>, place: usize, other: usize) -> bool {
    match mask {
        Mask::All => true,
        Mask::Causal => other <= place,
        Mask::Window(window) => other <= place && place - other < window.max(1),
        Mask::Prefix(prefix) => other <= place || (other < prefix && place < prefix),
        Mask::Segments(starts) => {
            let segment = |place| starts.iter().filter(|&&start| start <= place).count();
            segment(place) == segment(other)
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

fn attend(query: &[f32], keys: &[&[f32]], values: &[&[f32]], scale: f32) -> Vec<f32> {
    let scores: Vec<f64> = keys.iter().map(|key| dot(query, key) * f64::from(scale)).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    let element = |i: usize| weights.iter().zip(values).map(|(w, value)| w * f64::from(value[i])).sum::<f64>() / total;
    (0..query.len()).map(|i| element(i) as f32).collect()
}

fn activate(x: f64, activation: Activation) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Activation::Relu => x.max(0.0),
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
    }
}

/// The error function by its Taylor series, which float64 carries far enough; beyond 5 it is 1 to the last bit that
/// a float32 can see.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[cfg(test)]
mod tests {
    use super::{ReferenceBackend, erf};

    #[test]
    fn erf_agrees_with_tables() {
        for (x, expected) in [(0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (3.0, 0.999_977_909_5)] {
            assert!((erf(x) - expected).abs() < 1e-9 && (erf(-x) + expected).abs() < 1e-9, "{x}");
        }
    }

    #[test]
    fn the_reference_conforms_to_itself() {
        crate::conformance(&ReferenceBackend);
    }
}
