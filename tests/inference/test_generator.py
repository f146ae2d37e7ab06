"""The generator's answers: batching, stopping, streaming, and the model's context."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from tests.generation.conftest import QUESTIONS, of
from tpo_jax import families
from tpo_jax.data.processor import Processor
from tpo_jax.data.prompts import build_prompts
from tpo_jax.errors import InputError
from tpo_jax.families.llava_qwen.template import INFERENCE
from tpo_jax.generation.sampling import Sampling
from tpo_jax.inference import generator
from tpo_jax.inference.generator import Decoding, Generator
from tpo_jax.inference.model import place
from tpo_jax.models.pictures import joined
from tpo_jax.parallel.mesh import AXES, make_mesh

ANSWER = "日🙂é <b"  # every byte once; three of the characters have several


def zeros(config):
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), families.abstract_params(config))


def chain_model(tokenizer, ids):
    """Return a model that always answers `ids`: each token's embedding names its successor."""
    config = families.preset("tiny_longva")
    params = zeros(config)
    decoder = params["decoder"]
    decoder["norm"]["scale"] += 1
    start = tokenizer.encode("\n").ids[-1]  # the last token of every prompt
    chain = [start, *ids, tokenizer.token_to_id("<|im_end|>")]
    assert len(set(chain)) == len(chain)
    for i, (token, successor) in enumerate(zip(chain, chain[1:], strict=False)):
        decoder["embed"]["embedding"][token, i] = 1
        decoder["head"]["kernel"][i, successor] = 1
    return config, params


@pytest.fixture(scope="session")
def chain(tokenizer):
    return chain_model(tokenizer, tokenizer.encode(ANSWER).ids)


def ask(tokenizer, config, questions, num_frames=4):
    return build_prompts(
        tokenizer, questions, config.visual_tokens(num_frames), cut="video", template=INFERENCE
    )


def generator_of(config, params, tokenizer, max_new_tokens=16, mesh=None, **decoding) -> Generator:
    """A generator on one device by default."""
    mesh = mesh or make_mesh(dict.fromkeys(AXES, 1), jax.devices()[:1])
    model = place(Processor(config, tokenizer), params, mesh)
    return model.generator(Decoding(max_new_tokens, **decoding))


def test_many_tpus_run_the_kernel(tokenizer, program_for_tpus) -> None:
    """A kernel outside of a mesh could not be split over chips."""
    heads = {"heads": 2, "kv_heads": 2, "head_dim": 128}
    config = families.preset("tiny_longva")
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, **heads))
    params = zeros(config)
    mesh = make_mesh({"data": 1, "fsdp": 2, "tensor": 2, "context": 2})
    asking = generator_of(config, params, tokenizer, 4, mesh)
    rows, frames = [ask(tokenizer, config, QUESTIONS)], [np.zeros((4, 32, 32, 3), np.uint8)]
    program = program_for_tpus(generator, "prefill", lambda: asking.answer(frames, rows))
    assert "tpu_custom_call" in program


@of("tiny_longva")
def test_answers_do_not_depend_on_the_batch(model, videos, prompt, tokenizer) -> None:
    rows = [prompt(QUESTIONS), prompt(QUESTIONS[:1]), prompt(QUESTIONS[::-1])]
    sampling = Sampling(0.8, top_p=0.95)
    arguments = {"max_new_tokens": 10, "sampling": sampling, "seed": 5, "batch_rows": 2}
    generator = generator_of(*model, tokenizer, **arguments)
    together = generator.answer(videos, rows)
    assert [len(answers) for answers in together] == [3, 1, 3]
    assert generator.answer(videos[1:], rows[1:], seeds=[1, 2]) == together[1:]
    assert generator.answer(videos[1:], rows[1:], seeds=[1, 7])[0] == together[1]
    # Rows and questions that are not there change nothing.
    assert generator.answer(videos[1:2], rows[1:2], seeds=[1], shape=(4, 2)) == together[1:2]

    mesh = make_mesh({"data": 1, "fsdp": 2, "tensor": 1, "context": 1}, jax.devices()[:2])
    generator = generator_of(*model, tokenizer, mesh=mesh, **arguments)
    assert generator.answer(videos, rows) == together


