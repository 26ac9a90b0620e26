"""Parts of a page of HTML that needs no other file: pictures, videos and charts within it."""

import base64
import html
import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 62rem; margin: 2rem auto; color: #222 }
body { padding: 0 1rem } figure.small { display: inline-block; margin: .5rem 1rem .5rem 0 }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2.5rem } svg, img, video { max-width: 100% }
figure { margin: 1rem 0 } figcaption, .note { color: #666 } svg text { font: 12px sans-serif }
td, th { padding: .1rem .8rem .1rem 0; text-align: left }
"""
COLORS = ("#1f77b4", "#d95f02", "#7f7f7f", "#2ca02c")


def page(title: str, sections: dict[str, str]) -> str:
    """The whole file: a heading for each section."""
    body = "".join(f"<h2>{html.escape(name)}</h2>\n{part}\n" for name, part in sections.items())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f"</title><style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>\n{body}</body>"
        "</html>\n"
    )


def note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def _figure(inside: str, caption: str, kind: str = "") -> str:
    return (
        f'<figure class="{kind}">{inside}<figcaption>{html.escape(caption)}</figcaption></figure>'
    )


def _embedded(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture(pixels: np.ndarray, caption: str) -> str:
    """pixels (H, W, 3) uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    image = f'<img src="{_embedded("image/png", file.getvalue())}" alt="{html.escape(caption)}">'
    return _figure(image, caption)


def video(frames: np.ndarray, frames_per_second: int, caption: str) -> str:
    """frames (T, H, W, 3) uint8."""
    import imageio.v2 as imageio

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "video.mp4")
        imageio.mimwrite(path, frames, fps=frames_per_second, macro_block_size=2)
        source = _embedded("video/mp4", path.read_bytes())
    return _figure(f'<video src="{source}" controls loop muted autoplay></video>', caption)


def _svg(inside: list[str], width: int, height: int) -> str:
    return f'<svg viewBox="0 0 {width} {height}" width="{width}">{"".join(inside)}</svg>'


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def histogram(values: np.ndarray, caption: str, bins: int = 40) -> str:
    """Bars of how often each value (n,) is there, with the least and the largest one below."""
    counts, edges = np.histogram(values, bins)
    width, height, most = 290, 110, max(1, counts.max())
    step = width / len(counts)
    bars = [
        f'<rect x="{k * step:.1f}" y="{height * (1 - count / most):.1f}" width="{step - 1:.1f}" '
        f'height="{height * count / most:.1f}" fill="{COLORS[0]}"/>'
        for k, count in enumerate(counts)
    ]
    bars += [
        f'<text x="0" y="{height + 15}">{_number(edges[0])}</text>',
        f'<text x="{width}" y="{height + 15}" text-anchor="end">{_number(edges[-1])}</text>',
    ]
    return _figure(_svg(bars, width, height + 20), caption, "small")


def curves(series: dict[str, tuple[np.ndarray, np.ndarray]], x_label: str, caption: str) -> str:
    """Lines of y over x, which has a logarithmic axis, (n,) each."""
    width, height, left = 760, 300, 50
    x = np.log10(np.concatenate([x for x, _ in series.values()]))
    y = np.concatenate([y for _, y in series.values()])
    tick = 10 ** np.floor(np.log10(max(1.0, np.ptp(y)))) / 5  # some five to ten lines
    while np.ptp(y) > 8 * tick:
        tick *= 2
    low, high = np.floor(min(0.0, y.min()) / tick) * tick, np.ceil(max(1.0, y.max()) / tick) * tick
    x_low, x_high = x.min(), max(x.max(), x.min() + 1)
    parts = []

    def place(x: np.ndarray, y: np.ndarray) -> list[tuple[str, str]]:
        across = left + (np.log10(x) - x_low) / (x_high - x_low) * (width - left)
        down = 8 + (height - 8) * (1 - (y - low) / (high - low))
        return [(f"{a:.1f}", f"{b:.1f}") for a, b in zip(across, down, strict=True)]

    for value in np.arange(low, high + tick / 2, tick):
        down = 8 + (height - 8) * (1 - (value - low) / (high - low))
        parts.append(
            f'<line x1="{left}" x2="{width}" y1="{down:.1f}" y2="{down:.1f}" stroke="#ddd"/>'
            f'<text x="{left - 6}" y="{down + 4:.1f}" text-anchor="end">{_number(value)}</text>'
        )
    for power in range(int(np.ceil(x_low)), int(x_high) + 1):
        across = left + (power - x_low) / (x_high - x_low) * (width - left)
        parts.append(f'<text x="{across:.1f}" y="{height + 16}">1e{power}</text>')
    for k, (name, (x, y)) in enumerate(series.items()):
        color, points = COLORS[k % len(COLORS)], place(x, y)
        parts.append(
            f'<polyline points="{" ".join(map(",".join, points))}" fill="none" '
            f'stroke="{color}" stroke-width="2"/>'
            f'<text x="{left + 10}" y="{18 + 16 * k}" fill="{color}">{html.escape(name)}</text>'
        )
        parts += [f'<circle cx="{a}" cy="{b}" r="3" fill="{color}"/>' for a, b in points[:30]]
    parts.append(f'<text x="{width}" y="{height + 34}" text-anchor="end">{x_label}</text>')
    return _figure(_svg(parts, width, height + 40), caption)
