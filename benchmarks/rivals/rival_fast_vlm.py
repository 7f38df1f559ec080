#!/usr/bin/env python3
"""FastVLM in transformers with random bfloat16 weights of a published size; needs timm.

usage: rival_fast_vlm.py 0.5b|1.5b THREADS NEW_TOKENS

The picture has the tower's 1024 pixels and takes 256 tokens, 20 others surround it. Peers: `ocelli bench --random-weights
fastvlm-0.5b --image-size 1024 --prompt-tokens 20 --quant q4`."""
import sys
import time

import torch
import transformers as t

from shared import answers, ids, report

TEXT = {
    "0.5b": dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14),
    "1.5b": dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12),
}
IMAGE, OTHERS = 151646, 20

size, (threads, new) = sys.argv[1], map(int, sys.argv[2:4])
torch.set_num_threads(threads)
torch.set_default_dtype(torch.bfloat16)
start = time.perf_counter()
text = dict(model_type="qwen2", vocab_size=151936, num_key_value_heads=2, rope_theta=1e6, tie_word_embeddings=True,
            bos_token_id=151643, eos_token_id=None, **TEXT[size])
vision = dict(model_type="timm_wrapper", architecture="fastvit_mci3", do_pooling=True, hidden_size=3072, num_classes=0,
              model_args={"inference_mode": True})
config = t.FastVlmConfig(text_config=text, vision_config=vision, image_token_index=IMAGE, image_seq_length=256,
                         tie_word_embeddings=True)
model = t.FastVlmForConditionalGeneration(config).eval()
load = time.perf_counter() - start


def inputs(seed):
    words = ids(seed, OTHERS, 151643).tolist()
    tokens = torch.tensor([words[:4] + [IMAGE] * 256 + words[4:]])
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (1, 3, 1024, 1024), generator=generator).to(torch.bfloat16) / 255
    return dict(input_ids=tokens, attention_mask=torch.ones_like(tokens), pixel_values=pixels)


def generate(given, stamps):
    with torch.inference_mode():
        model.generate(**given, max_new_tokens=new + 1, min_new_tokens=new + 1, do_sample=False, logits_processor=[stamps])


report(f"transformers {t.__version__}", "bf16", load, answers(inputs, generate, new, OTHERS + 256))
