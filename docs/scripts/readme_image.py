"""Draw the image of the README: the top of a real report next to the block diagram of a residual network.

    python docs/scripts/readme_image.py

Needs Chromium. It trains on the bundled digits in a temporary folder and writes docs/assets/readme.png.
"""

import subprocess
import tempfile
from pathlib import Path

from PIL import Image

import skipway as sw

TARGET = Path(__file__).parents[1] / "assets" / "readme.png"
REPORT_SIZE, DIAGRAM_SIZE = (1180, 860), (880, 860)  # pixels
COLORS = 128  # of the palette, which keeps the file small


def screenshot(page: Path, size: tuple[int, int]) -> Image.Image:
    """Return a page as Chromium shows it in a window of `size` pixels."""
    target = page.with_suffix(".png")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    window = f"--window-size={size[0]},{size[1]}"
    command = ["chromium", *options, window, f"--screenshot={target}", page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True)
    return Image.open(target).convert("RGB")


def diagram_page(folder: Path, height: int) -> Path:
    """Write a page with the block diagram of a small residual network, `height` pixels high."""
    network = sw.create_model("resnet20", layers=[1, 1, 1])
    svg = sw.probe.diagram(network, (1, 3, 32, 32))
    page = folder / "diagram.html"
    page.write_text(f"<style>body{{margin:0}} svg{{height:{height}px;width:auto;display:block}}</style>{svg}")
    return page


def main() -> None:
    """Train, take both screenshots and write the image."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run = sw.train("digits", output=folder)
        report = screenshot(run.report, REPORT_SIZE)
        diagram = screenshot(diagram_page(folder, DIAGRAM_SIZE[1]), DIAGRAM_SIZE)
        image = Image.new("RGB", (report.width + diagram.width, report.height), "white")
        image.paste(report, (0, 0))
        image.paste(diagram, (report.width, 0))
        image.quantize(COLORS).save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
