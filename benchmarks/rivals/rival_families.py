#!/usr/bin/env python3
"""transformers on a published model's shapes with random weights: those that `ocelli bench --random-weights` has.

usage: rival_families.py NAME PRECISION THREADS PROMPT_TOKENS NEW_TOKENS RUNS BEAMS

NAME: qwen2.5-vl-3b, fastvlm-0.5b, blip-base or blip2-opt-2.7b; PRECISION: bf16 or fp32; PROMPT_TOKENS: those besides the
picture's; BEAMS above 1: a search with so many, too. The time to the first token begins with a picture in memory: preparing
it counts, as it does for ocelli. FastVLM's tower needs timm."""
import sys
import time
from functools import partial

import torch
import transformers as t

from random_weights import build, published
from shared import answers, ids, picture, report


class Qwen25VL:
    """448 x 448 pixels: 16 x 16 tokens."""
    model, image, side, vision = t.Qwen2_5_VLForConditionalGeneration, 151655, 448, 256
    config = t.Qwen2_5_VLConfig
    processor = t.Qwen2VLImageProcessor

    @staticmethod
    def more(tokens):
        return dict(mm_token_type_ids=(tokens == Qwen25VL.image).int())


class FastVLM:
    """The tower's 1024 x 1024 pixels, 16 x 16 tokens."""
    model, image, side, vision = t.FastVlmForConditionalGeneration, 151646, 1024, 256

    @staticmethod
    def config(**settings):
        names = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                 "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "tie_word_embeddings"]
        text = dict(model_type="qwen2", **{name: settings[name] for name in names})
        vision = dict(model_type="timm_wrapper", architecture="fastvit_mci3", do_pooling=True, num_classes=0,
                      hidden_size=settings["mm_hidden_size"], model_args={"inference_mode": True})
        return t.FastVlmConfig(text_config=text, vision_config=vision, image_token_index=FastVLM.image, image_seq_length=256,
                               tie_word_embeddings=settings["tie_word_embeddings"])

    @staticmethod
    def processor():
        return t.CLIPImageProcessor(size={"shortest_edge": 1024}, crop_size=1024, image_mean=[0.0] * 3, image_std=[1.0] * 3)


class Blip:
    """Captions; the text sees the picture through cross-attention. The last token of a prompt is dropped by `generate`."""
    model, config, image, side, vision = t.BlipForConditionalGeneration, t.BlipConfig, None, 384, 1
    processor = t.BlipImageProcessor


class Blip2:
    """A picture is 32 tokens."""
    model, config, image, side, vision = t.Blip2ForConditionalGeneration, t.Blip2Config, 50265, 224, 32
    processor = t.BlipImageProcessor


FAMILIES = {"qwen2.5-vl-3b": Qwen25VL, "fastvlm-0.5b": FastVLM, "blip-base": Blip, "blip2-opt-2.7b": Blip2}

name, precision, (threads, tokens, new, runs, beams) = sys.argv[1], sys.argv[2], map(int, sys.argv[3:8])
family, dtype = FAMILIES[name], {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
torch.set_num_threads(threads)
start = time.perf_counter()
config = family.config(**published(name))
model = build(lambda: family.model._from_config(config, dtype=dtype), dtype)
# Nothing ends an answer early.
for settings in (model.generation_config, getattr(getattr(model, "language_model", None), "generation_config", None)):
    if settings is not None:
        settings.eos_token_id = None
processor = family.processor(**(published(name, "preprocessor_config.json") if family is not FastVLM else {}))
load = time.perf_counter() - start


def inputs(seed):
    text = torch.tensor(ids(seed, tokens, 20_000))[None]
    pictured = torch.full((1, family.vision), family.image or 100)
    return picture(seed, family.side), torch.cat([pictured, text], 1)


def generate(num_beams, given, stamps):
    image, text = given
    with torch.inference_mode():
        seen = processor(images=image, return_tensors="pt")
        seen["pixel_values"] = seen["pixel_values"].to(dtype)
        more = family.more(text) if hasattr(family, "more") else {}
        model.generate(**seen, **more, input_ids=text, attention_mask=torch.ones_like(text), max_new_tokens=new + 1,
                       min_new_tokens=new + 1, do_sample=False, num_beams=num_beams, logits_processor=[stamps])


def measured(num_beams):
    prompt_tokens = tokens + (family.vision if family.image else 0)
    return answers(inputs, partial(generate, num_beams), new, prompt_tokens, runs)


figures = measured(1)
if beams > 1:
    search = measured(beams)
    figures.update(beam_ttft_ms=search["ttft_ms"], beam_tokens_per_second=search["tokens_per_second"])
report(f"transformers {t.__version__}", precision, load, figures)
