"""The machines that notebooks run on, Kaggle's and Colab's, and what each of them trains first."""

import os
from pathlib import Path
from typing import NamedTuple

# Google's PCI devices; the numbers are those of `jax/_src/hardware_utils.py` in
# https://github.com/jax-ml/jax, the names those of `planning/chips.py`.
VENDOR = "0x1ae0"
CHIPS = {"0x005e": "v4", "0x0062": "v5p", "0x0063": "v5e", "0x006f": "v6e"}
DEVICES = Path("/sys/bus/pci/devices")


class Machine(NamedTuple):
    """A machine, and the recipe of `configs/free_tpus.py` that a notebook begins with on it."""

    title: str
    place: str  # colab or kaggle
    chips: list[str]
    topology: str  # for `plan`
    recipe: str
    checkpoint: str  # on the Hugging Face Hub
    frames: int
    keep: str  # the folder that outlives a session


MACHINES = {
    "colab_v5e": Machine(
        title="Colab's free TPU, v5e-1: one chip of 16 GB",
        place="colab",
        chips=["v5e"],
        topology="v5e:1x1",
        recipe="colab_onevision_lora_32",
        checkpoint="lmms-lab/llava-onevision-qwen2-0.5b-ov",
        frames=32,
        keep="/content/drive/MyDrive",
    ),
    "colab_v6e": Machine(
        title="Colab's TPU v6e-1: one chip of 32 GB",
        place="colab",
        chips=["v6e"],
        topology="v6e:1x1",
        recipe="colab_v6e_llava_video_lora_32",
        checkpoint="lmms-lab/LLaVA-Video-7B-Qwen2",
        frames=32,
        keep="/content/drive/MyDrive",
    ),
    "kaggle_v5e": Machine(
        title="Kaggle's TPU v5e-8: eight chips of 16 GB",
        place="kaggle",
        chips=["v5e"] * 8,
        topology="v5e:2x4",
        recipe="kaggle_llava_video_lora_64",
        checkpoint="lmms-lab/LLaVA-Video-7B-Qwen2",
        frames=64,
        keep="/kaggle/working",
    ),
}
# What a notebook does anywhere else: the whole way with a model of a few hundred thousand weights.
SMALL = {
    "CHECKPOINT": "small_model",
    "PAIRS": "quickstart/pairs.jsonl",
    "VIDEOS": "quickstart/long",
    "CONFIG": "configs/tiny.py",
    "FRAMES": "16",
    "FLAGS": "--config.lora.rank=8 --config.train.learning_rate=1e-3 --config.train.num_steps=12 "
    "--config.train.batch_size=8 --config.data.pairs_per_row=1 --config.data.num_frames=16",
    "JAX_PLATFORMS": "cpu",  # models this small gain nothing from a TPU
}


def find_chips(devices: Path = DEVICES) -> list[str]:
    """Return the kinds of this machine's TPU chips, without taking them from other processes.

    Args:
        devices: Folder of the PCI bus; it has a folder for every device.
    """
    google = [
        vendor.parent
        for vendor in sorted(devices.glob("*/vendor"))
        if vendor.read_text().strip() == VENDOR
    ]
    numbers = [(device / "device").read_text().strip() for device in google]
    return [CHIPS[number] for number in numbers if number in CHIPS]


def find_machine(devices: Path = DEVICES) -> Machine | None:
    """Return the machine of `MACHINES` that this process runs on, or None.

    The environment variable `TPO_JAX_MACHINE`, a name in `MACHINES`, comes first.

    Raises:
        ValueError: it names no machine.
    """
    if name := os.environ.get("TPO_JAX_MACHINE"):
        if name not in MACHINES:
            raise ValueError(f"TPO_JAX_MACHINE={name} must be one of {', '.join(MACHINES)}")
        return MACHINES[name]
    found = find_chips(devices)
    place = "kaggle" if "KAGGLE_KERNEL_RUN_TYPE" in os.environ else "colab"
    of_place = (machine for machine in MACHINES.values() if machine.place == place)
    return next((machine for machine in of_place if machine.chips == found), None)


def settings_of(machine: Machine | None) -> dict[str, str]:
    """Return the environment variables of a notebook's commands.

    `WORK` is a folder of this machine's disk, `KEEP` one that outlives the session, where there is
    one. With `TPO_JAX_SCALE=smoke` any machine gets the small model.
    """
    here = {"WORK": "finetuned", "KEEP": "kept", "WEIGHTS": "", "FLAGS": "", "MOST_PAIRS": "200"}
    if machine is None:
        return here | SMALL | {"TOPOLOGY": "v5e:1x1"}
    if (keep := Path(machine.keep)).is_dir():
        here["KEEP"] = str(keep / "tpo_jax_run")
    settings = here | {
        "CHECKPOINT": machine.checkpoint,
        "PAIRS": "LongVA-TPO-10k/dataset.csv",
        "VIDEOS": "LongVA-TPO-10k/unpacked",
        "CONFIG": f"configs/free_tpus.py:{machine.recipe}",
        "FRAMES": str(machine.frames),
        "TOPOLOGY": machine.topology,
    }
    return settings | SMALL if os.environ.get("TPO_JAX_SCALE") == "smoke" else settings
