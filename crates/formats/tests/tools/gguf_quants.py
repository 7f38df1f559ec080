"""Writes a GGUF file to argv[1]: a tensor of random blocks of every type, and what the gguf package decodes it to."""

import sys

import gguf
import numpy as np

random = np.random.default_rng(1)
# Where the blocks of a type hold f16 numbers: random bits would make infinities.
HALVES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}

writer = gguf.GGUFWriter(sys.argv[1], "llama")
for name, halves in HALVES.items():
    kind = gguf.GGMLQuantizationType[name]
    _, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (6, 2, size), dtype=np.uint8)
    for at in halves:
        numbers = random.normal(0, 0.02, (6, 2, 1)).astype(np.float16)
        blocks[:, :, at : at + 2] = numbers.view(np.uint8)
    rows = blocks.reshape(6, 2 * size)
    writer.add_tensor(name, rows, raw_dtype=kind)
    writer.add_tensor(name + ".expected", gguf.quants.dequantize(rows, kind).astype(np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
