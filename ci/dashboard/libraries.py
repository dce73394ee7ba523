"""JavaScript and style sheets of others: pinned packages of the npm registry, fetched when a site is made.

`npm pack` fetches, so the registry, proxy and cache are those that npm is set up with. What came is compared with the
hash here, and the files a site needs are kept in a folder that git ignores; from then on no network is needed.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class LibraryError(RuntimeError):
    """A library that cannot be had, or is not what was pinned. Exit code 3."""


@dataclass(frozen=True)
class Library:
    """A package of the npm registry.

    Args:
        name, version: of the package. sha512: of its archive, in base64. files: that are used, by path in the package.
    """

    name: str
    version: str
    sha512: str
    files: tuple[str, ...]


# Draws all of our charts: one canvas for thousands of points, heat maps, zoom by wheel and touch, text never as markup.
CHARTS = Library(
    "echarts",
    "6.1.0",
    "q0yaFPggC9FUdsWH4blavRWFmxdrIodbkoKNAjJudAI6CA9gNPxHtV2RcZNEepZVlk4yvBYkOkbk6HIVpIyHZA==",
    ("dist/echarts.min.js", "LICENSE"),
)
# What asv 0.6.6 loads from content delivery networks, in the same versions; stupidtable's 1.0.1 is not on the registry.
ASV = (
    Library(
        "jquery",
        "3.3.1",
        "Ubldcmxp5np52/ENotGxlLe6aGMvmF4R8S6tZjsP6Knsaxd/xp3Zrh50cG93lR6nPXyUFwzN3ZSOQI0wRJNdGg==",
        ("dist/jquery.min.js",),
    ),
    Library(
        "flot",
        "0.8.3",
        "xg2otcTJDvS+ERK+my4wxG/ASq90QURXtoM4LhacCq0jQW2jbyjdttbRNqU2cPykrpMvJ6b2uSp6SAgYAzj9tQ==",
        ("jquery.flot.js", "jquery.flot.time.js", "jquery.flot.selection.js", "jquery.flot.categories.js"),
    ),
    Library(
        "flot-orderbars",
        "1.0.0",
        "Jv51fvzevUjNXEeozpwEKfPjhiZhfiJddv0WHjduUTCmSF+7T5K7C9c9Y1wIVmUhDBv5fLMjgbwKecT0GIKPZA==",
        ("js/jquery.flot.orderBars.js",),
    ),
    Library(
        "stupid-table-plugin",
        "1.1.3",
        "2Vk7XouQPxUQPRe9w0Fu7ZZ8kHLK7rDoLMsCgtKxRNJ7f4dSOGvW9CkHsq5wD6QsaEnWoyLBYH3xOEsrK3yWBg==",
        ("stupidtable.min.js",),
    ),
    Library(
        "blueimp-md5",
        "2.19.0",
        "DRQrD6gJyy8FbiE4s+bDoXS9hiW3Vbx5uCdwvcCf3zLHL+Iv7LtGHLpr+GZV8rHG8tK766FGYBwRbu8pELTt+w==",
        ("js/md5.min.js",),
    ),
    Library(
        "bootstrap",
        "3.1.1",
        "TAzqS8E/ISpVHP29gYhy+1NSV+FJwApDVQhDfgLYsIuUDJiqJzH2DfORN5tiu+Ie2iBLrzEG34t4Rf465cigqg==",
        (
            "dist/js/bootstrap.min.js",
            "dist/css/bootstrap.min.css",
            *(f"dist/fonts/glyphicons-halflings-regular.{kind}" for kind in ("eot", "svg", "ttf", "woff")),
        ),
    ),
)


def provide(libraries: Sequence[Library], cache: Path, target: Path) -> None:
    """Puts the files of libraries into `target/<name>/`, fetching into the cache what is not there.

    Raises:
        LibraryError: when a library is not in the cache and npm is missing or fails, or its archive is another one.
    """
    for library in libraries:
        kept = cache / f"{library.name}-{library.version}"
        if not kept.exists():
            _fetch(library, kept)
        shutil.copytree(kept, target / library.name, dirs_exist_ok=True)


def _fetch(library: Library, kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        archive = _pack(library, Path(folder), kept.parent)
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != library.sha512:
            raise LibraryError(f"{library.name} {library.version}: sha512 expected {library.sha512}, got {found}")
        made = Path(folder) / "made"
        with tarfile.open(archive) as tar:
            for name in library.files:
                content = tar.extractfile(f"package/{name}")
                if content is None:
                    raise LibraryError(f"{library.name} {library.version}: has no file {name}")
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                (made / name).write_bytes(content.read())
        if not kept.exists():  # another process may have been faster
            os.replace(made, kept)


def _pack(library: Library, folder: Path, cache: Path) -> Path:
    name = f"{library.name}@{library.version}"
    hint = f"once it is in {cache}, no network is needed"
    npm = shutil.which("npm")
    if npm is None:
        raise LibraryError(f"{name} is needed and not in the cache: npm, which fetches it, is not installed; {hint}")
    command = [npm, "pack", "--silent", "--ignore-scripts", name]
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True)
    archives = list(folder.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise LibraryError(f"{name} is needed and not in the cache: `npm pack` failed ({' '.join(said)}); {hint}")
    return archives[0]
