"""Files of checkpoints read, refused and given back; their weights are zeros."""

import dataclasses
import json
import shutil

import pytest

from tpo_jax.checkpoints import huggingface_export as export
from tpo_jax.checkpoints.huggingface import weights
from tpo_jax.checkpoints.models import KEPT, load_config, open_model, save_model
from tpo_jax.checkpoints.safetensors_files import Entry, SafetensorsWriter
from tpo_jax.errors import InputError
from tpo_jax.families import preset
from tpo_jax.families.qwen_vl import published
from tpo_jax.inference.model import load_processor

TINY, OLDER = preset("tiny_qwen3_vl"), preset("tiny_qwen2_5_vl")
VIDEO, CHAT = "video_preprocessor_config.json", "chat_template.json"


def write(directory, config=TINY):
    """A checkpoint as published, but for its tokenizer."""
    directory.mkdir()
    for name, values in published.new_config(config, "float32").items():
        (directory / name).write_text(json.dumps(values))
    entries = {name: Entry("F32", shape, 4) for name, shape in weights(config).tensors.items()}
    SafetensorsWriter(directory / "model.safetensors", entries, {"format": "pt"})
    return directory


def edit(directory, name, **changes):
    """Change values of a JSON file; objects keep their other values."""
    path = directory / name
    values = json.loads(path.read_text()) if path.is_file() else {}
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(values.get(key), dict)
        values[key] = {**values[key], **value} if both else value
    path.write_text(json.dumps(values))


def converted_back(source, tmp_path, **settings):
    """Import and export, as `convert` does both."""
    opened = open_model(source, **settings)
    save_model(tmp_path / "native", opened.config, opened.params, source)
    native, back = open_model(tmp_path / "native"), tmp_path / "back"
    back.mkdir(parents=True)
    export.copy_files(tmp_path / "native", back, export.SIDE_FILES)
    export.export_model(back, native.config, native.params, tmp_path / "native" / KEPT)
    return back


