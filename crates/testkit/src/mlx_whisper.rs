//! A folder of Whisper's as MLX publishes it (mlx-examples `whisper/convert.py`).

use std::path::Path;

use ocelli_formats::{Checkpoint, CheckpointWriter, CodeBits, Dtype, GroupedLayout, GroupedTensor, TensorData};

/// Writes `config.json` and `weights.safetensors` of the fixture's model, of which `checkpoint` has the weights under
/// transformers' names; matrices as codes if `bits` says so. Feed-forward layers become four times as wide as the
/// model, as MLX wants them, by adding zeros. Of a tokenizer and of spectrograms MLX says nothing.
#[track_caller]
pub fn write_mlx_whisper(checkpoint: &Checkpoint, folder: &Path, bits: Option<CodeBits>) {
    let names: Vec<(&str, String)> = checkpoint.names().filter_map(|name| Some((name, mlx_name(name)?))).collect();
    let mut writer = CheckpointWriter::new(folder, "mlx", names.iter().map(|(_, name)| name.as_str()));
    for (from, name) in &names {
        let data = widened(from, &checkpoint.tensor(from).expect("a plain tensor"));
        let written = match (data.shape().len(), bits) {
            (3, _) => writer.channels_last(name, &data),
            (2, Some(bits)) if name.ends_with(".weight") => {
                let layout = GroupedLayout::new(bits, data.shape()[1], 64).expect("whole groups");
                let codes = GroupedTensor::quantize(&data, layout, 0..data.shape()[0]).expect("floats");
                writer.grouped(name, &data.shape()[..1], &codes.expect("finite numbers"))
            }
            _ => writer.tensor(name, &data),
        };
        written.expect("a place to write to");
    }
    let heads = (0..4i32).flat_map(i32::to_le_bytes).collect::<Vec<u8>>();
    let heads = TensorData::new(Dtype::I32, vec![2, 2], heads.into()).expect("four numbers");
    writer.tensor("alignment_heads", &heads).and_then(|()| writer.finish()).expect("a place to write to");
    let quantization = bits.map(|bits| format!(r#","quantization":{{"group_size":64,"bits":{}}}"#, bits.count()));
    let config = format!("{{{SIZES}{}}}", quantization.unwrap_or_default());
    std::fs::write(folder.join("config.json"), config).expect("a place to write to");
    std::fs::rename(folder.join("model.safetensors"), folder.join("weights.safetensors")).expect("one file");
}

/// MLX's name of a weight; `None` for those that it computes.
fn mlx_name(name: &str) -> Option<String> {
    let name = name.strip_prefix("model.").filter(|name| *name != "encoder.embed_positions.weight")?;
    let renamed = NAMES.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to));
    Some(renamed)
}

fn widened(name: &str, data: &TensorData) -> TensorData {
    let mut shape = data.shape().to_vec();
    let mut values = data.to_f32().expect("floats");
    if name.contains(".fc1.") {
        let width = if shape.len() == 2 { shape[1] } else { 1 };
        shape[0] = 4 * WIDTH;
        values.resize(4 * WIDTH * width, 0.0);
    } else if name.ends_with(".fc2.weight") {
        let wide = |row: &[f32]| row.iter().copied().chain(std::iter::repeat(0.0)).take(4 * WIDTH).collect::<Vec<_>>();
        values = values.chunks_exact(shape[1]).flat_map(wide).collect();
        shape[1] = 4 * WIDTH;
    }
    TensorData::from_f32(shape, &values).expect("as many numbers")
}

/// Of the fixture's model.
const SIZES: &str = r#""model_type":"whisper","n_mels":80,"n_audio_ctx":1500,"n_audio_state":64,"n_audio_head":4,
    "n_audio_layer":2,"n_vocab":425,"n_text_ctx":64,"n_text_state":64,"n_text_head":4,"n_text_layer":2"#;
const WIDTH: usize = 64;
/// Longer names before those that they contain.
const NAMES: &[(&str, &str)] = &[
    (".layers.", ".blocks."),
    ("self_attn_layer_norm", "attn_ln"),
    ("encoder_attn_layer_norm", "cross_attn_ln"),
    ("final_layer_norm", "mlp_ln"),
    ("encoder.layer_norm", "encoder.ln_post"),
    ("decoder.layer_norm", "decoder.ln"),
    ("self_attn", "attn"),
    ("encoder_attn", "cross_attn"),
    ("q_proj", "query"),
    ("k_proj", "key"),
    ("v_proj", "value"),
    ("out_proj", "out"),
    ("fc1", "mlp1"),
    ("fc2", "mlp2"),
    ("embed_tokens", "token_embedding"),
    ("embed_positions.weight", "positional_embedding"),
];
