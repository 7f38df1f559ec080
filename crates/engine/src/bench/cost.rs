//! What an answer costs by the shapes of a model's weights: floating point operations and bytes.
//!
//! A matrix of P numbers that meets R rows takes 2 P R operations. Attention of T queries over S keys each takes
//! 4 T S W operations in a layer whose heads together are W wide (scores and weighted values). Norms, activations and
//! rotations are left out: they are below a hundredth. Of a mixture of experts, a row meets those it is sent to. What
//! a decoder looks at by cross-attention becomes keys and values once, and not for every token.

/// Sums over a model's weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Numbers in the matrices of the vision tower (or of what hears), and pixels along an edge of its patches.
    tower: u64,
    tower_bytes: u64,
    patch: u64,
    /// Width of the tower's attention, added up over its layers.
    tower_attention: u64,
    connector: u64,
    decoder: u64,
    decoder_bytes: u64,
    decoder_attention: u64,
    /// Width of the attention to what is looked at, added up over the layers.
    cross_attention: u64,
    head: u64,
    /// Bytes of the matrices that every token needs: decoder and head.
    bytes_per_token: u64,
}

impl Cost {
    /// From name, shape and bytes of every tensor, and how many of how many experts a row is sent to.
    pub(crate) fn of<'a>(
        tensors: impl Iterator<Item = (&'a str, &'a [usize], usize)>,
        [chosen, experts]: [u64; 2],
    ) -> Self {
        let mut cost = Self::default();
        let (mut embedding, mut head) = ((0, 0), None);
        let is_matrix = |name: &str, shape: &[usize]| shape.len() > 1 && !TABLES.iter().any(|end| name.ends_with(end));
        for (name, shape, bytes) in tensors.filter(|(name, shape, _)| is_matrix(name, shape)) {
            let (numbers, bytes) = (shape.iter().product::<usize>() as u64, bytes as u64);
            let attention = match shape[0] as u64 {
                width if name.ends_with("q_proj.weight") || name.ends_with("self.query.weight") => width,
                width if name.ends_with("attn.qkv.weight") => width / 3,
                _ => 0,
            };
            let is_tower = name.contains("vision") || name.contains("visual.") || name.starts_with("model.encoder.");
            if is_tower && name.contains("merger") {
                cost.connector += numbers;
            } else if is_tower {
                match *shape {
                    [_, _, height, _] if name.ends_with("patch_embedding.weight") => cost.patch = height as u64,
                    // All of a patch's values in a row, in three colours.
                    [_, values] if name.ends_with("patch_emb.weight") => cost.patch = (values as u64 / 3).isqrt(),
                    _ => {}
                }
                cost.tower += numbers;
                cost.tower_bytes += bytes;
                cost.tower_attention += attention;
            } else if name.contains("connector") || LOOKED_AT.iter().any(|end| name.ends_with(end)) {
                cost.connector += numbers;
            } else if name.ends_with("embed_tokens.weight") || name.ends_with("word_embeddings.weight") {
                embedding = (numbers, bytes);
            } else if name.ends_with("lm_head.weight") {
                head = Some((numbers, bytes));
            } else if name.contains(".experts.") {
                cost.decoder += numbers * chosen / experts;
                cost.decoder_bytes += bytes * chosen / experts;
            } else {
                let crosses = name.contains("crossattention.") || name.contains("encoder_attn.");
                cost.decoder += numbers;
                cost.decoder_bytes += bytes;
                *(if crosses { &mut cost.cross_attention } else { &mut cost.decoder_attention }) += attention;
            }
        }
        // Without a head of its own, the table of embeddings is the head.
        let (numbers, bytes) = head.unwrap_or(embedding);
        cost.head = numbers;
        cost.bytes_per_token = cost.decoder_bytes + bytes;
        cost
    }

    /// Operations of the vision tower and the connector for tiles `[N, 3, height, width]` or flattened patches
    /// `[1, 1, patches, values]`; `None` for towers without patches, whose convolutions see ever smaller pictures.
    /// Attention in windows counts as if it saw the whole picture.
    pub(crate) fn vision_flops(&self, shape: [usize; 4], vision_tokens: usize) -> Option<f64> {
        let [n_tiles, channels, height, width] = shape;
        let patches = match self.patch {
            _ if channels == 1 => height as f64,
            0 => return None,
            patch => ((height as u64 / patch) * (width as u64 / patch)) as f64,
        };
        let tower = 2.0 * self.tower as f64 * patches + 4.0 * patches * patches * self.tower_attention as f64;
        Some(n_tiles as f64 * tower + 2.0 * self.connector as f64 * vision_tokens as f64)
    }

    /// Operations of a prefill: every token sees those before it, itself, and all of what is looked at by
    /// cross-attention; only the last one has logits.
    pub(crate) fn prefill_flops(&self, tokens: usize, looked_at: usize) -> f64 {
        let (tokens, looked_at) = (tokens as f64, looked_at as f64);
        let pairs = tokens * (tokens + 1.0) / 2.0;
        let attention = pairs * self.decoder_attention as f64 + tokens * looked_at * self.cross_attention as f64;
        2.0 * (self.decoder as f64 * tokens + self.head as f64) + 4.0 * attention
    }

    /// Bytes that a number in the tower's matrices takes.
    pub(crate) fn tower_bytes_per_weight(&self) -> f64 {
        self.tower_bytes as f64 / self.tower.max(1) as f64
    }

    /// Bytes that a number in the decoder's matrices (without embeddings) takes.
    pub(crate) fn decoder_bytes_per_weight(&self) -> f64 {
        self.decoder_bytes as f64 / self.decoder.max(1) as f64
    }

    /// Bytes of weights that a decoding step reads.
    pub(crate) fn bytes_per_token(&self) -> f64 {
        self.bytes_per_token as f64
    }
}

