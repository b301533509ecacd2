"""Does anything that a model wrote run in answers.html? Asks a real browser, headless.

    python tests/browser.py [chromium]      the browser's command; not part of the test suite

Hostile strings stand in every field that data or a model fills. Each would set the page's title,
add an element or open an address if it were taken as anything but text.
"""
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data import report  # noqa: E402

HOSTILE = [
    "<script>document.title='run'</script>", "</script><script>document.title='run'</script>",
    "<img src=x onerror=\"document.title='run'\">", "<svg onload=\"document.title='run'\">",
    "<a href=\"javascript:document.title='run'\">x</a>", "<style>body{display:none}</style>",
    "<iframe src=\"javascript:parent.document.title='run'\"></iframe>", "<!--", "]]>", "{{DATA}}",
    "\u202eright to left\u2066", "\u2028", "' onmouseover='document.title=1' x='", "${1+1}", "\x00"]


def main():
    browser = sys.argv[1] if len(sys.argv) > 1 else "chromium"
    answers = []
    for text in HOSTILE:
        side = {"clean": text, "clean_verdict": text, "wrapped": text, "wrapped_verdict": text,
                "gave_in": True, "tokens": [[text, 0.5]]}
        chat = [{"role": "user", "content": text}]
        answers.append({"split": "unseen", "id": text, "answer": text, "clean_prompt": chat,
                        "wrapped_prompt": chat, "before": side, "after": side})
    results = {"config": {"model": HOSTILE[1], "task": HOSTILE[0], "steps": 1}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answers.html"
        path.write_text(report.page({"results": results, "answers": answers, "log": []}),
                        encoding="utf-8")
        dom = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000",
             "--dump-dom", path.as_uri()], capture_output=True, text=True, check=True).stdout
    title = re.search("<title>(.*?)</title>", dom)[1]
    body = dom.split("<main>")[1].split("</main>")[0]
    tags = re.findall(r"<[^>]*>", body)  # in text the browser writes "<" as "&lt;"
    elements = set(re.findall(r"<(\w+)", body))
    attributes = {name for tag in tags for name in re.findall(r' ([\w-]+)="', tag)}
    print(json.dumps({"strings": len(HOSTILE), "title": title, "elements": sorted(elements),
                      "attributes": sorted(attributes)}))
    inert = (title == "Answers before and after" and elements == {"div", "p", "b", "span"}
             and attributes == {"class", "style", "title"})
    if not inert or body.count('class="row"') != len(HOSTILE):
        raise SystemExit("something in the page is more than text")


if __name__ == "__main__":
    main()
