"""A page of the report in headless Chromium, without a network: what it shows, and what its console says."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", "--hide-scrollbars")
BEFORE = """<script>
const said = [];
addEventListener("error", (event) => said.push(String(event.message || event.target.src)), true);
addEventListener("unhandledrejection", (event) => said.push(String(event.reason)));
const own = console.error;
console.error = (...words) => { said.push(words.join(" ")); own(...words); };
</script>"""
# `found` is what a page's own script gives.
AFTER = """<script>
addEventListener("load", async () => {
  const wait = () => new Promise((done) => setTimeout(done, 500));
  await wait();
  let found = {};
  try { found = await (async () => {%s})(); } catch (error) { said.push(String(error)); }
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = JSON.stringify({said, ...found});
  document.body.append(out);
});
</script>"""
RESULTS = """
  const shown = {}, top = document.querySelector("h1.title").getBoundingClientRect().top;
  const graph = document.querySelectorAll("canvas, svg.marks").length;
  for (const [path, result] of Object.entries(results)) {
    const image = path.endsWith(".png");
    app.setView({content: image ? "img" : "html", contentPath: result.data_uri});
    await wait();
    const found = [...document.querySelectorAll(image ? "img" : "iframe")].find((e) => e.src == result.data_uri);
    const box = found ? found.getBoundingClientRect() : {width: 0, height: 0};
    shown[path] = [box.width, box.height, found && image ? found.naturalWidth : 0];
  }
  return {shown, graph, top};
"""


def opened(page: Path, folder: Path, script: str = RESULTS) -> dict[str, Any]:
    """`said`: errors, beside what `script` returns; of a report `shown`, of every result [width, height, the image's
    own width] in pixels when it is viewed, and of the first view `graph`, its drawings, and `top`, where its title
    is."""
    watched = folder / "watched.html"
    before, end, after = page.read_text(encoding="utf-8").rpartition("</html>")
    text = before.replace("<head>", "<head>" + BEFORE, 1) + AFTER % script + end + after
    watched.write_text(text, encoding="utf-8")
    asked = (f"--user-data-dir={folder / 'profile'}", "--window-size=1280,400", "--virtual-time-budget=60000")
    command = [str(CHROMIUM), *FLAGS, *asked, "--dump-dom", watched.as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=180)
    found = re.search(r'<pre id="found">(.*?)</pre>', ended.stdout, re.S)
    assert found, ended.stderr[-2000:]
    return dict(json.loads(html.unescape(found[1])))
