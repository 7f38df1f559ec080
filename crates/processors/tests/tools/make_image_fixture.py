"""Writes ../fixtures/images.json: small files of every kind, and the RGB pixels that they should decode to.

Run with Pillow 13 and NumPy: python make_image_fixture.py
The pixels are those of transformers' conversion to RGB (transparency composited on white) after EXIF orientation.
`tolerance` is 0 except for lossy formats, whose decoders may differ by a few levels.
"""

import io
import json
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

WIDTH, HEIGHT = 11, 7


def smooth():
    """A colour gradient: lossy codecs keep it, and no two corners are alike."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([40 + 18 * x, 30 + 25 * y, 220 - 9 * x - 8 * y], axis=-1).astype(np.uint8)


def rgba():
    opacity = (np.arange(WIDTH * HEIGHT) * 255 // (WIDTH * HEIGHT - 1)).reshape(HEIGHT, WIDTH, 1)
    return np.concatenate([smooth(), opacity.astype(np.uint8)], axis=-1)


def expected(image):
    image = ImageOps.exif_transpose(image)
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png16(samples, colour_type):
    """A 16-bit PNG, which Pillow does not write for RGB."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def main():
    rgb, alpha = Image.fromarray(smooth()), Image.fromarray(rgba())
    grey, grey_alpha = rgb.convert("L"), Image.fromarray(rgba()[..., [0, 3]])
    palette = rgb.quantize(16)
    files = {}

    def add(name, data, tolerance=0, pixels=None):
        pixels = expected(Image.open(io.BytesIO(data))) if pixels is None else Image.fromarray(pixels)
        files[name] = {
            "file": data.hex(), "width": pixels.width, "height": pixels.height,
            "tolerance": tolerance, "pixels": pixels.tobytes().hex(),
        }

    add("png rgb", saved(rgb, "PNG"))
    add("png rgba", saved(alpha, "PNG"))
    add("png grey", saved(grey, "PNG"))
    add("png grey alpha", saved(grey_alpha, "PNG"))
    add("png palette", saved(palette, "PNG"))
    add("png palette transparent", saved(palette, "PNG", transparency=3))
    add("png one bit", saved(grey.point(lambda v: 255 * (v > 120)).convert("1"), "PNG"))
    deep = smooth().astype(np.uint16) * 257 - 100
    add("png rgb 16", png16(deep, 2), pixels=(deep >> 8).astype(np.uint8))
    add("png grey 16", png16(deep[..., 0], 0), pixels=np.repeat((deep[..., :1] >> 8).astype(np.uint8), 3, axis=-1))
    add("jpeg", saved(rgb, "JPEG", quality=95), 4)
    add("jpeg 4:4:4", saved(rgb, "JPEG", quality=95, subsampling=0), 2)
    add("jpeg progressive", saved(rgb, "JPEG", quality=95, progressive=True), 4)
    add("jpeg grey", saved(grey, "JPEG", quality=95), 1)
    add("jpeg cmyk", saved(rgb.convert("CMYK"), "JPEG", quality=95), 6)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        add(f"jpeg orientation {orientation}", saved(rgb, "JPEG", quality=95, subsampling=0, exif=exif), 2)
        add(f"png orientation {orientation}", saved(rgb, "PNG", exif=exif))
    exif = Image.Exif()
    exif[0x0112] = 6
    add("webp orientation 6", saved(rgb, "WEBP", lossless=True, exif=exif))
    add("webp lossless", saved(rgb, "WEBP", lossless=True))
    add("webp lossless alpha", saved(alpha, "WEBP", lossless=True, exact=True))
    add("webp lossy", saved(rgb, "WEBP", quality=95), 8)
    add("gif", saved(palette, "GIF"))
    add("gif transparent", saved(palette, "GIF", transparency=3))
    add("gif animated", saved(palette, "GIF", save_all=True, append_images=[palette.rotate(180)], duration=50))
    add("bmp", saved(rgb, "BMP"))
    add("bmp palette", saved(palette, "BMP"))
    add("tiff", saved(rgb, "TIFF"))
    add("tiff lzw", saved(rgb, "TIFF", compression="tiff_lzw"))
    add("tiff deflate grey", saved(grey, "TIFF", compression="tiff_adobe_deflate"))
    path = pathlib.Path(__file__).parent.parent / "fixtures" / "images.json"
    path.write_text(json.dumps(files, indent=0) + "\n")


main()
