"""Every field of an experiment with its neutral value; a config file says where it differs."""

from ml_collections import ConfigDict

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def base() -> ConfigDict:
    """The fields; `docs/configs.md` explains each."""
    return ConfigDict(
        {
            "model": {"preset": "", "checkpoint": "", "tokenizer": "", "max_length": 0},
            "data": {
                "shards": "",
                "num_frames": 32,
                "sampling": "uniform",
                "time_instruction": "",
                "prompt_style": "inference",
                "pairs_per_row": 1,
                "mixing": (),
                "limit": 0,
                "subset_seed": 0,
                "curriculum": False,
                "max_prefix": 0,
                "max_response": 0,
                "prefix_multiple": 128,
                "response_multiple": 16,
                "shuffle": True,
                "workers": 2,
                "cache_mib": 0,
                "on_error": "error",
                "verify_shards": False,
                "reference": "",
            },
            "objective": {
                "loss": "sigmoid",
                "beta": 0.1,
                "alpha": 0.5,
                "dpo_weight": 1.0,
                "label_smoothing": 0.0,
                "margin": 0.5,
                "reference_free": False,
                "token_kl": 0.0,
            },
            "compute": {
                "dtype": "bfloat16",
                "remat": "full",
                "head_chunk": 0,
                "micro_batches": 1,
                "attention": "auto",
                "scan": True,
            },
            "train": {
                "batch_size": 64,
                "num_steps": 0,
                "num_epochs": 1,
                "seed": 0,
                "learning_rate": 4e-6,
                "warmup_ratio": 0.1,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "weight_decay": 0.0,
                "max_grad_norm": 1.0,
                "moments": "float32",
                "freeze": ("tower",),
                "log_every": 10,
                "checkpoint_every": 100,
                "checkpoint_minutes": 0.0,
                "keep_checkpoints": 2,
                "keep_best": "",
            },
            "lora": {"rank": 0, "alpha": 16.0, "targets": TARGETS},
            "mesh": {"data": 1, "fsdp": -1, "tensor": 1, "context": 1},
        }
    )


# The paper's baselines and ablations and its peers, as changes of the full method;
# `docs/objectives.md` says where the numbers come from. SFT_LLM is `sft_self` on shards of another
# model's answers.
VARIANTS = {
    "tpo": {},
    "localized_only": {"data.mixing": (1.0, 0.0)},
    "mix_8_2": {"data.mixing": (0.8, 0.2)},
    "mix_2_8": {"data.mixing": (0.2, 0.8)},
    "comprehensive_only": {"data.mixing": (0.0, 1.0)},
    "scale_2k": {"data.limit": 2_000, "data.subset_seed": 1},
    "scale_5k": {"data.limit": 5_000, "data.subset_seed": 1},
    "dpo": {"objective.alpha": 0.0},
    "sft_self": {"objective.dpo_weight": 0.0, "objective.alpha": 1.0},
    "hound_dpo": {
        "objective.beta": 0.1,
        "objective.alpha": 0.0,
        "train.learning_rate": 5e-7,
        "train.num_epochs": 3,
        "train.freeze": (),
    },
    "rrpo": {
        "objective.loss": "rrpo",
        "objective.beta": 0.1,
        "objective.alpha": 0.0,
        "objective.token_kl": 0.01,
    },
    "leanpo": {"objective.loss": "leanpo", "objective.beta": 2.0, "objective.alpha": 0.0},
}


def apply_variant(config: ConfigDict, variant: str | None) -> ConfigDict:
    """`config` with the changes of one of `VARIANTS`.

    Raises:
        ValueError: no such variant.
    """
    if (name := variant or "tpo") not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; there are {', '.join(VARIANTS)}")
    config.update_from_flattened_dict(VARIANTS[name])
    return config
