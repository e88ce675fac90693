"""Writes docs/report.png, the picture of a report in the README: python tools/screenshot.py [REPORT.html].

Without a report one is made of models/digits_resnet.onnx. Needs Chromium and Pillow.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "report.png"
WIDTH, HEIGHT = 1160, 1376  # of the page's part that is shown, in CSS pixels
MOST_BYTES = 300_000
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def report(folder: Path) -> Path:
    """Returns the report of a pruning with all that a report can show."""
    command = [
        sys.executable, "-m", "onnxprune", "models/digits_resnet.onnx", "--target", "macs=0.5",
        "--calib", "models/digits.npz", "--eval", "models/digits_test.npz", "--labels", "labels",
        "-o", str(folder / "digits_resnet.pruned.onnx"), "--report", str(folder / "report.html"), "-q",
    ]  # fmt: skip
    subprocess.run(command, check=True, cwd=ROOT)
    return folder / "report.html"


def photographed(page: Path, picture: Path, *, dark: bool) -> None:
    """Writes what Chromium shows of a page, at twice the density of its pixels."""
    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser is None:
        sys.exit("no Chromium is installed (Debian: apt-get install chromium)")
    theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=2",
        f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={picture}", *theme, page.resolve().as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def smaller(picture: Path) -> None:
    """Makes a picture small enough for a README: of a palette, and of fewer pixels if need be."""
    image = Image.open(picture).convert("RGB")
    for width in (image.width, 1740, 1450, WIDTH):
        resized = image.resize((width, image.height * width // image.width), Image.Resampling.LANCZOS)
        resized.quantize(128, dither=Image.Dither.NONE).save(picture, optimize=True)
        if picture.stat().st_size <= MOST_BYTES:
            return
    sys.exit(f"the picture has {picture.stat().st_size:,} bytes, more than {MOST_BYTES:,}")


def main() -> None:
    """Makes the report and its picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, nargs="?", help="a report to take instead")
    parser.add_argument("-o", "--output", type=Path, default=PICTURE)
    parser.add_argument("--dark", action="store_true", help="as those see it whose system is dark")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photographed(options.page or report(Path(folder)), options.output.resolve(), dark=options.dark)
    smaller(options.output)


if __name__ == "__main__":
    main()
