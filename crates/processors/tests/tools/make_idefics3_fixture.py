"""Writes ../fixtures/idefics3.json: what transformers' Pillow processor makes of test pictures.

Run with transformers 5.23, torch, Pillow 13 and NumPy: python make_idefics3_fixture.py <folder of the tiny idefics3
model>. The folder lends its tokenizer for the prompt of several pictures.
Each case: preprocessor_config.json, seed and size of the picture (see common.noise), and the result: tiles, rows,
columns, CRC-32 of the float32 pixel values, and a few of them.
"""

import json
import pathlib
import sys
import zlib

import numpy as np
from common import noise
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil


def config(tile, longest, **more):
    return {"size": {"longest_edge": longest}, "max_image_size": {"longest_edge": tile}, **more}


SMALL = config(64, 128)
REAL = config(512, 2048)
CASES = [
    # The tiny models' settings, every shape.
    *[(SMALL, size) for size in [(150, 90), (90, 150), (1, 1), (3, 2), (64, 64), (128, 128), (129, 127), (800, 100),
                                 (100, 800), (1000, 1), (1, 1000), (333, 334), (334, 333), (65, 17), (1023, 767)]],
    # SmolVLM-256M and 500M, SmolVLM-2.2B, the class defaults.
    *[(REAL, size) for size in [(640, 480), (480, 640), (512, 512), (31, 7), (300, 2400), (2400, 300), (4500, 3000)]],
    *[(config(384, 1536), size) for size in [(640, 480), (1000, 1000)]],
    ({}, (500, 300)),
    # Sizes beyond the absolute maximum, and tiles that do not divide the longest edge.
    (config(512, 5000), (1200, 40)), (config(500, 5000), (40, 1200)), (config(100, 250), (333, 222)),
    # Each flag.
    (config(64, 128, do_image_splitting=False), (150, 90)),
    (config(512, 2048, do_image_splitting=False), (640, 480)),
    (config(64, 128, do_resize=False), (150, 90)), (config(64, 128, do_resize=False), (64, 64)),
    (config(64, 128, do_resize=False), (20, 70)), (config(64, 128, do_resize=False, do_image_splitting=False), (50, 70)),
    (config(64, 128, do_rescale=False), (150, 90)), (config(64, 128, do_normalize=False), (150, 90)),
    (config(64, 128, do_rescale=False, do_normalize=False), (150, 90)), (config(64, 128, do_pad=False), (150, 90)),
    (config(64, 64), (150, 90)), (config(64, 64), (20, 20)),
    # Other numbers.
    (config(64, 128, image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711]),
     (150, 90)),
    (config(64, 128, rescale_factor=0.01), (150, 90)),
    *[(config(64, 128, resample=number), (150, 90)) for number in range(6)],
    ({"size": {"height": 70, "width": 130}, "max_image_size": {"longest_edge": 64}}, (150, 90)),
]


def run(index, settings, size):
    seed = 5000 + index
    kind = [Idefics3ImageProcessorPil, SmolVLMImageProcessorPil][index % 2]
    picture = Image.fromarray(noise(seed, *size))
    result = kind(**settings)([[picture]], return_tensors="np", return_row_col_info=True)
    values = np.ascontiguousarray(result["pixel_values"][0].astype(np.float32))
    flat = values.reshape(-1)
    at = [0, len(flat) // 3, len(flat) // 2, len(flat) - 1]
    return {
        "config": settings, "seed": seed, "size": size, "shape": values.shape,
        "rows": int(result["rows"][0][0]), "cols": int(result["cols"][0][0]),
        "crc32": zlib.crc32(flat.tobytes()), "samples": [[i, float(flat[i])] for i in at],
    }


def prompt(folder):
    """Pictures of three sizes in one prompt: one that is split both ways, a wide one, and one that is a single tile."""
    processor = Idefics3Processor(Idefics3ImageProcessorPil(**SMALL), AutoTokenizer.from_pretrained(folder), image_seq_len=4)
    single = Idefics3Processor(Idefics3ImageProcessorPil(**config(64, 64)), processor.tokenizer, image_seq_len=4)
    sizes = [(150, 90), (800, 100), (90, 150)]
    pictures = [Image.fromarray(noise(77 + i, *size)) for i, size in enumerate(sizes)]
    text = "<|im_start|>User:<image>one<image> two <image>three?<end_of_utterance>\nAssistant:"
    both = {}
    for name, kind in [("split", processor), ("single", single)]:
        result = kind(text=text, images=[pictures], return_tensors="np")
        both[name] = {"ids": result["input_ids"][0].tolist(), "crc32": zlib.crc32(result["pixel_values"].tobytes())}
    return {"text": text, "sizes": sizes, "first_seed": 77, **both}


def main():
    cases = [run(index, *case) for index, case in enumerate(CASES)]
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    path = pathlib.Path(__file__).parent.parent / "fixtures" / "idefics3.json"
    path.write_text(f'{{"prompt":{json.dumps(prompt(sys.argv[1]))},\n"cases":[\n{lines}\n]}}\n')


main()
