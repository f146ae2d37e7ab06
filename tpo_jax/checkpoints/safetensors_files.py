"""Safetensors files, read slice by slice and written tensor by tensor."""

import json
import math
import struct
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

from tpo_jax.errors import InputError
from tpo_jax.families.weights import Rename
from tpo_jax.io.files import read_json_object

INDEX = "model.safetensors.index.json"
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}


class _Tensor(NamedTuple):
    path: Path  # of the file
    stored: str  # name in it
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it


class TensorFiles:
    """The safetensors files of a directory, read by slice.

    A file is open only while it is read: its pages are given back, and a model of many files takes
    no more memory than the part asked for.

    Raises:
        InputError: no such files, a truncated one, an index that does not match them.
    """

    def __init__(self, directory: Path, rename: Rename = str):
        """Read the headers.

        Args:
            directory: holds the files.
            rename: maps a stored name to the one under which the tensor is asked for; None leaves
                the tensor out.
        """
        self.directory = directory
        self.directories: list[Path] = []  # that of every part
        self.files: dict[str, list[str]] = {}  # names in the order of their bytes
        self.metadata: dict[str, dict | None] = {}  # of the files' headers
        self._tensors: dict[str, _Tensor] = {}
        self._add(directory, rename, "")

    def add(self, directory: Path, rename: Rename) -> None:
        """Add the tensors of a part of the model that has a directory of its own."""
        self._add(directory, rename, "part-")

    def _add(self, directory: Path, rename: Rename, prefix: str) -> None:
        self.directories.append(directory)
        index = directory / INDEX
        if index.is_file():
            indexed = read_json_object(index).get("weight_map")
            if not isinstance(indexed, dict) or not all(type(f) is str for f in indexed.values()):
                raise InputError(f"{index}: weight_map must name the file of every tensor")
            files = sorted(set(indexed.values()))
        else:
            indexed, files = {}, sorted(path.name for path in directory.glob("*.safetensors"))
        if not files:
            raise InputError(
                f"{directory}: no .safetensors files (pickled .bin files are never loaded; "
                "store the weights as safetensors first)"
            )
        found: dict[str, str] = {}  # file by stored name
        for file in files:
            if Path(file).name != file or not (directory / file).is_file():
                raise InputError(f"{index} names {file}, which does not exist")
            with _opened(directory / file) as opened:
                names: list[str] = []
                self.files[prefix + file], self.metadata[prefix + file] = names, opened.metadata()
                for stored in opened.offset_keys():
                    found[stored], name = file, rename(stored)
                    if name is None:
                        continue
                    if name in self:
                        both = f"{self._tensors[name].path.name} and {file}"
                        raise InputError(f"{directory}: {name} is in both {both}")
                    names.append(name)
                    part = opened.get_slice(stored)
                    shape, dtype = tuple(part.get_shape()), part.get_dtype()
                    self._tensors[name] = _Tensor(directory / file, stored, shape, dtype)
        for stored, file in indexed.items():
            if found.get(stored) != file:
                raise InputError(f"{index} says that {stored} is in {file}; it is not")

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._tensors[name].shape

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors by name."""
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def dtype(self, name: str) -> str:
        """Return the dtype of a tensor, as safetensors names it."""
        return self._tensors[name].dtype

    def stored(self, name: str) -> str:
        """Return the name of a tensor in its file, or `name` if another directory has it."""
        tensor = self._tensors[name]
        return tensor.stored if tensor.path.parent == self.directory else name

    def read(self, name: str, index: tuple = ()) -> np.ndarray:
        """Read a tensor, or a rectangle of it.

        Raises:
            InputError: NaN or infinity in what was read.
        """
        path, stored, *_ = self._tensors[name]
        with _opened(path) as opened:
            values = opened.get_slice(stored)[index] if index else opened.get_tensor(stored)
        if jnp.issubdtype(values.dtype, jnp.floating) and not np.isfinite(values).all():
            raise InputError(f"{path}: {stored} holds NaN or infinity")
        return values


def _opened(path: Path) -> safetensors.safe_open:
    try:
        return safetensors.safe_open(path, "numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error})") from error


class Entry(NamedTuple):
    """A tensor of a file to be written."""

    dtype: str  # as safetensors names it
    shape: tuple[int, ...]
    itemsize: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.itemsize


class SafetensorsWriter:
    """A file whose header is written first and whose tensors follow in any order.

    The library's own writer wants every tensor of a file in memory at once. What is not written
    stays zero.
    """

    def __init__(self, path: Path, entries: dict[str, Entry], metadata: dict | None):
        """Write the header.

        Args:
            entries: tensors in their order; as the library does, larger dtypes come first.
            metadata: text to text, for the header.
        """
        header: dict = {"__metadata__": metadata} if metadata else {}
        self._path, self._starts, end = path, {}, 0
        for name in sorted(entries, key=lambda name: -entries[name].itemsize):
            entry = entries[name]
            self._starts[name] = end
            end += entry.nbytes
            header[name] = {
                "dtype": entry.dtype,
                "shape": entry.shape,
                "data_offsets": [self._starts[name], end],
            }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._data = 8 + len(text)
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(self._data + end)

    def write(self, name: str, values: np.ndarray) -> None:
        """Write a tensor, given in the dtype and shape of its entry."""
        with self._path.open("r+b") as file:
            file.seek(self._data + self._starts[name])
            file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
