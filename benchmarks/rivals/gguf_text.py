#!/usr/bin/env python3
"""The text part of a checkpoint from checkpoint.py as GGUF, quantised by llama.cpp: for its speed, not for answers
(the rows of the query and key matrices stay in Hugging Face's order).

usage: gguf_text.py CHECKPOINT_FOLDER OUT.gguf [TYPE]         TYPE: Q4_0 (default), Q8_0, ..."""
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


def write(folder, path):
    with open(os.path.join(folder, "config.json")) as file:
        config = json.load(file)
    config = config.get("text_config", config)
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
    for name, values in tensors(folder):
        if (new := renamed(name)) is None:
            continue
        if values.ndim == 1:
            out.add_tensor(new, (values.astype(np.uint32) << 16).view(np.float32))
        else:
            out.add_tensor(new, values.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def main():
    folder, path = sys.argv[1:3]
    kind = sys.argv[3] if len(sys.argv) > 3 else "Q4_0"
    floats = path + ".bf16"
    write(folder, floats)
    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + kind)
    how.nthread = 2
    assert llama_cpp.llama_model_quantize(floats.encode(), path.encode(), ctypes.byref(how)) == 0
    os.remove(floats)


main()