def test_an_export_says_the_visual_tokens_that_were_set(tmp_path):
    source = write(tmp_path / "published")
    edit(source, VIDEO, max_video_tokens=9, min_frames=4)
    back = converted_back(source, tmp_path, frame_tokens=3)
    given, found = (json.loads((folder / VIDEO).read_text()) for folder in (source, back))
    assert found == given | {"max_video_tokens": 3, "cap_pixels_per_frame": True}
    assert load_config(source).frame_tokens == 9 and load_config(back).frame_tokens == 3
    for name in ("config.json", "preprocessor_config.json"):
        assert (back / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("tokens", [768, 3])
def test_an_export_without_the_file_writes_it_where_it_says_something(tmp_path, tokens):
    source = write(tmp_path / "published")
    (source / VIDEO).unlink()
    back = converted_back(source, tmp_path, frame_tokens=tokens)
    assert load_config(back).frame_tokens == tokens
    assert (back / VIDEO).is_file() == (tokens != 768)


IMAGES = "preprocessor_config.json"
THINKING = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
PLAIN = "{{ m.content.split('<think>') }}{% if add_generation_prompt %}assistant\n{% endif %}"


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (
            "config.json",
            {"architectures": ["Qwen3VLMoeForConditionalGeneration"]},
            "mixtures of experts; Qwen3VLF",
        ),
        (
            "config.json",
            {"architectures": ["Qwen3_5ForConditionalGeneration"]},
            "linear attention; Qwen3VLF.*Qwen2_5_VLF",
        ),
        ("config.json", {"text_config": {"attention_bias": True}}, "attention_bias=True is not"),
        (
            "config.json",
            {"text_config": {"rope_parameters": {"rope_type": "yarn"}}},
            "'yarn': scaled positions",
        ),
        ("config.json", {"vision_config": {"num_position_embeddings": 7}}, "must be a square"),
        (
            "config.json",
            {"vision_config": {"deepstack_visual_indexes": [9]}},
            "must name blocks below 2",
        ),
        (
            VIDEO,
            {"size": {"shortest_edge": 9, "longest_edge": 99}},
            "99 pixels are less than one visual token of 16x16",
        ),
        (CHAT, {"chat_template": THINKING}, "Thinking models are not supported"),
        ("tokenizer_config.json", {"chat_template": THINKING}, "answers begin with <think>"),
        ("config.json", {"text_config": {"rope_parameters": "mrope"}}, "must be an object"),
        (
            "config.json",
            {"text_config": {"rope_parameters": None, "rope_scaling": "mrope"}},
            "'mrope': rope_parameters or rope_scaling must be an object",
        ),
        ("config.json", {"text_config": {"rope_parameters": {"mrope_section": 8}}}, "be a list"),
        ("config.json", {"tie_word_embeddings": "no"}, "must be true or false"),
        (VIDEO, {"image_std": [0.2, 0.2, 0.2]}, r"image_std=\[0.2, 0.2, 0.2\] is not supported"),
        (IMAGES, {"do_normalize": False}, "do_normalize=False is not supported"),
        (IMAGES, {"do_resize": False}, "do_resize=False is not supported"),
        (VIDEO, {"rescale_factor": 1.0}, "rescale_factor=1.0 is not supported"),
        (VIDEO, {"resample": 2}, "resample=2 is not supported; it must be 3"),
        (IMAGES, {"size": 7}, "size must be an object"),
        (IMAGES, {"image_mean": None}, r"image_mean is missing, .* it must be \[0.5, 0.5, 0.5\]"),
        (IMAGES, {"patch_size": None}, "patch_size is missing, .* it must be 8, as in the publish"),
    ],
)
def test_what_is_not_supported_is_one_line_with_its_file(tmp_path, file, values, message):
    source = write(tmp_path / "published")
    edit(source, file, **values)
    with pytest.raises(InputError, match=message) as error:
        load_config(source)
    where = "config.json" if "pixels" in message else file
    assert where in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"vision_config": {"window_size": 8}}, "window_size=8 holds no visual"),
        ("config.json", {"vision_config": {"fullatt_block_indexes": [2]}}, "full_blocks must name"),
        ("config.json", {"vision_config": {"hidden_act": "gelu"}}, "hidden_act='gelu' is not"),
        ("config.json", {"vision_config": {"in_chans": 4}}, "in_chans=4 is not supported"),
        (
            "config.json",
            {"vision_config": {"rope_parameters": {"rope_theta": 5.0}}},
            "rope_theta=5.0 is not supported",
        ),
        ("config.json", {"text_config": {"use_sliding_window": True}}, "use_sliding_window=True"),
        (
            "config.json",
            {"text_config": {"rope_parameters": {"mrope_interleaved": True}}},
            "mrope_interleaved=True is not supported",
        ),
        (VIDEO, {"image_mean": [0.5, 0.5, 0.5]}, r"image_mean=\[0.5, 0.5, 0.5\] is not supported"),
        (CHAT, {"chat_template": THINKING}, "Thinking models are not supported; Qwen2_5_VLF"),
        ("config.json", {"architectures": ["Qwen2VLForConditionalGeneration"]}, "another one"),
    ],
)
def test_what_qwen2_5_is_not_is_one_line_with_its_file(tmp_path, file, values, message):
    source = write(tmp_path / "published", OLDER)
    edit(source, file, **values)
    with pytest.raises(InputError, match=message) as error:
        load_config(source)
    assert file in str(error.value) and "\n" not in str(error.value)


def flattened(directory):
    """The files of a checkpoint of 2025: one section, one processor's file, names of 4.x."""
    path = directory / "config.json"
    values = json.loads(path.read_text())
    text = values.pop("text_config")
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope["rope_theta"], "use_sliding_window": False}
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    vision = values["vision_config"] | {"in_chans": 3, "spatial_patch_size": 8}
    values = text | values | {"vision_config": vision, "model_type": "qwen2_5_vl"}
    path.write_text(json.dumps(values))
    (directory / VIDEO).unlink()
    images = json.loads((directory / IMAGES).read_text())
    least, most = images.pop("size").values()
    (directory / IMAGES).write_text(json.dumps(images | {"min_pixels": least, "max_pixels": most}))


def test_checkpoints_of_2025_are_read_and_given_back(tmp_path):
    source = write(tmp_path / "published", OLDER)
    nested = load_config(source)
    flattened(source)
    found = load_config(source)
    # Without a file on videos their budgets are those of `qwen_vl_utils`.
    least = 128 * 28**2
    assert found == dataclasses.replace(
        nested, frame_tokens=768, video_pixels=(least, 768 * 16**2), video_tokens=128000
    )
    back = converted_back(source, tmp_path)
    for name in ("config.json", IMAGES):
        assert (back / name).read_bytes() == (source / name).read_bytes()
    assert not (back / VIDEO).exists()
    longer = converted_back(source, tmp_path / "longer", max_length=4096, rope_theta=5.0)
    changed = json.loads((back / "config.json").read_text())
    changed |= {"max_position_embeddings": 4096, "rope_theta": 5.0}
    assert json.loads((longer / "config.json").read_text()) == changed


