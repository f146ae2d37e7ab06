"""A page on which people look through pairs and strike out bad ones, and the pictures beside it."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2

from tpo_jax.video.decode import VideoError
from tpo_jax.video.sampling import read_frames

FRAMES, WIDTH = 8, 160  # shown of a video, pixels across
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Temporal preference pairs</title><style>
body {{ font: 15px system-ui, sans-serif; margin: 2em auto; max-width: 84em; color: #222 }}
article {{ border-top: 1px solid #ccc; padding: 1em 0 }}
article.struck {{ opacity: .35 }}
.frames {{ display: flex; gap: 2px; overflow-x: auto }}
.line {{ position: relative; height: 8px; background: #ddd; margin: 4px 0 }}
.line i {{ position: absolute; height: 8px; background: #c0392b }}
.two {{ display: grid; grid-template-columns: 1fr 1fr; gap: 1em }}
.chosen {{ border-left: 4px solid #27ae60; padding-left: 8px }}
.rejected {{ border-left: 4px solid #888; padding-left: 8px }}
small {{ color: #666 }}
#bar {{ position: sticky; top: 0; background: #fff; padding: .5em 0; z-index: 1 }}
</style></head><body>
<h1>Temporal preference pairs</h1>
<p>{count} of {total} pairs. Strike out the bad ones, save the list beside <code>pairs.jsonl</code>
and give it to <code>prepare</code>: <code>--struck=struck.txt</code>.</p>
<div id="bar"><button id="save">Save struck.txt</button> <span id="number">0</span> struck out</div>
{pictures}
{articles}
<script>
const struck = new Set();
document.querySelectorAll("article input").forEach(box => box.onchange = () => {{
  box.checked ? struck.add(box.value) : struck.delete(box.value);
  box.closest("article").classList.toggle("struck", box.checked);
  document.getElementById("number").textContent = struck.size;
}});
document.getElementById("save").onclick = () => {{
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([[...struck].map(id => id + "\\n").join("")]));
  link.download = "struck.txt";
  link.click();
}};
</script></body></html>
"""


def write_page(
    path: Path, units: Sequence[Mapping[str, Any]], folder: Path, pictures: Iterable[str], most: int
) -> None:
    """Writes the page: frames, segment on the timeline, both answers, verdict.

    Args:
        path: of the page; it needs no other file.
        units: balanced units.
        folder: of the videos.
        pictures: SVG of `charts`.
        most: so many pairs at most, spread over all of them.
    """
    step = max(1, -(-len(units) // most))
    shown = units[::step]
    text = _PAGE.format(
        count=len(shown),
        total=len(units),
        pictures="\n".join(pictures),
        articles="\n".join(_article(unit, folder / unit["video"]) for unit in shown),
    )
    path.write_text(text, encoding="utf-8")


def _article(unit: Mapping[str, Any], video: Path) -> str:
    def e(name: str) -> str:
        return html.escape(str(unit[name]))

    duration = unit["duration"]
    start, end = unit["segment"] or (0.0, duration)
    left, width = 100 * start / duration, 100 * (end - start) / duration
    return (
        f'<article><label><input type="checkbox" value="{e("id")}"> strike out</label> '
        f"<small>{e('id')} · {e('kind')} · {e('type')} · {e('manipulation')} · verdict "
        f"{e('verdict')}</small>{_frames(video)}"
        f'<div class="line"><i style="left:{left:.2f}%;width:{width:.2f}%"></i></div>'
        f"<small>{start:.1f} to {end:.1f} of {duration:.1f} s</small>"
        f"<h3>{e('question')}</h3><small>reference: {e('reference')}</small>"
        f'<div class="two"><p class="chosen">{e("chosen")}</p>'
        f'<p class="rejected">{e("rejected")}</p></div></article>'
    )


def _frames(video: Path) -> str:
    try:
        frames, times, _ = read_frames(video, "uniform", FRAMES)
    except VideoError as error:
        return f"<p>{html.escape(str(error))}</p>"
    images = []
    for frame, time in zip(frames, times, strict=True):
        height = max(1, round(WIDTH * frame.shape[0] / frame.shape[1]))
        small = cv2.resize(frame, (WIDTH, height), interpolation=cv2.INTER_AREA)
        quality = [cv2.IMWRITE_JPEG_QUALITY, 70]
        data = cv2.imencode(".jpg", small[..., ::-1], quality)[1].tobytes()
        source = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
        images.append(f'<img src="{source}" title="{time:.1f} s" width="{WIDTH}">')
    return f'<div class="frames">{"".join(images)}</div>'
