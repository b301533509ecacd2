"""Does anything that a model wrote run in data/answers.html? Asks a real browser, headless.

    python tests/browser.py [chromium]      the browser's command

Hostile strings stand in every field that data or a model fills. Each would set the title,
add an element or open an address if the page took it as anything but text.
"""
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

HOSTILE = [
    "<script>document.title='run'</script>", "</script><script>document.title='run'",
    "<img src=x onerror=\"document.title='run'\">", "<svg onload=\"document.title='run'\">",
    "<a href=\"javascript:document.title='run'\">x</a>", "<style>*{display:none}</style>",
    "<iframe src=\"javascript:parent.document.title='run'\"></iframe>", "<!--",
    "\u202eright to left\u2066", "\u2028", "' onmouseover='document.title=1' x='", "${1+1}"]
EXPECTED = ({"p", "b", "span", "div"}, {"class", "style", "title"},  # elements, attributes
            "Answers before and after")

def page_of(texts, out):
    """Write a copy of the page that opens a run whose data and answers are these texts."""
    side = {"unseen": {"kl": {"value": 0.5, "low": 0, "high": 1, "n": 2}}}
    answers = [{"split": "unseen", "answer": x, "suggested": x, **dict.fromkeys(
        ("clean_prompt", "wrapped_prompt"), [{"role": x, "content": x}]), **dict.fromkeys(
        ("before", "after"), {"clean": x, "wrapped": x, "wrapped_verdict": x,
                              "tokens": [[x, 0.5]]})} for x in texts]
    files = {"<img src=x onerror=run()>.jsonl": "\n".join(map(json.dumps, answers)),
             "results.json": json.dumps({"before": side, "after": side}, indent=1)}
    files = json.dumps([*files.items()]).replace("<", "\\u003c")
    script = f"<script>add({files}.map(([name, text]) => new File([text], name)))</script>"
    page = (ROOT / "data/answers.html").read_text(encoding="utf-8") + script
    (Path(out) / "page.html").write_text(page, encoding="utf-8")
    return (Path(out) / "page.html").as_uri()

def main():
    with tempfile.TemporaryDirectory() as folder:
        dom = subprocess.run(
            [*(sys.argv[1:] or ["chromium"]), "--headless", "--no-sandbox", "--disable-gpu",
             "--virtual-time-budget=3000", "--dump-dom", page_of(HOSTILE, folder)],
            capture_output=True, text=True, check=True).stdout
    body = dom.split("<main>")[1].split("</main>")[0]
    tags = re.findall(r"<[^>]*>", body)  # in text the browser writes "<" as "&lt;"
    names = {x for tag in tags for x in re.findall(r' ([\w-]+)="', tag)}
    found = {*re.findall(r"<(\w+)", body)}, names
    found = *found, re.search("<title>(.*?)</title>", dom)[1]
    print(len(HOSTILE), *found)
    if found != EXPECTED or body.count('class="row"') != len(HOSTILE):
        raise SystemExit("more than text in the page, or an answer is missing")

if __name__ == "__main__":
    main()
