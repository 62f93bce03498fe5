"""Every kind of image is turned into upright RGB, or refused saying why."""

import base64
import io
import os
from pathlib import Path

import numpy
import pytest
from PIL import EpsImagePlugin, Image

from lmflow.errors import DataError
from lmflow_multimodal.images import check, check_marks, decode, locate, open_image


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def corner(data: bytes) -> tuple[int, ...]:
    pixel = decode(data, "it").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel


def test_modes_become_rgb():
    assert corner(encoded(Image.new("RGB", (2, 2), (10, 20, 30)))) == (10, 20, 30)
    assert corner(encoded(Image.new("L", (2, 2), 77))) == (77, 77, 77)
    assert corner(encoded(Image.new("1", (2, 2), 1))) == (255, 255, 255)
    assert corner(encoded(Image.new("CMYK", (2, 2), (0, 0, 0, 0)), "TIFF")) == (255, 255, 255)
    palette = Image.new("RGB", (2, 2), (200, 0, 0)).quantize(4)
    assert palette.mode == "P"
    assert corner(encoded(palette)) == (200, 0, 0)


def test_cmyk_jpeg():
    red, green, blue = corner(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert red > 240
    assert max(green, blue) < 15


def test_greys_of_sixteen_bits_are_scaled():
    grey = Image.fromarray(numpy.full((2, 2), 32768, dtype=numpy.uint16))
    assert corner(encoded(grey)) == (128, 128, 128)


def test_transparent_stands_on_white():
    assert corner(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 0)))) == (255, 255, 255)
    assert corner(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 255)))) == (255, 0, 0)
    half = corner(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 128))))
    assert half == (255, 127, 127)  # 255 * (1 - 128/255) = 127
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([0, 0, 0] * 256)
    assert corner(encoded(palette, transparency=0)) == (255, 255, 255)


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (4, 2), "white")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise: the top left goes to the top right
    upright = decode(encoded(image, exif=exif), "it")
    assert upright.size == (2, 4)
    assert upright.getpixel((1, 0)) == (255, 0, 0)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    assert corner(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == (255, 0, 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"not an image", "in no format that can be read"),
        (encoded(Image.effect_noise((64, 64), 50))[:1500], "is damaged"),
        (encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")[:1500], "is damaged"),
        (encoded(Image.new("1", (9000, 8000))), "9000 x 8000 pixels"),
        (encoded(Image.new("1", (30000, 30000))), "scale it down"),
        (encoded(Image.new("1", (1, 500))), "too thin"),
    ],
)
def test_refused(data: bytes, message: str):
    with pytest.raises(DataError, match=f"sun.png.*{message}"):
        decode(data, "sun.png")


def test_missing_names_the_nearest(tmp_path: Path, images: dict[str, str]):
    with pytest.raises(DataError, match=r"rad\.png does not exist; did you mean red\.png"):
        open_image(images["red"].replace("red", "rad"))
    with pytest.raises(DataError, match="nor does the folder"):
        check(str(tmp_path / "no" / "where.png"))
    with pytest.raises(DataError, match="is no file"):
        check(str(tmp_path))


@pytest.mark.parametrize("name", ["/dev/zero", "fifo"])
def test_what_never_ends_is_no_file(name: str, tmp_path: Path):
    path = tmp_path / name
    if name == "fifo":
        os.mkfifo(path)
    with pytest.raises(DataError, match="is no file"):
        open_image(str(path))


def test_a_file_without_end_is_no_image(tmp_path: Path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(500_000_001)
    with pytest.raises(DataError, match="has 500,000,001 bytes"):
        open_image(str(tmp_path / "a.png"))


def test_no_reader_starts_an_outside_program(monkeypatch: pytest.MonkeyPatch):
    """Pillow reads PostScript by starting Ghostscript, whatever the file is called."""
    Image.init()
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    with pytest.raises(DataError, match="in no format that can be read"):
        decode(encoded(Image.new("RGB", (4, 4)), "EPS"), "sun.png")


def test_paths_stay_in_the_folder_of_the_images(tmp_path: Path):
    inside = {"a.png": "a.png", "b/../a.png": "b/../a.png", str(tmp_path / "c.png"): "c.png", "~/a.png": "~/a.png"}
    for reference, found in inside.items():
        assert locate(reference, tmp_path, allow_outside=False) == str(tmp_path / found)
    for reference in ("../a.png", "b/../../a.png", "/etc/passwd", "file:///etc/passwd"):
        with pytest.raises(DataError, match=r"lies outside .*--data\.image_folder.*--data\.allow_outside true"):
            locate(reference, tmp_path, allow_outside=False)
    assert locate("/etc/a.png", tmp_path) == "/etc/a.png"


def test_check_sees_a_file_that_has_changed(tmp_path: Path):
    file = tmp_path / "a.png"
    file.write_bytes(b"broken")
    with pytest.raises(DataError):
        check(str(file))
    Image.new("RGB", (3, 3)).save(file)
    check(str(file))


def test_references(tmp_path: Path):
    assert locate("a.png", tmp_path) == str(tmp_path / "a.png")
    assert locate("/b.png", tmp_path) == "/b.png"
    assert locate("file:///b.png", tmp_path) == "/b.png"
    with pytest.raises(DataError, match="download the image"):
        locate("https://example.org/a.png", tmp_path)
    uri = "data:image/png;base64," + base64.b64encode(encoded(Image.new("RGB", (2, 2), "red"))).decode()
    assert locate(uri, tmp_path) == uri
    assert open_image(uri).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(DataError, match="not data:image"):
        open_image("data:image/png,abc")
    with pytest.raises(DataError, match="not base64"):
        open_image("data:image/png;base64,a*b")


def test_marks():
    check_marks("a <image> b <image>", ["x", "y"], "here")
    with pytest.raises(DataError, match="here: 1 <image> in the text and 2 images"):
        check_marks("a <image>", ["x", "y"], "here")