/// Tables of places, of which a row is read and nothing multiplied.
const TABLES: [&str; 4] =
    ["position_embedding.weight", "position_embeddings.weight", "pos_embed.weight", "embed_positions.weight"];
/// What makes keys and values of what is looked at.
const LOOKED_AT: [&str; 4] = [
    "crossattention.self.key.weight",
    "crossattention.self.value.weight",
    "encoder_attn.k_proj.weight",
    "encoder_attn.v_proj.weight",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_weight_counts_where_it_is_used() {
        let tensors: [(&str, &[usize], usize); 8] = [
            ("model.vision_model.embeddings.patch_embedding.weight", &[8, 3, 2, 2], 192),
            ("model.vision_model.embeddings.position_embedding.weight", &[4, 8], 64),
            ("model.vision_model.encoder.layers.0.self_attn.q_proj.weight", &[8, 8], 128),
            ("model.connector.modality_projection.proj.weight", &[4, 32], 256),
            ("model.text_model.embed_tokens.weight", &[10, 4], 80),
            ("model.text_model.layers.0.self_attn.q_proj.weight", &[4, 4], 32),
            ("model.text_model.norm.weight", &[4], 8),
            ("lm_head.weight", &[10, 4], 160),
        ];
        let cost = Cost::of(tensors.into_iter(), [1, 1]);
        // Four patches; 96 + 64 numbers in the tower, 128 in the connector.
        assert_eq!(
            cost.vision_flops([2, 3, 4, 5], 2),
            Some(2.0 * (2.0 * 160.0 * 4.0 + 4.0 * 16.0 * 8.0) + 2.0 * 128.0 * 2.0)
        );
        assert_eq!(cost.prefill_flops(3, 0), 2.0 * (16.0 * 3.0 + 40.0) + 4.0 * 6.0 * 4.0);
        assert_eq!(cost.bytes_per_token(), 192.0);
        assert_eq!((cost.tower_bytes_per_weight(), cost.decoder_bytes_per_weight()), (2.0, 2.0));
        let flat: [(&str, &[usize], usize); 4] = [
            ("visual.patch_embed.proj.weight", &[8, 3, 2, 2, 2], 384),
            ("visual.pos_embed.weight", &[4, 8], 128),
            ("visual.blocks.0.attn.qkv.weight", &[24, 8], 384),
            ("visual.merger.mlp.0.weight", &[4, 32], 256),
        ];
        let flat = Cost::of(flat.into_iter(), [1, 1]);
        let tower = 2.0 * (192.0 + 192.0) * 16.0 + 4.0 * 256.0 * 8.0;
        assert_eq!(flat.vision_flops([1, 1, 16, 24], 4), Some(tower + 2.0 * 128.0 * 4.0));
        assert_eq!(flat.bytes_per_token(), 0.0);
        let tied = Cost::of(tensors.into_iter().take(7), [1, 1]);
        assert_eq!((tied.bytes_per_token(), tied.prefill_flops(3, 0)), (112.0, cost.prefill_flops(3, 0)));
    }

    #[test]
    fn a_tower_is_counted_by_its_patches_or_not_at_all() {
        let linear: [(&str, &[usize], usize); 1] = [("model.vision.patch_emb.weight", &[8, 3 * 14 * 14], 9408)];
        let linear = Cost::of(linear.into_iter(), [1, 1]);
        assert_eq!(linear.vision_flops([2, 3, 28, 42], 6), Some(2.0 * (2.0 * 8.0 * 588.0 * 6.0)));
        let convolutions: [(&str, &[usize], usize); 1] = [("vision_tower.patch_embed.0.weight", &[8, 3, 3, 3], 432)];
        assert_eq!(Cost::of(convolutions.into_iter(), [1, 1]).vision_flops([1, 3, 64, 64], 16), None);
    }

    #[test]
    fn rows_meet_the_experts_they_are_sent_to() {
        let tensors: [(&str, &[usize], usize); 4] = [
            ("model.layers.1.mlp.gate.weight", &[4, 8], 128),
            ("model.layers.1.mlp.experts.0.up_proj.weight", &[16, 8], 256),
            ("model.layers.1.mlp.experts.1.up_proj.weight", &[16, 8], 256),
            ("model.layers.1.mlp.shared_experts.up_proj.weight", &[8, 8], 128),
        ];
        let of = |chosen| Cost::of(tensors.into_iter(), [chosen, 2]);
        assert_eq!(of(2).prefill_flops(1, 0), 2.0 * f64::from(32 + 128 + 128 + 64));
        assert_eq!(of(1).prefill_flops(1, 0), 2.0 * f64::from(32 + 128 + 64));
        assert_eq!(of(1).bytes_per_token(), f64::from(128 + 256 + 128));
    }

    #[test]
    fn what_is_looked_at_is_not_projected_for_every_token() {
        let tensors: [(&str, &[usize], usize); 7] = [
            ("text_decoder.bert.embeddings.word_embeddings.weight", &[10, 4], 80),
            ("text_decoder.bert.embeddings.position_embeddings.weight", &[32, 4], 256),
            ("text_decoder.bert.encoder.layer.0.attention.self.query.weight", &[4, 4], 32),
            ("text_decoder.bert.encoder.layer.0.crossattention.self.query.weight", &[4, 4], 32),
            ("text_decoder.bert.encoder.layer.0.crossattention.self.key.weight", &[4, 6], 48),
            ("text_decoder.bert.encoder.layer.0.crossattention.self.value.weight", &[4, 6], 48),
            ("vision_model.embeddings.patch_embedding.weight", &[6, 3, 2, 2], 144),
        ];
        let cost = Cost::of(tensors.into_iter(), [1, 1]);
        let attention = 4.0 * (3.0 * 4.0 + 2.0 * 5.0 * 4.0);
        assert_eq!(cost.prefill_flops(2, 5), 2.0 * (32.0 * 2.0 + 40.0) + attention);
        assert_eq!(cost.vision_flops([1, 3, 4, 4], 5), Some(2.0 * 72.0 * 4.0 + 2.0 * 48.0 * 5.0));
        assert_eq!(cost.bytes_per_token(), f64::from(32 + 32 + 80));
    }
}
