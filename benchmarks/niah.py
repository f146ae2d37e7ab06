"""Which slices hold the longest cells of the needle test: `evaluate niah`'s pass over LongVA-7B,
compiled by the TPU compiler on a machine without a TPU.

    python benchmarks/niah.py [--output=FILE.md] [--rows=0,1]

Two minutes of two CPU cores a row. Prints a Markdown page.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tpo_jax import families
from tpo_jax.evaluation import niah, niah_cells, niah_tables
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.parallel.sharding import WITHIN_ROW, batch_sharding, parameter_shardings
from tpo_jax.planning import hlo
from tpo_jax.planning.chips import CHIPS, devices_of
from tpo_jax.planning.program import GIB, memory_asked

# slice, tensor, frames; all other chips along `context`
ROWS = (
    ("v5e:2x2", 1, 1000),
    ("v5e:2x4", 1, 3000),
    ("v5e:4x8", 1, 3000),
)
TEXT, QUESTION = 14, 96  # tokens before the frames and after them

HEAD = """\
| slice | tensor x context | frames | tokens | peak, GiB | limit | FLOPs | seconds at least |
|---|---|---|---|---|---|---|---|"""

_OUTPUT = flags.DEFINE_string("output", None, "file for the page, besides standard output")
_WHICH = flags.DEFINE_list("rows", [], "numbers of the rows to compile; empty: all")


def compiled(topology: str, tensor: int, frames: int):
    """Return the tokens of a cell and its program, or the bytes it lacks memory for."""
    config = families.preset("longva_7b")
    devices = devices_of(topology)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": tensor, "context": -1}, devices)
    odd = niah_cells.Needle(
        np.zeros(0), np.zeros(QUESTION, np.int32), np.zeros(1, np.int32), ("", "")
    )
    length = niah_tables.prefix_length(config, mesh, TEXT, frames)
    cell = niah_cells.Cell(frames, 0.0, 0)
    arrays = niah_tables.make_batch(config, [0] * TEXT, [odd], [cell], frames, length)

    def placed(shape, dtype, sharding):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    params = families.abstract_params(config)
    params = jax.tree.map(
        lambda x, s: placed(x.shape, jnp.bfloat16, s), params, parameter_shardings(mesh, params)
    )
    rows = (frames + 5) * config.tokens_per_frame
    split = jax.NamedSharding(mesh, jax.P(None, WITHIN_ROW))
    visual = placed((rows, config.decoder.width), jnp.bfloat16, split)
    batch = jax.tree.map(lambda x: placed(x.shape, x.dtype, batch_sharding(mesh)), arrays)
    with jax.set_mesh(mesh):
        lowered = niah.exact.lower(config, params, visual, batch, back_end="splash")
        try:
            return length, lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            return length, memory_asked(error)


def line(topology: str, tensor: int, frames: int) -> str:
    """Return a row of the table."""
    length, program = compiled(topology, tensor, frames)
    chip, chips = CHIPS[topology.split(":")[0]], len(devices_of(topology))
    cells = [topology, f"{tensor} x {chips // tensor}", f"{frames:,}", f"{length:,}"]
    if isinstance(program, float):
        return " | ".join(["", *cells, f"{program / GIB:.2f}", f"{chip.hbm}", "does not fit", ""])
    peak, work = program.memory_analysis().peak_memory_in_bytes, hlo.work(program.as_text())
    seconds = max(
        work.flops / chip.flops,
        work.hbm_bytes / chip.bandwidth,
        sum(size for _, size in work.collectives.values()) / chip.links,
    )
    cells += [f"{peak / GIB:.2f}", f"{chip.hbm}", f"{work.flops * chips:.2e}", f"{seconds:.0f}"]
    return " | ".join(["", *cells, ""]).strip()


def main(_: list[str]) -> None:
    """Compile and print."""
    chosen = [int(number) for number in _WHICH.value] or range(len(ROWS))
    print(HEAD, flush=True)
    lines = []
    for number in chosen:
        lines.append(line(*ROWS[number]))
        print(lines[-1], flush=True)
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text("\n".join([HEAD, *lines, ""]))


if __name__ == "__main__":
    app.run(main)