@pytest.mark.parametrize("tokens", [3, 4, 900])
def test_an_export_of_qwen2_5_says_the_visual_tokens_that_were_set(tmp_path, tokens):
    source = write(tmp_path / "published", OLDER)
    edit(source, VIDEO, min_pixels=256, max_pixels=1024, cap_pixels_per_frame=None)
    found = load_config(source, frame_tokens=tokens)
    assert found.video_pixels == (256, 256 * tokens) and load_config(source) == OLDER
    back = converted_back(source, tmp_path, frame_tokens=tokens)
    assert load_config(back) == found
    same = (back / VIDEO).read_bytes() == (source / VIDEO).read_bytes()
    assert same == (tokens == 4)


def test_what_published_files_say_is_accepted(tmp_path):
    source = write(tmp_path / "published")
    edit(source, CHAT, chat_template=PLAIN)
    (source / "chat_template.jinja").write_text(PLAIN)
    for name in (IMAGES, VIDEO):
        edit(source, name, do_resize=True, rescale_factor=0.00392156862745098, resample=3)
    assert load_config(source) == TINY
    (source / "chat_template.jinja").write_text(THINKING)
    with pytest.raises(InputError, match="chat_template.jinja: answers begin with <think>"):
        load_config(source)


@pytest.mark.parametrize("config", [TINY, OLDER], ids=["qwen3_vl", "qwen2_5_vl"])
def test_a_processor_that_has_the_values_by_default_need_not_say_them(tmp_path, config):
    source = write(tmp_path / "published", config)
    for name in (VIDEO,) if config is TINY else (VIDEO, IMAGES):
        edit(source, name, image_mean=None, image_std=None)
    assert load_config(source) == config


@pytest.mark.parametrize("config", [TINY, OLDER], ids=["qwen3_vl", "qwen2_5_vl"])
def test_a_thinking_model_is_refused_after_conversion_too(tmp_path, config):
    source, native = write(tmp_path / "published", config), tmp_path / "native"
    opened = open_model(source)
    edit(source, CHAT, chat_template=THINKING)
    save_model(native, opened.config, opened.params, None)
    shutil.copy(source / CHAT, native)
    message = f"{native}/{CHAT}: answers begin with <think>: Thinking models are not supported"
    for read in (load_config, open_model, load_processor):
        with pytest.raises(InputError, match=message):
            read(native)


def test_rows_of_the_embedding_decide_with_a_note(tmp_path, capsys):
    source = write(tmp_path / "published")
    edit(source, "config.json", text_config={"vocab_size": 7}, tie_word_embeddings=None)
    assert load_config(source) == TINY  # with a head of its own it is not tied
    assert "vocab_size=7, but the embedding has 512 rows" in capsys.readouterr().err


def test_settings_are_those_of_the_family(tmp_path):
    source = write(tmp_path / "published")
    with pytest.raises(InputError, match="time_instruction='inline': .* must be 'none'"):
        load_config(source, time_instruction="inline")
    with pytest.raises(InputError, match=r"--pooling=max is no setting of Qwen3VL.* frame_tokens"):
        load_config(source, pooling="max")
    with pytest.raises(InputError, match=r"--tower=.*has a tower of its own"):
        load_config(source, tower=tmp_path)
    with pytest.raises(InputError, match=r"--text_after=times is no setting of Qwen3VL"):
        load_config(source, text_after="times")


def test_where_text_goes_on_is_kept(tmp_path):
    source, native = write(tmp_path / "published", OLDER), tmp_path / "native"
    opened = open_model(source, text_after="times")
    assert opened.config == dataclasses.replace(OLDER, text_after="times")
    save_model(native, opened.config, opened.params, source)
    assert load_config(native) == opened.config
    path = native / "config.json"
    path.write_text(path.read_text().replace('"times"', '"time"'))
    with pytest.raises(InputError, match=r"text_after='time' must be one of \('side', 'times'\)"):
        load_config(native)
    path.write_text(path.read_text().replace('"text_after": "time"', '"max_length": 2048'))
    assert load_config(native) == OLDER  # as written before there was the choice


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        ({"kind": "qwen2_vl"}, "tower.kind must be one of .*'qwen3_vl'"),
        ({"kind": "qwen2_5_vl"}, "tower.window=0 must be a positive integer"),
        ({"window": 4}, "tower.window=4: qwen3_vl has none"),
        ({"windows": 4}, "windows"),
        ({"table": 0}, "tower.table=0 must be a positive integer"),
    ],
)
def test_a_native_config_of_another_tower_is_refused(tmp_path, tower, message):
    source = write(tmp_path / "published")
    opened = open_model(source)
    save_model(tmp_path / "native", opened.config, opened.params, source)
    path = tmp_path / "native" / "config.json"
    values = json.loads(path.read_text())
    values["model"]["tower"] |= tower
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=message):
        load_config(tmp_path / "native")
