#!/usr/bin/env python3
"""A checkpoint of a published model's shapes with random bfloat16 weights: speed does not depend on the values.

usage: checkpoint.py smolvlm-256m|qwen2.5-1.5b FOLDER

Runs with transformers 5 and with 4.57, the newest that OpenVINO's exporter takes."""
import os
import sys

import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = ["the quick brown fox jumps over the lazy dog", "a picture of two dogs and a house", "describe this picture"]


def tokenizer(specials, **names):
    """A byte-level BPE of a few merges: prompts of any length can be made with it, and nothing is downloaded."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=320, special_tokens=specials, initial_alphabet=alphabet))
    return t.PreTrainedTokenizerFast(tokenizer_object=bpe, **names)


def smolvlm():
    cells = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
    specials = ["<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>"]
    names = tokenizer(specials + cells, bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<|im_end|>")
    config = t.SmolVLMConfig(
        vision_config=dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                           image_size=512, patch_size=16),
        text_config=dict(model_type="llama", hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                         num_attention_heads=9, num_key_value_heads=3, head_dim=64, vocab_size=49280,
                         max_position_embeddings=8192, rope_theta=100000, bos_token_id=0, eos_token_id=2, pad_token_id=1),
        scale_factor=4, image_token_id=names.convert_tokens_to_ids("<image>"), tie_word_embeddings=False, pad_token_id=1)
    images = t.SmolVLMImageProcessor(size={"longest_edge": 512}, max_image_size={"longest_edge": 512},
                                     do_resize=True, do_image_splitting=False)
    processor = t.SmolVLMProcessor(images, names, video_processor=t.SmolVLMVideoProcessor(), image_seq_len=64)
    return t.SmolVLMForConditionalGeneration(config), processor


def qwen():
    names = tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>", pad_token="<|endoftext|>")
    names.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    config = t.Qwen2Config(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
                           num_key_value_heads=2, vocab_size=151936, max_position_embeddings=32768, rope_theta=1e6,
                           rms_norm_eps=1e-6, tie_word_embeddings=True, bos_token_id=0, eos_token_id=2)
    return t.Qwen2ForCausalLM(config), names


def main():
    name, folder = sys.argv[1:3]
    os.makedirs(folder, exist_ok=True)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model, processor = {"smolvlm-256m": smolvlm, "qwen2.5-1.5b": qwen}[name]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    print(f"{name}: {sum(weight.numel() for weight in model.parameters()) / 1e6:.1f} M numbers in {folder}")


main()
