"""Stands for the package `wandb`."""

import types


class FakeWandb(types.ModuleType):
    """The part of `wandb` that a run calls, and what was given to it."""

    key = "very-secret"

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = types.SimpleNamespace()
        self.calls, self.logged, self.finished = [], [], 0

    def init(self, **settings):
        self.calls.append(settings)
        return self

    def log(self, scalars, step):
        self.logged.append((step, dict(scalars)))

    def finish(self):
        self.finished += 1
