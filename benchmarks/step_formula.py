"""Matrix products of a step of one pair, part by part, for the layouts `step.py` compares."""

from tpo_jax.models.config import ModelConfig


def layouts(
    model: ModelConfig, frames: int, prefix: int, response: int, remat: str
) -> dict[str, dict[str, float]]:
    """Return FLOPs by layout and part, as the programs are written: attention over all keys,
    masked ones included, tower frozen, decoder and projector trained.

    With `remat=full` the backward pass computes a layer again but for its last product, of whose
    output nothing depends; without it a pass is forward once and backward twice. Our head is
    written to be computed again, too, which a compiler may find needless.
    """
    d, t, again = model.decoder, model.tower, remat == "full"
    D, C, W = d.width, d.head_dim, d.vocab_size
    last = D * d.mlp_width
    layer = D * C * (2 * d.heads + 2 * d.kv_heads) + 3 * last
    N, V = t.grid**2 + (t.kind == "clip"), t.width
    block = 2 * N * (4 * V**2 + 2 * V * t.mlp_width) + 4 * N**2 * V
    tower = frames * (t.layers * block + 2 * t.grid**2 * V * 3 * t.patch_size**2)
    first, second = (frames * 2 * t.grid**2 * D * n for n in (V, D))
    P, R = prefix, response

    def linear(tokens, passes):
        return 2 * d.layers * tokens * (layer * passes)

    def attention(pairs_of_positions, passes):
        return 4 * d.layers * d.heads * C * pairs_of_positions * passes

    rows, row = 2 * (P + R), 2 * (P + R) ** 2
    once = 2 * d.layers * again  # layers computed again
    original = {
        "decoder, linear": linear(rows, 3) + once * rows * (layer - last),
        "decoder, attention": attention(row, 3 + again),
        "head": 2 * D * W * rows * 3,
        "tower": 2 * tower,
        "projector": 2 * (2 * first + 3 * second),
    }
    live = {
        "decoder, linear": linear(rows, 1),
        "decoder, attention": attention(row, 1),
        "head": 2 * D * W * rows,
        "tower": 2 * tower,
        "projector": 2 * (first + second),
    }
    tokens = P + 2 * R
    ours = {
        "decoder, linear": linear(tokens, 3) + once * tokens * (layer - last),
        "decoder, attention": attention(P**2 + 2 * R * (P + R), 3 + again),
        "head": 2 * D * W * 2 * R * 4,
        "tower": tower,
        "projector": (2 + again) * first + 3 * second,
    }
    return {
        "original": {part: original[part] + live[part] for part in original},
        "cached reference": original,
        "ours": ours,
    }
