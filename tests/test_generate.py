"""The generate command: the answer alone on standard output, one line for wrong input."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from tests.commands import ROOT, call
from tpo_jax import families
from tpo_jax.checkpoints.models import save_model
from tpo_jax.data import images, prompts
from tpo_jax.families.llava_qwen.template import INFERENCE
from tpo_jax.inference.generator import Decoding, Generator
from tpo_jax.inference.model import load
from tpo_jax.parallel.mesh import AXES, make_mesh
from tpo_jax.video import sampling
from tpo_jax.worlds.tokenizer import save_tokenizer, train_tokenizer

QUESTIONS = ["What happens?", "Who is there?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model and a video of eight frames."""
    folder = tmp_path_factory.mktemp("generate")
    save_tokenizer(train_tokenizer(QUESTIONS, vocab_size=270), folder / "tokenizer")
    config = families.preset("tiny_llava_video")
    save_model(folder / "model", config, families.init_params(config, 0), folder / "tokenizer")
    (folder / "video").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 36, 48, 3), np.uint8)
    for i, frame in enumerate(pixels):
        Image.fromarray(frame).save(folder / "video" / f"{i}.png")
    Image.fromarray(pixels[0, :, :20]).save(folder / "tall.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    return folder


@pytest.fixture(scope="module")
def flags(folder):
    return {
        "checkpoint": folder / "model",
        "video": folder / "video",
        "prompt": QUESTIONS[0],
        "num_frames": 4,
        "max_new_tokens": 16,
        "time_instruction": "newline",
    }


@pytest.fixture(scope="module")
def generator(folder) -> Generator:
    """The model in this process, on one device."""
    model = load(folder / "model", mesh=make_mesh(dict.fromkeys(AXES, 1), jax.devices()[:1]))
    return model.generator(Decoding(max_new_tokens=16))


@pytest.fixture(scope="module")
def expected(folder, generator):
    """Answers to both questions."""
    config, tokenizer = generator.model.config, generator.model.tokenizer
    frames, times, duration = sampling.read_frames(folder / "video", "uniform", 4)
    opening = INFERENCE.time_opening("newline", times.tolist(), duration)
    visual = config.visual_tokens(4)
    row = prompts.build_prompts(
        tokenizer, QUESTIONS, visual, opening=opening, cut="video", template=INFERENCE
    )
    return generator.answer([families.of(config).preprocess(frames, config)], [row])[0]


def test_standard_output_is_the_answer(flags, expected) -> None:
    command = [sys.executable, "-m", "tpo_jax.generate"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == expected[0] + "\n"


def test_images_and_text_alone(flags, folder, generator) -> None:
    stills = {name: flags[name] for name in ("checkpoint", "max_new_tokens")}
    tall, wide = folder / "tall.png", folder / "video" / "1.png"
    between = "First <image>, then <image>: what changed?"
    calls = [
        {"image": wide, "prompt": QUESTIONS[0]},
        {"image": f"{tall},{wide}", "prompt": [between, between + " Why?"]},
        {"prompt": QUESTIONS},
        {"image": tall, "prompt": QUESTIONS[0], "prompt_style": "dpo_trainer"},
    ]
    wrong = [
        ({"image": wide, "prompt": between}, "2 <image> placeholders for 1 images"),
        ({"prompt": "<image>\nWho?"}, "1 <image> placeholders for 0 images"),
        ({"image": f"{tall},{folder / 'broken.jpg'}"}, "broken.jpg: cannot be read as an image"),
        ({"image": "nothing.png"}, "nothing.png: cannot be read as an image: No such file"),
        ({"image": wide, "video": folder / "video"}, "one of --video and --image"),
        ({"image": wide, "time_instruction": "inline"}, "--time_instruction=inline"),
        ({"prompt_style": "dpo_trainer"}, "one video or one image"),
        ({"prompt": ""}, '--prompt="" asks nothing'),
        ({"prompt": " "}, '--prompt="" asks nothing'),
        ({"image": ",".join([str(tall)] * 60)}, "use fewer or smaller images"),
    ]
    results = call(
        "generate",
        *(stills | flags for flags in calls),
        *(stills | {"prompt": QUESTIONS[0]} | flags for flags, _ in wrong),
    )
    config, tokenizer = generator.model.config, generator.model.tokenizer
    for arguments, result in zip(calls, results, strict=False):
        paths = str(arguments.get("image", "")).split(",") if "image" in arguments else []
        pictures = images.read_pictures(paths, config)
        questions = arguments["prompt"]
        questions = questions if isinstance(questions, list) else [questions]
        style = arguments.get("prompt_style", "inference")
        row = prompts.build_prompts(
            tokenizer,
            questions,
            pictures.tokens,
            template=families.of(config).templates[style],
            cut="video",
        )
        (answers,) = generator.answer([pictures], [row])
        assert (result.code, result.out) == (0, "\n\n".join(answers) + "\n"), result.err
    assert len({result.out for result in results[: len(calls)]}) == len(calls)
    for (_, message), result in zip(wrong, results[len(calls) :], strict=True):
        assert (result.code, result.out) == (2, ""), message
        (line,) = result.err.splitlines()
        assert line.startswith("error: ") and message in line


def test_several_prompts_and_wrong_input(flags, expected) -> None:
    wrong = {
        "num_frames": (0, "num_frames"),
        "prompt": ("<image>\n<image>\nWhat?", "<image>"),
        "video": ("nothing.mp4", "nothing.mp4"),
        "checkpoint": ("nowhere", "nowhere"),
        "temperature": (-1, "temperature"),
        "top_p": (2, "top_p"),
        "colour": ("red", "colour"),
    }
    several, too_long, timed, *results = call(
        "generate",
        flags | {"prompt": [QUESTIONS[0], f"<image>\n{QUESTIONS[1]}"]},
        flags | {"num_frames": 600, "time_instruction": "none"},
        flags | {"num_frames": 600, "time_instruction": "newline"},
        *(flags | {name: value} for name, (value, _) in wrong.items()),
    )
    assert (several.code, several.out) == (0, "\n\n".join(expected) + "\n")
    assert too_long.code == 2
    # 600 frames of 2 tokens; 1024 hold the rest of the prompt, one token of the answer and these:
    fit = int(too_long.err.split("; ")[1].split()[0])
    used = int(too_long.err.split("takes ")[1].split()[0])
    assert used - 2 * 600 + 2 * fit in (1022, 1023)
    fit = int(timed.err.split("; ")[1].split()[0])
    again = [flags | {"num_frames": n, "time_instruction": "newline"} for n in (fit, fit + 1)]
    assert [result.code for result in call("generate", *again)] == [0, 2]
    for (value, message), result in zip(wrong.values(), results, strict=True):
        assert (result.code, result.out) == (2, ""), value
        (line,) = result.err.splitlines()
        assert line.startswith("error: ") and message in line
