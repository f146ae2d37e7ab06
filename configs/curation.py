"""Every field of a curation run with its neutral value; a config file says where it differs."""

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """The fields; `docs/curation.md` explains each."""

    def role(num_frames: int, max_new_tokens: int, **more) -> dict:
        shared = {"backend": "local", "model": "", "temperature": 0.0}
        return {"num_frames": num_frames, "max_new_tokens": max_new_tokens, **shared, **more}

    return ConfigDict(
        {
            "videos": {"folder": "", "min_seconds": 1.0, "limit": 0, "licence": ""},
            "segments": {
                "seed": 0,
                "localized": 2,
                "comprehensive": 1,
                "min_seconds": 4.0,
                "max_seconds": 20.0,
                "max_share": 0.5,
            },
            "questions": {
                "per_segment": 2,
                "types": (8.7, 12.4, 11.1, 18.0, 12.8, 7.5, 14.9, 13.5),
            },
            "answers": {
                "localized_chosen": "segment",
                "localized_rejected": ("rest",),
                "comprehensive_chosen": "full",
                "comprehensive_rejected": ("sparse:8",),
            },
            "captioner": role(8, 256, prompt="caption_v1"),
            "questioner": role(8, 256, prompt="question_v1", focus="focus_v1"),
            "answerer": role(32, 256),
            "judge": role(8, 32, prompt="judge_v1", asks="verdict", enabled=True),
            "balance": {
                "pairs": 0,
                "localized": 0.5,
                "per_video": 0,
                "max_length_ratio": 0.0,
                "types": False,
            },
            "shards": {"num_frames": 32, "frames": "clip", "workers": 2},
            "local": {"checkpoint": "", "dtype": "bfloat16", "batch_rows": 4},
            "openai": {
                "url": "",
                "model": "",
                "key_variable": "OPENAI_API_KEY",
                "image_size": 512,
                "concurrency": 8,
                "timeout": 120.0,
                "retries": 6,
                "backoff": 1.0,
                "patience": 20,
                "price_in": 0.0,
                "price_out": 0.0,
            },
            "rules": {"world_seed": 0, "slips": 0.1, "judge_slips": 0.0},
        }
    )
