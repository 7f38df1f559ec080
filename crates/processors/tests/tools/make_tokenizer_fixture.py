"""Writes ../fixtures/tokenizers.json: folders without tokenizer.json, and what transformers' tokenizer classes make of them.

Run with transformers 5.23: python make_tokenizer_fixture.py
A case names the model in the repository's `fixtures` whose vocabulary and merges it has (the test writes them in the old
form, as `files` does here), and holds the other files, the class and the ids of every text, framed and bare.
"""

import json
import pathlib
import tempfile

import transformers

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
MODELS = pathlib.Path(__file__).parents[4] / "fixtures"

TEXTS = [
    "", " ", "describe this image in detail.", "Zwei  Bilder,\n\t1234 und 5,67 %", "I'll say it's WE'RE don't, they'd",
    " leading", "trailing  \n", "\n\n \n a\r\n\r\nb", "é e\u0301 ﬁ Ａ ½ ²", "你好，世界 кошка שלום नमस्ते", "🦀👨‍👩‍👧‍👦🇩🇪",
    "a\u00a0b\u200bc\u3000d", "__init__(self, x=3.14e-10)  # note", "don’t “quote” — dash…", "x" * 40, "12345678901234567890",
    "<|im_start|>user\nhi<|im_end|>", "a <|im_end|> b", "<|endoftext|><|endoftext|>", "<tool> <tool>x</tool>", "<Tool>",
    "</s>hi</s>", "<image><pad>", "<|en|><|transcribe|> hm", "[CLS] what's [MASK] this? [DEC]", "Naïve CAFÉ, unaffable!",
    "a\u0000b\ufffdc\ud7ff", "ＭＡＳＫ mask [MASK]",
]


def token(content, **flags):
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": content, **plain, **flags}


def decoder(*tokens):
    return {str(number): about for number, about in tokens}


ENDS = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
CASES = [
    # As FastVLM and Qwen2 are published.
    ("qwen2", "Qwen2Tokenizer", {"tokenizer_config.json": {**ENDS, "added_tokens_decoder": decoder(
        (420, token("<|endoftext|>")), (421, token("<|im_start|>")), (422, token("<|im_end|>")),
        (423, token("<tool>", special=False)), (424, token("</tool>", special=False, lstrip=True, normalized=True)),
    ), "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]},
        "added_tokens.json": {"<|endoftext|>": 420, "<|im_end|>": 422, "<|im_start|>": 421, "<tool>": 423, "</tool>": 424},
        "special_tokens_map.json": {"eos_token": token("<|im_end|>"), "pad_token": token("<|endoftext|>")}}),
    # As older versions of transformers saved it.
    ("qwen2", "Qwen2Tokenizer", {"tokenizer_config.json": {}, "added_tokens.json": {
        "<|im_end|>": 422, "<|endoftext|>": 420, "<|im_start|>": 421, "<tool>": 423},
        "special_tokens_map.json": {"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"}}),
    # Special tokens of the class alone.
    ("qwen2", "Qwen2TokenizerFast", {"tokenizer_config.json": {}}),
    # As OPT is published.
    ("blip2_opt", "GPT2Tokenizer", {"tokenizer_config.json": {
        "add_bos_token": True, "add_prefix_space": False, "bos_token": token("</s>", normalized=True),
        "eos_token": token("</s>", normalized=True), "unk_token": token("</s>", normalized=True), "pad_token": "<pad>"},
        "added_tokens.json": {"<pad>": 420, "</s>": 421}, "special_tokens_map.json": {
            "bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": token("<pad>", lstrip=True)}}),
    ("llama3", "GPT2Tokenizer", {"tokenizer_config.json": {"add_prefix_space": True}}),
    ("moondream2", "CodeGenTokenizer", {"tokenizer_config.json": {"added_tokens_decoder": decoder(
        (420, token("<|endoftext|>")), (421, token("  ", special=False, normalized=True)))}}),
    ("whisper", "WhisperTokenizer", {"tokenizer_config.json": {"added_tokens_decoder": decoder(
        *((420 + number, token(content)) for number, content in enumerate(
            ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"])))}}),
    ("blip_caption", "BertTokenizer", {"tokenizer_config.json": {"do_lower_case": True, "added_tokens_decoder": decoder(
        *((number, token(content)) for number, content in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])),
        (4, token("[MASK]", lstrip=True)), (210, token("[DEC]")))}}),
    ("instructblip/qformer_tokenizer", "BertTokenizerFast", {
        "tokenizer_config.json": {"do_lower_case": False, "tokenize_chinese_chars": False}}),
]


def files(model):
    """Vocabulary and merges in the old form."""
    model = json.loads((MODELS / model / "tokenizer.json").read_text())["model"]
    if model["type"] == "WordPiece":
        return {"vocab.txt": "".join(f"{token}\n" for token in sorted(model["vocab"], key=model["vocab"].get))}
    merges = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    return {"vocab.json": json.dumps(model["vocab"]), "merges.txt": "\n".join(merges) + "\n"}


def case(model, name, others):
    others["tokenizer_config.json"] = {"tokenizer_class": name, **others["tokenizer_config.json"]}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for file, content in [*files(model).items(), *((file, json.dumps(content)) for file, content in others.items())]:
            (folder / file).write_text(content)
        tokenizer = getattr(transformers, name).from_pretrained(folder)
        bare = [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
        # What Whisper's puts around a text is for training; the engine says by itself what it wants.
        framed = bare if name == "WhisperTokenizer" else [tokenizer(text).input_ids for text in TEXTS]
        back = [tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) for ids in bare]
        named = {role: getattr(tokenizer, role) for role in ("bos_token", "eos_token", "pad_token")}
    return {"model": model, "files": others, "bare": bare, "framed": framed, "back": back, "named": named}


made = {"made_with": f"transformers {transformers.__version__}", "texts": TEXTS, "cases": [case(*given) for given in CASES]}
(FIXTURES / "tokenizers.json").write_text(json.dumps(made, ensure_ascii=False, separators=(",", ":")) + "\n")
for made_case in made["cases"]:
    print(made_case["model"], made_case["named"], made_case["framed"][2][:6], sum(map(len, made_case["bare"])))
