"""The two seed plots as PNG: latency (log bars) and speedup against s_kv. Each carries a hash of the data it shows."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from asv_bench import provenance
from asv_bench.findings import OURS, Sweep, has_number, ratio, why_missing
from asv_bench.tables import milliseconds, times

_DRAWING_VERSION = 1  # part of the hash: raise it when the drawing changes
_HASH_KEY = "flash_dsa data"


@dataclass(frozen=True)
class Plot:
    """What a plot shows and how to draw it.

    Args:
        data: as JSON would hold it. draw: makes the PNG.
    """

    data: dict[str, Any]
    draw: Callable[..., bytes]

    @property
    def hash(self) -> str:
        """Hash of what the plot shows and of how it is drawn; its PNG carries it."""
        return data_hash(self.data)

    def png(self, theme: Theme) -> bytes:
        """The plot drawn."""
        return self.draw(self.data, theme)


@dataclass(frozen=True)
class Theme:
    """Colours that differ between light and dark pages."""

    background: str
    ink: str
    faint: str


LIGHT = Theme("#ffffff", "#1f2328", "#d0d7de")
DARK = Theme("#0d1117", "#e6edf3", "#3d444d")

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_COLORS = {
    "naive": "#999999",
    "dense sdpa": "#E69F00",
    f"dense {OURS}": "#56B4E9",
    "sparse flash_mla": "#CC79A7",
    f"sparse {OURS}": "#009E73",
}
_SPARE_COLORS = ("#D55E00", "#0072B2", "#F0E442")


def latency_data(sweep: Sweep) -> dict[str, Any]:
    """What the latency plot shows: labels of cases, and by series the seconds or the reason there are none."""
    rows = sweep.rows
    others = [name for name in sweep.implementations if name not in ("naive", "sdpa", OURS)]
    picks = {"naive": [row.sparse.get("naive") for row in rows]}
    picks |= {f"dense {name}": [row.dense.get(name) for row in rows] for name in ("sdpa", OURS)}
    picks |= {f"sparse {name}": [row.sparse.get(name) for row in rows] for name in (*others, OURS)}
    series = {
        label: [f["seconds_median"] if f and has_number(f) else why_missing(f) for f in found]
        for label, found in picks.items()
    }
    labels = [f"s_kv {row.problem.s_kv}\ntopk {row.problem.topk}" for row in rows]
    return {"machine": sweep.machine, "gpu": sweep.gpu, "labels": labels, "series": series} | _origins(sweep)


def speedup_data(sweep: Sweep) -> dict[str, Any]:
    """What the speedup plot shows: by rival, (s_kv, ratio, low, high) or (s_kv, reason)."""
    lines: dict[str, list[list[Any]]] = {"fastest dense": [], "naive": [], "flash_mla": []}
    for row in sweep.rows:
        ours = row.sparse.get(OURS)
        rivals = {"fastest dense": row.best_dense, "naive": row.sparse.get("naive")}
        rivals["flash_mla"] = row.sparse.get("flash_mla")
        for label, rival in rivals.items():
            found = ratio(rival, ours)
            if found:
                lines[label].append([row.problem.s_kv, found.value, found.low, found.high])
            else:
                reason = why_missing(ours if not has_number(ours) else rival)
                together = has_number(ours) and has_number(rival)
                lines[label].append([row.problem.s_kv, "not measured together" if together else reason])
    lines = {label: points for label, points in lines.items() if any(len(point) == 4 for point in points)}
    theory = [[row.problem.s_kv, row.theoretical_speedup] for row in sweep.rows]
    return {"machine": sweep.machine, "gpu": sweep.gpu, "lines": lines, "theory": theory} | _origins(sweep)


def _origins(sweep: Sweep) -> dict[str, Any]:
    """In what the records shown differ by origin, where they do."""
    shown = [found for row in sweep.rows for found in (*row.sparse.values(), *row.dense.values())]
    unlike = provenance.differences(shown)
    return {"origins": unlike} if unlike else {}


def of(sweep: Sweep) -> dict[str, Plot]:
    """The plots of a sweep, by file name."""
    return {
        "latency.png": Plot(latency_data(sweep), latency_png),
        "speedup.png": Plot(speedup_data(sweep), speedup_png),
    }


def data_hash(data: dict[str, Any]) -> str:
    """Hash of what a plot shows and of how it is drawn."""
    text = json.dumps([_DRAWING_VERSION, data], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_in_png(png: bytes) -> str | None:
    """The hash that a plot of ours carries in its metadata, or None."""
    position = 8
    while position + 8 <= len(png):
        length, kind = struct.unpack(">I4s", png[position : position + 8])
        if kind == b"tEXt":
            key, _, value = png[position + 8 : position + 8 + length].partition(b"\0")
            if key.decode("latin-1") == _HASH_KEY:
                return value.decode("latin-1")
        position += 12 + length
    return None


def latency_png(data: dict[str, Any], theme: Theme = LIGHT) -> bytes:
    """Latency as grouped bars on a log axis; what is missing is written where its bar would stand.

    Args:
        data: of `latency_data`. theme: colours.
    """
    shown = {label: cells for label, cells in data["series"].items() if any(isinstance(c, float) for c in cells)}
    absent = {label: cells[0] for label, cells in data["series"].items() if label not in shown and cells}
    figure, axes = _figure(theme, 12.0)
    spare = iter(_SPARE_COLORS * 3)
    width = 0.84 / max(1, len(shown))
    numbers = [cell for cells in shown.values() for cell in cells if isinstance(cell, float)]
    floor = min(numbers, default=1e-3) * 1e3 / 3
    for place, (label, cells) in enumerate(shown.items()):
        color = _COLORS.get(label) or next(spare)
        offset = (place - (len(shown) - 1) / 2) * width
        for x, cell in enumerate(cells):
            if isinstance(cell, float):
                name = label if not any(isinstance(c, float) for c in cells[:x]) else None
                axes.bar(x + offset, cell * 1e3, width * 0.94, color=color, label=name)
                axes.text(x + offset, cell * 1e3 * 1.08, milliseconds(cell), **_note(theme, "bottom"))
            else:
                axes.text(x + offset, floor * 1.15, cell, alpha=0.75, **_note(theme, "bottom"))
    if numbers:
        axes.set_yscale("log")
        axes.set_ylim(floor, max(numbers) * 1e3 * 3)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xticks(range(len(data["labels"])), data["labels"])
    axes.set_ylabel("latency, ms (log)")
    notes = "; ".join(f"{label}: {reason}" for label, reason in absent.items())
    _finish(axes, theme, "Attention latency", data, f"no numbers for {notes}" if notes else "")
    return _png(figure, data)


def speedup_png(data: dict[str, Any], theme: Theme = LIGHT) -> bytes:
    """How many times as long others take as sparse attention by flash_dsa, against s_kv, with the 1x line.

    Args:
        data: of `speedup_data`. theme: colours.
    """
    figure, axes = _figure(theme, 8.5)
    colors = {"fastest dense": "#009E73", "naive": "#999999", "flash_mla": "#CC79A7"}
    missing = []
    for label, points in data["lines"].items():
        known = [point for point in points if len(point) == 4]
        missing += [f"{label} at {point[0]}: {point[1]}" for point in points if len(point) != 4]
        x, y = [point[0] for point in known], [point[1] for point in known]
        spread = [[p[1] - p[2] for p in known], [p[3] - p[1] for p in known]]
        axes.errorbar(x, y, yerr=spread, color=colors[label], marker="o", linewidth=2, capsize=3, label=f"over {label}")
        if label == "fastest dense":
            axes.fill_between(x, 1, y, color=colors[label], alpha=0.12)
            beside: dict[str, Any] = {"xytext": (-2, 7), "textcoords": "offset points"}
            for at, value in zip(x, y, strict=True):
                axes.annotate(times(value), (at, value), ha="right", fontsize=8, **beside)
    if data["lines"]:
        theory = data["theory"]
        ink = theme.ink
        axes.plot(
            *zip(*theory, strict=True),
            color=ink,
            alpha=0.6,
            linestyle=":",
            linewidth=1.4,
            label="dense over sparse FLOPs",
        )
        axes.axhline(1, color="#D55E00", linestyle="--", linewidth=1.4, label="no speedup (1x)")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sorted({point[0] for point in theory}))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.set_xlabel("s_kv, tokens (log)")
    axes.set_ylabel("time over that of sparse flash_dsa (log)")
    _finish(
        axes, theme, f"Speedup of sparse attention by {OURS}", data, "missing: " + "; ".join(missing) if missing else ""
    )
    return _png(figure, data)


def _note(theme: Theme, vertical: str) -> dict[str, Any]:
    return {"ha": "center", "va": vertical, "rotation": 90, "fontsize": 7, "color": theme.ink}


def _figure(theme: Theme, width: float) -> tuple[Any, Any]:
    # The object interface: pyplot would pick a backend and keep global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 5.2), facecolor=theme.background, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=theme.background)
    axes.tick_params(colors=theme.ink, which="both", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.faint)
    axes.grid(axis="y", color=theme.faint, alpha=0.5, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _finish(axes: Any, theme: Theme, title: str, data: dict[str, Any], note: str) -> None:
    gpu = f", {data['gpu']}" if data["gpu"] else ""
    axes.set_title(f"{title} ({data['machine']}{gpu})", color=theme.ink, loc="left", fontsize=11, pad=24)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    for annotation in axes.texts:
        annotation.set_color(theme.ink)
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1.0), "borderaxespad": 0.2}
        axes.legend(frameon=False, fontsize=8, labelcolor=theme.ink, ncols=6, **above)
    else:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no numbers yet", transform=axes.transAxes, ha="center", color=theme.ink)
    note = "\n".join(filter(None, [note, "; ".join(data.get("origins", ()))]))
    if note:
        axes.figure.supxlabel(note, fontsize=7, color=theme.ink, x=0.01, ha="left")


def _png(figure: Any, data: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={_HASH_KEY: data_hash(data), "Software": None})
    return buffer.getvalue()
