"""FLOPs, memory traffic and collectives of one chip in a compiled program, read from its HLO text.

XLA's own cost analysis counts the body of a loop once and does not see into Pallas kernels. Here
loop bodies count as often as they run, and splash kernels by their unmasked blocks.
"""

import collections
import dataclasses
import math
import re
from typing import Any

_BYTES: dict[str, float] = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "bf16": 2, "f16": 2}
_BYTES |= {"s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "s64": 8, "u64": 8, "f64": 8}
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_LINE = re.compile(r"\s+(ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Matrix products per pair of query and key: scores and output forward; more for the gradients. And
# how many of them an earlier kernel has computed: scores, and the gradients of probabilities.
_KERNELS = {"splash_mha_fwd": (2, 0), "splash_mha_dq": (3, 1), "splash_mha_dkv": (4, 2)}
_RECOMPUTED = "checkpoint/rematted_computation"  # in the names that `jax.checkpoint` gives
_SLICES = ("dynamic-slice", "gather")
_NO_TRAFFIC = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "iota"}


@dataclasses.dataclass
class Work:
    """The work of one chip in one run of the program."""

    flops: float = 0.0  # matrix products, kernels included
    recomputed: float = 0.0  # of these by `compute.remat`, in the backward pass
    scores: float = 0.0  # of these in kernels of the backward pass, for what another computed
    hbm_bytes: float = 0.0  # read and written by the program's own instructions
    # kind -> [count, bytes a chip receives; all-reduce counts twice: it also sends them on a ring]
    collectives: dict[str, list[float]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(lambda: [0, 0])
    )
    chains: set[tuple] = dataclasses.field(default_factory=set)  # collectives already counted
    steps: int = 0  # of a loop that does not count to a constant


@dataclasses.dataclass
class _Instruction:
    shape: str
    op: str
    rest: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.split("), ")[0])

    def attribute(self, name: str) -> str | None:
        found = re.search(rf"\b{name}=%?([\w.\-{{}}]+)", self.rest)
        return found.group(1) if found else None

    def called(self, *names: str) -> str:
        found = next(filter(None, map(self.attribute, names)), None)
        if found is None:
            raise ValueError(f"the compiled program has a {self.op} without {' or '.join(names)}")
        return found


def work(text: str, steps: int = 0) -> Work:
    """Count the work in the text of a compiled module (`compiled.as_text()`).

    Args:
        steps: how often a loop runs whose end depends on data, such as the one in
            `generation.decode`.

    Raises:
        ValueError: there is such a loop and no `steps`, or the program's text is not in the form
            that this file expects.
    """
    computations, entry = _parse(text)
    total = Work(steps=steps)
    _add(computations, entry, 1, total, fused=False)
    return total


