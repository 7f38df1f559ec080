//! [`MlxNames`]: what MLX calls the tensors of published checkpoints.

/// The names of one family in MLX. Checkpoints of a family come in several layouts; all of them are renamed, and MLX's
/// own names stay what they are.
#[derive(Debug)]
pub struct MlxNames {
    families: &'static [&'static str],
    package: &'static str,
    /// What names begin with, and what MLX has instead; the first that fits counts.
    moved: &'static [(&'static str, &'static str)],
    /// What stands before the number of a matrix that MLX keeps in a stack, and what MLX has instead of both.
    stacked: Option<(&'static str, &'static str)>,
    /// What MLX's names of tensors begin with that MLX asks for though its model computes nothing with them.
    unused: &'static [&'static str],
}

/// Where MLX has a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MlxName {
    /// Its name.
    pub name: String,
    /// Its place, where that is the name of a stack.
    pub stack_idx: Option<usize>,
}

impl MlxNames {
    /// The names of a family; `None` for those that MLX's packages have no model of.
    pub fn of(model_type: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|names| names.families.contains(&model_type))
    }

    /// The Python package that loads the family.
    pub fn package(&self) -> &'static str {
        self.package
    }

    /// The place of a published checkpoint's tensor.
    pub fn name(&self, published: &str) -> MlxName {
        let moved = self.moved.iter().find_map(|(from, to)| Some(format!("{to}{}", published.strip_prefix(from)?)));
        let name = moved.unwrap_or_else(|| published.to_owned());
        let part = self.stacked.and_then(|(before, stack)| {
            let (layer, rest) = name.split_once(before)?;
            let (idx, matrix) = rest.split_once('.')?;
            Some(MlxName { name: format!("{layer}{stack}{matrix}"), stack_idx: Some(idx.parse().ok()?) })
        });
        part.unwrap_or(MlxName { name, stack_idx: None })
    }

    /// Whether MLX asks for this tensor of a published checkpoint though nothing is computed with it.
    pub fn asks_for_unused(&self, published: &str) -> bool {
        let name = self.name(published).name;
        self.unused.iter().any(|prefix| name.starts_with(prefix))
    }
}

/// As of mlx-lm 0.32 and mlx-vlm 0.7.10.
const FAMILIES: [MlxNames; 5] = [
    MlxNames { families: &["llama", "qwen2", "qwen3"], package: "mlx-lm", moved: &[], stacked: None, unused: &[] },
    MlxNames {
        families: &["idefics3", "smolvlm"],
        package: "mlx-vlm",
        moved: &[("model.text_model.", "language_model."), ("lm_head.", "language_model.lm_head."), ("model.", "")],
        stacked: None,
        unused: &[],
    },
    MlxNames {
        families: &["llava"],
        package: "mlx-vlm",
        moved: &[
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("vision_tower.vision_model.", "vision_tower.vision_model."),
            ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
            ("vision_tower.", "vision_tower.vision_model."),
            ("model.vision_tower.", "vision_tower.vision_model."),
            ("model.", ""),
        ],
        stacked: None,
        // The layers above the one whose features are taken.
        unused: &["vision_tower.vision_model.encoder.layers.", "vision_tower.vision_model.post_layernorm."],
    },
    MlxNames {
        families: &["qwen2_vl", "qwen2_5_vl", "qwen3_vl"],
        package: "mlx-vlm",
        moved: &[
            ("visual.", "vision_tower."),
            ("model.visual.", "vision_tower."),
            ("model.language_model.", "language_model.model."),
            ("model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
        ],
        stacked: None,
        unused: &[],
    },
    MlxNames {
        families: &["deepseek_vl_v2"],
        package: "mlx-vlm",
        moved: &[
            ("language.", "language_model."),
            ("vision.vision_tower.", "vision.vision_tower."),
            ("vision.", "vision.vision_tower."),
            ("view_seperator", "view_separator"),
        ],
        stacked: Some((".mlp.experts.", ".mlp.switch_mlp.")),
        unused: &["vision.vision_tower.attn_pool."],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_gets_the_names_of_mlx() {
        let norm = "language_model.model.norm.weight";
        for (model_type, published, mlx) in [
            ("qwen2", &["model.norm.weight"][..], "model.norm.weight"),
            (
                "smolvlm",
                &["model.text_model.layers.0.mlp.up_proj.weight"],
                "language_model.layers.0.mlp.up_proj.weight",
            ),
            ("smolvlm", &["lm_head.weight"], "language_model.lm_head.weight"),
            ("idefics3", &["model.vision_model.post_layernorm.bias"], "vision_model.post_layernorm.bias"),
            ("llava", &["model.language_model.norm.weight"], norm),
            ("llava", &["lm_head.weight"], "language_model.lm_head.weight"),
            (
                "llava",
                &[
                    "vision_tower.pre_layrnorm.bias",
                    "model.vision_tower.pre_layrnorm.bias",
                    "model.vision_tower.vision_model.pre_layrnorm.bias",
                ],
                "vision_tower.vision_model.pre_layrnorm.bias",
            ),
            ("llava", &["model.multi_modal_projector.linear_1.bias"], "multi_modal_projector.linear_1.bias"),
            ("qwen2_vl", &["model.norm.weight", "model.language_model.norm.weight"], norm),
            (
                "qwen3_vl",
                &["visual.merger.norm.bias", "model.visual.merger.norm.bias"],
                "vision_tower.merger.norm.bias",
            ),
            ("qwen2_5_vl", &["lm_head.weight"], "language_model.lm_head.weight"),
            ("deepseek_vl_v2", &["language.model.norm.weight"], norm),
            ("deepseek_vl_v2", &["vision.norm.bias"], "vision.vision_tower.norm.bias"),
            ("deepseek_vl_v2", &["view_seperator"], "view_separator"),
        ] {
            let names = MlxNames::of(model_type).unwrap();
            for name in published.iter().chain([&mlx]) {
                assert_eq!(names.name(name), MlxName { name: mlx.to_owned(), stack_idx: None }, "{model_type}: {name}");
            }
        }
        assert!(MlxNames::of("blip").is_none());
    }

    #[test]
    fn experts_lie_in_stacks() {
        let names = MlxNames::of("deepseek_vl_v2").unwrap();
        let place = |name| {
            let place = names.name(name);
            (place.name, place.stack_idx)
        };
        let stack = "language_model.model.layers.1.mlp.switch_mlp.up_proj.weight".to_owned();
        assert_eq!(place("language.model.layers.1.mlp.experts.17.up_proj.weight"), (stack, Some(17)));
        let shared = "language_model.model.layers.1.mlp.shared_experts.up_proj.weight".to_owned();
        assert_eq!(place("language.model.layers.1.mlp.shared_experts.up_proj.weight"), (shared, None));
    }

    #[test]
    fn some_tensors_only_have_to_be_there() {
        let llava = MlxNames::of("llava").unwrap();
        assert!(llava.asks_for_unused("vision_tower.post_layernorm.bias"));
        assert!(!llava.asks_for_unused("vision_tower.vision_model.embeddings.position_ids"));
        assert!(MlxNames::of("deepseek_vl_v2").unwrap().asks_for_unused("vision.attn_pool.latent"));
    }
}
