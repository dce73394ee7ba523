"""Pictures of the published dashboard, for README: `make pictures`."""

from __future__ import annotations

import argparse
from pathlib import Path
from urllib.parse import urlencode

from judge import browsing

WIDTH = 1100
MACHINE = "h100-sxm"
POINT = {"machine": MACHINE, "s_kv": "16384", "variant": "topk 2048"}
PAGES = {
    "history": ("history", {"op": "sparse_fwd", "implementation": "flash_dsa", "quantity": "tflops", **POINT}),
    "speedup": ("speedup", {"against": "flash_mla", **POINT}),
}


def main() -> None:
    """Takes them."""
    parser = argparse.ArgumentParser(prog="make pictures", description=__doc__)
    parser.add_argument("html", type=Path, help="folder of the site that `make publish` made")
    parser.add_argument("folder", type=Path, help="where to put the pictures")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with browsing.served(arguments.html) as address, browsing.launched() as browser:
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        for name, (html, query) in PAGES.items():
            page.goto(f"{address}/dashboard/{html}.html?{urlencode(query)}")
            page.wait_for_selector("body[data-ready]")
            picture = arguments.folder / f"{name}.png"
            chart = page.locator(".chart").first.bounding_box()  # the page down to where its tables begin
            clip = {"x": 0, "y": 0, "width": WIDTH, "height": chart["y"] + chart["height"] + 8}
            page.screenshot(path=picture, animations="disabled", clip=clip)
            print(picture)


if __name__ == "__main__":
    main()