def _parse(text: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    computations: dict[str, dict[str, _Instruction]] = {}
    entry, current, last = "", None, None
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")) and line.endswith("{"):
            name = line.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
            entry = name if line.startswith("ENTRY") else entry
            current = computations[name] = {}
        elif current is not None and (match := _LINE.match(line)):
            _, name, shape, op, rest = match.groups()
            last = current[name] = _Instruction(shape, op, rest)
        elif line == "}":
            current = last = None
        elif last is not None:  # kernels have line breaks in their attributes
            last.rest += line
    return computations, entry


def _add(
    computations: dict[str, dict[str, _Instruction]],
    name: str,
    times: float,
    total: Work,
    fused: bool,
) -> None:
    """Add the work of a computation that runs `times` times; `fused`: without memory traffic."""
    table = computations[name]
    for label, it in table.items():
        if it.op == "while":
            condition, body = it.called("condition"), it.called("body")
            # The compilers for CPUs and GPUs state the trip count.
            stated = re.search(r'"known_trip_count":\{"n":"(\d+)"', it.rest)
            if stated:
                trips = int(stated.group(1))
            else:
                trips = _trips(computations[condition], computations[body], total.steps)
                if not trips:
                    raise ValueError(f"the loop {label} does not count to a constant")
            _add(computations, body, times * trips, total, fused=False)
        elif it.op in ("fusion", "call", "async-start"):
            _add(computations, it.called("calls", "to_apply"), times, total, True)
        elif it.op in ("convolution", "dot", "custom-call"):
            _add_flops(label, it, table, times, total)
        kind = it.op.removesuffix("-start")
        chain = re.search(r'chain_id="(\d+)"', it.rest)
        part = (it.attribute("channel_id"), chain[1]) if chain else (name, label)
        if kind in _COLLECTIVES and not it.op.endswith("-done") and part not in total.chains:
            # A collective that overlaps several fusions is listed in each of them.
            total.chains.add(part)
            shapes = _SHAPE.findall(it.shape)
            if it.op == "collective-permute-start":
                shapes = shapes[:1]
            elif it.op.endswith("-start"):
                shapes = shapes[len(shapes) // 2 :]
            if kind == "reduce-scatter":
                shapes = [s for n in it.operands for s in _SHAPE.findall(table[n].shape)]
            elif kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"  # how the TPU compiler writes some of them
            size = sum(_size(*shape) for shape in shapes) * (2 if kind == "all-reduce" else 1)
            total.collectives[kind][0] += times
            total.collectives[kind][1] += times * size
        if not fused and it.op not in _NO_TRAFFIC and not it.op.endswith(("-done", "-start")):
            total.hbm_bytes += times * _traffic(it, table, computations)


def _add_flops(
    label: str, it: _Instruction, table: dict[str, _Instruction], times: float, total: Work
) -> None:
    if it.op == "custom-call":
        found = (counts for name, counts in _KERNELS.items() if label.startswith(name))
        products, again = next(found, (0, 0))
        product = times * _kernel_product(it) if products else 0.0
        flops = products * product
        total.scores += again * product
    else:
        flops = times * _product(it, table)
    total.flops += flops
    if _RECOMPUTED in it.rest:
        total.recomputed += flops


def _size(dtype: str, dims: str, layout: str = "") -> float:
    return _BYTES.get(dtype, 0) * math.prod(map(int, dims.split(","))) if dims else 0


def _hbm(shape: str) -> float:
    """Return the bytes of a shape that lie in HBM; `S(1)` is on-chip memory."""
    return sum(_size(*found) for found in _SHAPE.findall(shape) if "S(" not in found[2])


def _traffic(
    it: _Instruction,
    table: dict[str, _Instruction],
    computations: dict[str, dict[str, _Instruction]],
) -> float:
    """Return the HBM bytes an instruction reads and writes; of a sliced array only the slice."""
    if it.op in _SLICES:
        return 2 * _hbm(it.shape)
    operands = [table[name] for name in it.operands if name in table]
    written, read = _hbm(it.shape), [_hbm(operand.shape) for operand in operands]
    parts = _parts(it.called("calls"), computations) if it.op == "fusion" else {}
    for number, (part, in_place) in parts.items():
        whole = read[number]
        read[number] = 0 if in_place else min(whole, part)
        if in_place and written >= whole:  # the rest of the array is not touched
            written += min(whole, part) - whole
    return written + sum(read)


def _parts(
    name: str, computations: dict[str, dict[str, _Instruction]]
) -> dict[int, tuple[float, bool]]:
    """Return the parameters of a fused computation that it slices, also in fusions inside: by
    number the bytes of the largest slice, and whether that is written in place.
    """
    body = computations[name]
    numbers = {label: _integer(it) for label, it in body.items() if it.op == "parameter"}
    parts: dict[int, tuple[float, bool]] = {}

    def note(label: str, part: float, in_place: bool) -> None:
        while label in body and _same_elements(body[label]):
            label = body[label].operands[0]
        if label in numbers:
            number = numbers[label]
            before, was = parts.get(number, (0.0, False))
            parts[number] = max(before, part), was or in_place

    for it in body.values():
        if it.op in _SLICES:
            note(it.operands[0], _hbm(it.shape), in_place=False)
        elif it.op == "dynamic-update-slice":
            update = body.get(it.operands[1])
            note(it.operands[0], _hbm(update.shape) if update else 0, in_place=True)
        elif it.op == "fusion":
            for number, found in _parts(it.called("calls"), computations).items():
                note(it.operands[number], *found)
    return parts


def _same_elements(it: _Instruction) -> bool:
    """Return whether an instruction changes no more than the layout or dtype of its operand."""
    relaid = it.op == "fusion" and "output_to_operand_aliasing" in it.rest and len(it.operands) == 1
    return relaid or it.op in ("bitcast", "copy", "convert")


def _trips(
    condition: dict[str, _Instruction], body: dict[str, _Instruction], otherwise: int
) -> int:
    """Return the trip count of a loop from 0 to a constant, `otherwise` for another kind of loop.

    Unrolled loops count in larger steps.
    """
    test = next((it for it in condition.values() if it.op == "compare"), None)
    if test is None or (otherwise and "direction=LT" not in test.rest):
        return otherwise
    left, right = (condition[name] for name in test.operands[:2])
    if right.op != "constant" or right.shape[0] == "f":
        return otherwise
    limit, index = _integer(right), int(left.attribute("index") or 0)
    following = body[list(body.values())[-1].operands[index]]  # the body's root is its last line
    step = next((_integer(body[n]) for n in following.operands if body[n].op == "constant"), 1)
    return -(-limit // step)


def _integer(constant: _Instruction) -> int:
    return int(constant.rest.split(")")[0])


def _groups(pattern: str | re.Pattern, text: str) -> tuple[str, ...]:
    """Return the groups of a pattern in a text.

    Raises:
        ValueError: the program's text is not in the form that this file expects.
    """
    if (found := re.search(pattern, text)) is None:
        raise ValueError(f"the compiled program has no {pattern} in {text[:200]!r}")
    return found.groups()


def _dims(shape: str) -> list[int]:
    return [int(n) for n in _groups(_SHAPE, shape)[1].split(",") if n]


def _product(it: _Instruction, table: dict[str, _Instruction]) -> float:
    """Return the FLOPs of a `dot` or `convolution`; window positions in padding do not count.

    The compiler writes batched matrix products as convolutions whose batch is a dilated window.
    """
    left, right = (_dims(table[name].shape) for name in it.operands[:2])
    out = _dims(it.shape)
    if it.op == "dot":
        (contracted,) = _groups(r"lhs_contracting_dims=\{([\d,]*)\}", it.rest)
        return 2.0 * math.prod(out) * math.prod(left[int(d)] for d in contracted.split(",") if d)
    labels_left, rest = _groups(r"dim_labels=(\w+)_([\w>\-]+)", it.rest)
    labels_right, labels_out = rest.split("->")
    window = dict(
        re.findall(r"(\w+)=([\w\-x]+)", (re.search(r"window=\{(.*?)\}", it.rest) or [""])[0])
    )
    flops = 2.0 * out[labels_out.index("b")] * out[labels_out.index("f")]
    flops *= right[labels_right.index("i")]
    for d in range(len(labels_left) - 2):

        def field(name: str, default: Any, d: int = d) -> Any:
            return window[name].split("x")[d] if name in window else default

        low = int(field("pad", "0_0").split("_")[0])
        stride, inner = int(field("stride", 1)), int(field("rhs_dilate", 1))
        outer, n = int(field("lhs_dilate", 1)), left[labels_left.index(str(d))]
        positions = (
            o * stride + k * inner - low
            for o in range(out[labels_out.index(str(d))])
            for k in range(right[labels_right.index(str(d))])
        )
        flops *= sum(p % outer == 0 and 0 <= p // outer < n for p in positions)
    return flops


def _kernel_product(it: _Instruction) -> float:
    """Return the FLOPs of a matrix product in a splash kernel: the unmasked half of its blocks."""
    (layouts,) = _groups(r"operand_layout_constraints=\{(.*?\})\}", it.rest)
    shapes = [_dims(f"{dtype}[{dims}]") for dtype, dims, _ in _SHAPE.findall(layouts)]
    grid, q, k = shapes[0], shapes[2], shapes[3]
    heads, queries, width = q[-3:]
    keys = k[-2]
    return 2.0 * math.prod(q[:-3]) * heads * width * queries * (keys + keys / grid[-1]) / 2
