#!/usr/bin/env python3
"""The text part of a checkpoint from checkpoint.py as GGUF, quantised by llama.cpp: for its speed, not for answers
(the rows of the query and key matrices stay in Hugging Face's order).

usage: gguf_text.py CHECKPOINT_FOLDER OUT.gguf [TYPE]         TYPE: Q4_0 (default), Q8_0, ...
       gguf_text.py --random qwen2.5-3b OUT.gguf              Q4_0 of a published size from random bits, without a checkpoint"""
import ctypes
import json
import os
import sys

import gguf
import llama_cpp
import numpy as np

LAYER = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
RANDOM = {"qwen2.5-3b": dict(model_type="qwen2", hidden_size=2048, intermediate_size=11008, num_hidden_layers=36,
                             num_attention_heads=16, num_key_value_heads=2, vocab_size=151936, rms_norm_eps=1e-6)}
OUTER = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}


def tensors(folder):
    """Name and bfloat16 numbers (as uint16) of every tensor; safetensors' own reader would need torch for these."""
    path = os.path.join(folder, "model.safetensors")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    data = np.memmap(path, np.uint8, "r", offset=8 + length)
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["dtype"] == "BF16", (name, entry["dtype"])
            begin, end = entry["data_offsets"]
            yield name, data[begin:end].view(np.uint16).reshape(entry["shape"])


def renamed(name):
    """llama.cpp's name; None for what is not of the text part."""
    if any(part in name for part in ("vision", "visual", "connector")):
        return None
    name = name.split("text_model.")[-1].removeprefix("model.")
    if name in OUTER:
        return OUTER[name]
    _, layer, rest = name.split(".", 2)
    stem, leaf = rest.rsplit(".", 1)
    return f"blk.{layer}.{LAYER[stem]}.{leaf}"


def write(config, tensors, path):
    """`tensors`: llama.cpp's name, numbers or bytes, and the type that bytes stand for."""
    out = gguf.GGUFWriter(path, config["model_type"])
    heads, vocab = config["num_attention_heads"], config["vocab_size"]
    out.add_context_length(8192)
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(config["num_key_value_heads"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_rope_freq_base(1e5)
    out.add_rope_dimension_count(config["hidden_size"] // heads)
    out.add_vocab_size(vocab)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list([f"t{idx}" for idx in range(vocab)])
    out.add_token_types([1] * vocab)
    out.add_token_merges(["t 0"])
    out.add_bos_token_id(0)
    out.add_eos_token_id(2)
    for name, values, kind in tensors:
        out.add_tensor(name, values, raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def of_checkpoint(folder):
    for name, values in tensors(folder):
        if (new := renamed(name)) is None:
            continue
        if values.ndim == 1:
            yield new, (values.astype(np.uint32) << 16).view(np.float32), None
        else:
            yield new, values.view(np.uint8), gguf.GGMLQuantizationType.BF16


def of_random_bits(config):
    """A Qwen2 whose output layer is the embedding, as llama.cpp quantises it: Q4_0, and Q6_K where tokens are."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    keys = width // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "token_embd.weight", random_blocks(config["vocab_size"], width, 256, 210, 208), gguf.GGMLQuantizationType.Q6_K
    yield "output_norm.weight", np.ones(width, np.float32), None
    shapes = {"attn_q": (width, width), "attn_k": (keys, width), "attn_v": (keys, width), "attn_output": (width, width),
              "ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
    for layer in range(config["num_hidden_layers"]):
        for norm in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{norm}.weight", np.ones(width, np.float32), None
        for name, rows in (("attn_q", width), ("attn_k", keys), ("attn_v", keys)):
            yield f"blk.{layer}.{name}.bias", np.zeros(rows, np.float32), None
        for name, (rows, columns) in shapes.items():
            yield f"blk.{layer}.{name}.weight", random_blocks(rows, columns, 32, 18, 0), gguf.GGMLQuantizationType.Q4_0


def random_blocks(rows, columns, per_block, size, scale_at):
    """Blocks of `size` random bytes for `per_block` numbers, with a small scale (float16) where one lies."""
    blocks = np.random.default_rng(rows).integers(0, 256, (rows, columns // per_block, size), np.uint8)
    scale = 1 / (8 if per_block == 32 else 2048) / columns ** 0.5
    blocks[:, :, scale_at:scale_at + 2] = np.array([scale], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def quantise(floats, path, kind):
    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + kind)
    how.nthread = 2
    assert llama_cpp.llama_model_quantize(floats.encode(), path.encode(), ctypes.byref(how)) == 0
    os.remove(floats)


def main():
    if sys.argv[1] == "--random":
        write(RANDOM[sys.argv[2]], of_random_bits(RANDOM[sys.argv[2]]), sys.argv[3])
        return
    folder, path = sys.argv[1:3]
    with open(os.path.join(folder, "config.json")) as file:
        config = json.load(file)
    write(config.get("text_config", config), of_checkpoint(folder), path + ".bf16")
    quantise(path + ".bf16", path, sys.argv[3] if len(sys.argv) > 3 else "Q4_0")


main()
