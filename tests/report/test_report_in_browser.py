import json
import re
import shutil
from html import escape, unescape

import pytest
from fabricated_runs import Page, run_folder
from processes import run

from skipway.report import html

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --force-device-scale-factor=1 --window-size=1500,900"
)
# The page that measures holds the untouched report in frames of each width: the report's own policy stays in force.
MEASURE = """<!DOCTYPE html><body>FRAMES<pre id="out"></pre><script>
function visible(image) {
  const box = image.getBoundingClientRect(), card = image.parentElement.getBoundingClientRect();
  const low = side => Math.max(box[side], card[side]), high = side => Math.min(box[side], card[side]);
  return [low("left"), low("top"), high("right"), high("bottom")];
}
function measure(frame) {
  const page = frame.contentDocument, view = frame.contentWindow, images = [...page.images], hits = [], out = [];
  page.querySelectorAll("details").forEach(d => d.open = true);
  const boxes = images.map(visible), walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    if (!node.data.trim()) continue;
    const range = page.createRange(); range.selectNodeContents(node);
    const inBox = node.parentElement.closest(".scroll, pre");
    for (const r of range.getClientRects()) {
      const over = b => r.left < b[2] - 1 && r.right > b[0] + 1 && r.top < b[3] - 1 && r.bottom > b[1] + 1;
      if (boxes.some(over)) hits.push(node.data.slice(0, 40));
      if (!inBox && (r.right > view.innerWidth || r.left < 0)) out.push(node.data.slice(0, 40));
    }
  }
  const style = view.getComputedStyle(page.body);
  return {
    inner: view.innerWidth, scroll: page.documentElement.scrollWidth, height: page.documentElement.scrollHeight,
    charts: page.querySelectorAll("svg.chart").length,
    cut: [...page.querySelectorAll("svg.chart, .bars, .checks li, figcaption")].map(e => e.getBoundingClientRect())
      .filter(b => b.right > view.innerWidth || b.left < 0 || b.width < 100).length,
    images: images.length, empty: images.filter(i => !i.complete || !i.naturalWidth).length,
    thin: boxes.filter(b => b[2] - b[0] < 40).length,
    hits, out, ground: style.backgroundColor, ink: style.color,
    loaded: view.performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
  };
}
onload = () => {
  const found = [...document.querySelectorAll("iframe")].map(measure);
  document.getElementById("out").textContent = JSON.stringify(found);
};
</script></body>"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = run_folder(tmp_path_factory.mktemp("runs") / "digits-resnet20", skipped=130)
    return folder, Page(html.write(folder))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = run_folder(
        tmp_path_factory.mktemp("runs") / "hostile", num_classes=120, epochs=300, hostile=True, skipped=20
    )
    return folder, Page(html.write(folder))


def browse(page, tmp_path, *flags):
    """The DOM of a page after its scripts ran."""
    if BROWSER is None:
        pytest.skip(
            "no Chromium here: the report's layout is measured where chromium, chromium-browser or google-chrome is"
        )
    command = [BROWSER, *FLAGS.split(), *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    return run(*command, encoding="utf-8", check=True).stdout


def brightness(color):
    return sum(int(part) for part in re.findall(r"\d+", color)[:3]) / 3


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("which", ["finished", "hostile"])
def test_the_page_fits_a_desk_and_a_phone(which, theme, request, tmp_path):
    folder, page = request.getfixturevalue(which)
    source = escape((folder / "report.html").read_text(encoding="utf-8"))
    frames = "".join(
        f'<iframe style="border:0;width:{w}px;height:800px" srcdoc="{source}"></iframe>' for w in (1280, 360)
    )
    (tmp_path / "measure.html").write_text(MEASURE.replace("FRAMES", frames), encoding="utf-8")
    dark = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if theme == "dark" else []
    dom = browse(tmp_path / "measure.html", tmp_path, *dark)
    found = json.loads(unescape(re.search(r'<pre id="out">(.*?)</pre>', dom, re.S)[1]))
    assert [f["inner"] for f in found] == [1280, 360]
    for frame in found:
        assert frame["scroll"] <= frame["inner"], "the page scrolls sideways"
        assert frame["images"] == len(page.all("img")) and frame["empty"] == 0 and frame["thin"] == 0
        assert frame["charts"] == len(page.all("svg")) > 3 and frame["cut"] == 0
        assert frame["hits"] == [] and frame["out"] == [] and frame["loaded"] == []
        assert frame["height"] > 2000
        contrast = brightness(frame["ink"]) - brightness(frame["ground"])
        assert contrast > 150 if theme == "dark" else contrast < -150


@pytest.mark.slow
def test_a_script_that_slips_into_the_page_does_not_run(finished, tmp_path):
    script = "<script>document.body.id = 'it' + 'ran'</script></body>"
    source = (finished[0] / "report.html").read_text(encoding="utf-8").replace("</body>", script)
    (tmp_path / "guarded.html").write_text(source, encoding="utf-8")
    (tmp_path / "open.html").write_text(source.replace("Content-Security-Policy", "x"), encoding="utf-8")
    assert 'id="itran"' not in browse(tmp_path / "guarded.html", tmp_path)
    assert 'id="itran"' in browse(tmp_path / "open.html", tmp_path)