@of("tiny_llava_video")  # images with newline tokens are made of everything
def test_images_and_text_do_not_depend_on_the_batch(model, tokenizer) -> None:
    """Rows of several images, one, and none, each padded to the longest."""
    config, params = model
    rng = np.random.default_rng(0)
    pictures, rows = [], []
    for sizes in ([(70, 40), (32, 90)], [(90, 90)], []):
        images = [rng.integers(0, 256, (h, w, 3), np.uint8) for w, h in sizes]
        picture = families.of(config).picture
        parts = [picture(Image.fromarray(image), config) for image in images]
        pictures.append(joined(parts, config))
        rows.append(
            build_prompts(
                tokenizer, QUESTIONS[:2], pictures[-1].tokens, cut="video", template=INFERENCE
            )
        )
    generator = generator_of(config, params, tokenizer, 8, sampling=Sampling(0.8))
    together = generator.answer(pictures, rows)
    for i in range(3):
        assert generator.answer(pictures[i : i + 1], rows[i : i + 1], [i]) == together[i : i + 1]
    assert together[0] != together[1] != together[2]


def test_an_answer_ends_at_the_stop_token(chain, tokenizer, videos) -> None:
    config, params = chain
    row = ask(tokenizer, config, QUESTIONS[:1])
    generator = generator_of(config, params, tokenizer)
    assert generator.answer(videos[:1], [row]) == [[ANSWER]]
    generator = generator_of(config, params, tokenizer, 3)
    assert generator.answer(videos[:1], [row]) == [["日"]]


@pytest.mark.parametrize("max_new_tokens", [16, 5])  # 5 ends inside a character
def test_a_stream_joins_to_the_answer(chain, tokenizer, videos, max_new_tokens) -> None:
    config, params = chain
    row = ask(tokenizer, config, QUESTIONS[:1])
    generator = generator_of(config, params, tokenizer, max_new_tokens)
    pieces = list(generator.stream(videos[0], row))
    assert "".join(pieces) == generator.answer(videos[:1], [row])[0][0]
    assert all("\ufffd" not in piece for piece in pieces[:-1])
    assert len(pieces) > 1 or max_new_tokens == 5


def test_a_stop_string_ends_an_answer(chain, tokenizer, videos) -> None:
    """Its characters come in several tokens, and no state of the answer shows part of it."""
    config, params = chain
    row, whole = ask(tokenizer, config, QUESTIONS[:1]), tokenizer.encode(ANSWER).ids
    generator = generator_of(config, params, tokenizer)

    def states(stop):
        return [a for [[a]] in generator.steps([videos[0]], [row], [(0, 0)], stop=[[stop]])]

    for stop, text in ((["é <"], "日🙂"), (["b", "🙂"], "日"), ([" <c"], ANSWER), (["日"], "")):
        answers = states(stop)
        last = answers[-1]
        assert (last.text, last.finished, last.cut_off) == (text, True, False)
        assert all(text.startswith(answer.text) for answer in answers)
        ended = [s for s in stop if s in ANSWER]
        end = ANSWER.index(ended[-1]) + len(ended[-1]) if ended else len(ANSWER)
        assert last.tokens == len(tokenizer.encode(ANSWER[:end]).ids)
    assert last.tokens < len(whole)
    short = generator_of(config, params, tokenizer, 3)
    [*_, [[answer]]] = short.steps([videos[0]], [row], [(0, 0)])
    assert answer == ("日", 3, True, True)


@of("tiny_longva")
def test_a_stream_of_random_bytes_joins_to_the_answer(model, tokenizer, videos, prompt) -> None:
    generator = generator_of(*model, tokenizer, sampling=Sampling(2.0))
    row = prompt(QUESTIONS[:1])
    for seed in range(10):
        answer = generator.answer(videos[:1], [row], seeds=[seed])[0][0]
        assert "".join(generator.stream(videos[0], row, seed=seed)) == answer


def test_the_context_bounds_an_answer(chain, tokenizer, videos) -> None:
    config, params = chain
    row = ask(tokenizer, config, QUESTIONS[:1])
    used = int(row.prefix_mask.sum() + row.input_mask.sum())
    short = dataclasses.replace(config, max_length=used + 3)
    generator = generator_of(short, params, tokenizer)
    assert generator.answer(videos[:1], [row]) == [["日"]]
    with pytest.raises(InputError, match="max_new_tokens"):
        Decoding(max_new_tokens=0)
