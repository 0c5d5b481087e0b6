"""Tensors by their names from checkpoints of others, and networks no larger than their files.

`models.pickles` reads torch's files, mapped into memory, and runs nothing that lies beside the tensors. An archive's
checksums are compared; safetensors has none.

Weights lie under a prefix that says what held the network:

    state_dict.model.layer1.0.conv1.weight        of Lightning, whose module has the network as ``model``
    model_ema.module.layer1.0.conv1.weight        of torchvision's references, the averaged copy beside ``model``
    state_dict._orig_mod.layer1.0.conv1.weight    of a compiled network

All tensors of a network under one prefix are a copy of its weights. Of several copies the averaged one is taken, with a
notice; another is chosen by its prefix.
"""

import re
import zipfile
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from steersman.errors import InputError, notice, one_line
from steersman.files import regular
from steersman.models.pickles import Record, excerpt, read_checkpoint

__all__ = [
    "Checkpoint",
    "Misfit",
    "check_archive",
    "check_finite",
    "no_larger_than",
    "open_checkpoint",
    "read_tensors",
    "weights_size",
]

HOLDERS = ("model", "state_dict", "model_state_dict", "net", "network", "weights", "params", "generator")
"""Keys of weights in a training's state, the likelier first."""

AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?)([._]|$)", re.IGNORECASE)
"""Keys of averaged weights: ``ema``, ``state_dict_ema``, ``model_ema``, ``ema_model``, ``params_ema``."""

WRAPPED = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts of names that ``torch.compile`` and others add for the modules that they wrap."""

TRANSPARENT = ("_parameters", "_buffers", "_modules")
"""Attributes of a pickled module that are no part of its tensors' names."""

ASIDE = re.compile(
    r"(?:^|\.)(?:total_ops|total_params|num_batches_tracked|n_averaged)$"
    r"|^(?:criterion|loss\w*|metrics?|\w+_(?:acc|metrics?|loss))\."
)
"""Tensors beside a network's weights: of losses, metrics, counters."""

SHOWN = 3  # names in a message
MOST = 20_000_000  # characters of all names in a file, which may nest without end


class Misfit(InputError):
    """A file has no copy of a network's weights."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The content of a file.

    Attributes:
        path: The file.
        parts: Its tensors by their names, by the keys that hold them (``""``, ``state_dict``, ``state_dict.model``).
        facts: The numbers and texts of the training's ``args``.
    """

    path: Path
    parts: Mapping[str, Mapping[str, Tensor]]
    facts: Mapping[str, Any]

    def tensors(self, *, weights: str | None = None) -> dict[str, Tensor]:
        """Returns the tensors of a part, or of the likeliest: an averaged one, or that of a usual key."""
        holders = {part: part.rpartition(".")[2] for part in self.parts}
        known = [part for part, last in holders.items() if last in HOLDERS or _averaged(part)]
        known.sort(key=lambda part: HOLDERS.index(holders[part]) if holders[part] in HOLDERS else len(HOLDERS))
        if weights is not None and weights not in self.parts:
            raise self._not_there(weights, known)
        if weights is None:
            weights = self._preferred(known) if known else "" if "" in self.parts else next(iter(self.parts))
        tensors = self.parts[weights]
        if all(name.startswith("module.") for name in tensors):
            tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
        return self._checked(tensors)

    def state(self, names: Collection[str], *, weights: str | None = None) -> dict[str, Tensor]:
        """Returns a network's tensors by their names, floats in float32, of the copy whose prefix is ``weights``."""
        tensors = {
            WRAPPED.sub("", f"{part}.{name}" if part else name): tensor
            for part, content in self.parts.items()
            for name, tensor in content.items()
        }
        wanted = [name for name in names if not ASIDE.search(name)]
        lacking = _copies(tensors, wanted)
        whole = [start for start, missing in lacking.items() if not missing]
        if not whole and weights is None:
            raise _misfit(tensors, wanted, lacking)
        start = self._start({start: tensors[f"{start}{wanted[0]}"] for start in whole}, weights)
        found = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
        # What another part holds is no part of this copy, though its key may begin with this one's.
        prefixes = [f"{part}." for part in self.parts if part]
        others = tuple(prefix for prefix in prefixes if prefix.startswith(start) and prefix != start)
        other = [name for name in found if name not in names and not ASIDE.search(name)]
        if other := [name for name in other if not f"{start}{name}".startswith(others)]:
            raise Misfit(f"it has tensors that the network has no place for: {_listed(other)}")
        state = self._checked({name: found[name] for name in names if name in found})
        return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}

    def _start(self, copies: Mapping[str, Tensor], weights: str | None) -> str:
        """Returns the prefix of the copy to take, of those that are whole, each with its first tensor."""
        # One copy may have several names; it is listed by the first of them.
        distinct = {tensor.data_ptr(): start for start, tensor in reversed(copies.items())}
        named = {start.rstrip(".") or "the file itself": start for start in reversed(distinct.values())}
        if weights is None:
            return named[self._preferred(list(named), only=True)]
        chosen = next((start for start in copies if f"{start}.".startswith(f"{weights}.")), None)
        if chosen is None:
            raise self._not_there(weights, named)
        return chosen

    def _preferred(self, copies: list[str], *, only: bool = False) -> str:
        """Returns an averaged copy of some weights, else the first; ``only`` where the file must say which it is."""
        chosen = [copy for copy in copies if _averaged(copy)] or copies
        if only and len(chosen) > 1:
            raise InputError(
                f"{str(self.path)!r} holds several copies of the weights: {_listed(copies)}; say which, as in "
                f"weights={excerpt(copies[0])}"
            )
        if len(chosen) < len(copies):
            other = next(copy for copy in copies if copy not in chosen)
            listed = f"{str(self.path)!r} holds weights as {_listed(copies)}"
            notice(f"{listed}: {chosen[0]} is read, unless weights={other}")
        return chosen[0]

    def _not_there(self, weights: str, copies: Collection[str]) -> InputError:
        return InputError(
            f"weights must be one of {_listed(copies) or 'none'}, as in {str(self.path)!r}, got {weights}"
        )

    def _checked(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        try:
            for name, tensor in tensors.items():
                if tensor.nbytes > tensor.untyped_storage().nbytes():
                    raise InputError(f"{excerpt(name)} is not a plain tensor with all its values")
            check_finite(tensors)
        except (InputError, RuntimeError) as error:  # torch: a type without arithmetic, such as bits8
            raise _refused(self.path, str(error)) from error
        return dict(tensors)


def _averaged(part: str) -> bool:
    return AVERAGED.search(part) is not None


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(excerpt, list(names)[:SHOWN])) + (f", … ({len(names)} in all)" if len(names) > SHOWN else "")


def _copies(tensors: Mapping[str, Tensor], wanted: list[str]) -> dict[str, list[str]]:
    """Returns the prefixes of some of a network's tensors, and which tensors each lacks."""
    starts: dict[str, None] = {}
    # Three names of the network find its copies; a file may lack one of them, or have others of that name.
    for name in (wanted[0], wanted[len(wanted) // 2], wanted[-1]) if wanted else ():
        starts |= {each.removesuffix(name): None for each in tensors if each == name or each.endswith(f".{name}")}
    return {start: [name for name in wanted if f"{start}{name}" not in tensors] for start in starts}


def _misfit(tensors: Mapping[str, Tensor], wanted: list[str], lacking: Mapping[str, list[str]]) -> Misfit:
    """Returns the error for tensors of which none are a whole copy: what the nearest to one lacks and has besides."""
    if not lacking:
        return Misfit(f"it has none of the network's tensors ({_listed(wanted)}), but {_listed(tensors) or 'none'}")
    start = min(lacking, key=lambda start: len(lacking[start]))
    other = [name.removeprefix(start) for name in tensors if name.startswith(start)]
    other = [name for name in other if name not in wanted and not ASIDE.search(name)]
    more = f"; it has {_listed(other)} besides" if other else ""
    return Misfit(f"it lacks {_listed(lacking[start])}{more}")


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Returns the content of a ``.safetensors`` file or of one that `torch.save` wrote, whatever holds the weights."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint must be a file of tensors, .safetensors, .pt or .pth, got {str(path)!r}")
    content = _safetensors(path) if path.suffix == ".safetensors" else _unpickled(path)
    parts: dict[str, dict[str, Tensor]] = {}
    facts: dict[str, Any] = {}
    asked = [("", content)] if isinstance(content, Record) else []
    for holder, name, value in _leaves(content, path):
        if isinstance(value, Tensor):
            parts.setdefault(holder, {})[name] = value
        elif isinstance(value, Record):
            asked.append((name, value))
        elif holder == "args":
            facts[name] = value
    if not parts:
        if asked and asked[0][1].name.startswith("torch._utils._rebuild_"):  # sparse, quantized, on another device
            raise _refused(path, f"{excerpt(asked[0][0]) or 'it'} is not a plain tensor")
        more = f", and asks for {excerpt(asked[0][1].name)}" if asked else ""
        raise _refused(path, f"it holds no tensors by their names{more}")
    return Checkpoint(path=path, parts=parts, facts=facts)


def read_tensors(path: str | Path, *, weights: str | None = None) -> dict[str, Tensor]:
    """Returns the tensors of a file, on the CPU, in their own dtypes; see `Checkpoint.tensors`."""
    return open_checkpoint(path).tensors(weights=weights)


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuses weights that are not finite."""
    for name, tensor in tensors.items():
        narrow = tensor.is_floating_point() and tensor.itemsize == 1  # torch asks no float8 whether it is finite
        if not torch.isfinite(tensor.float() if narrow else tensor).all():
            raise InputError(f"{excerpt(name)} is not finite")


def _leaves(content: object, path: Path) -> Iterator[tuple[str, str, object]]:
    """Yields tensors, plain values and records, each with the keys that hold it and its name within them."""
    waiting: deque[tuple[str, str, object]] = deque([("", "", content)])
    length = 0
    while waiting:
        holder, prefix, node = waiting.popleft()
        state = node.state if isinstance(node, Record) and isinstance(node.state, dict) else {}
        mapping = node.items if isinstance(node, Record) else node if isinstance(node, dict) else {}
        for key, value in [*mapping.items(), *state.items()]:
            if not isinstance(key, str):
                continue
            # A module's tensors have names within it; a mapping of others is a part of its own.
            transparent = isinstance(node, Record) and key in TRANSPARENT
            name = prefix if transparent else f"{prefix}{key}"
            length += len(holder) + len(name) + 1
            if length > MOST:
                raise _refused(path, "it nests deeper than a checkpoint does")
            if isinstance(value, Tensor | Record | int | float | str | list | tuple | None):
                yield holder, name, value
            if not isinstance(value, dict | Record):
                continue
            if transparent:
                waiting.append((holder, name, value))
            elif prefix or "_modules" in state:
                waiting.append((holder, f"{name}.", value))
            else:
                waiting.append((f"{holder}.{key}" if holder else key, "", value))


def _safetensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors, with the shared ones that the writer names in the metadata alone."""
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            shared = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _refused(path, f"damaged, or not in the format of safetensors; {one_line(error)}") from error
    return tensors | {name: tensors[same] for name, same in shared.items() if name not in tensors and same in tensors}


def _unpickled(path: Path) -> object:
    check_archive(path)
    try:
        return read_checkpoint(path)
    except InputError as error:
        raise _refused(path, "damaged, or not torch's") from error


def check_archive(path: Path) -> None:
    """Refuses a damaged or compressed archive; a file that is none passes."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            # torch packs nothing, and what is packed may be a thousand times as large
            packed = [each.filename for each in archive.infolist() if each.compress_type != zipfile.ZIP_STORED]
            wrong = None if packed else archive.testzip()
    except Exception as error:  # a damaged directory can point anywhere
        raise _refused(path, f"damaged; {one_line(error)}") from error
    if packed or wrong:
        raise _refused(path, f"{packed[0]} is compressed" if packed else f"damaged; wrong checksum of {wrong}")


def _refused(path: Path, reason: str) -> InputError:
    return InputError(f"checkpoint: {str(path)!r} cannot be read ({reason})")


@contextmanager
def no_larger_than(size: int) -> Iterator[None]:
    """Refuses networks built within that have more than ``size`` numbers, which a file of as many bytes cannot fill.

    On torch's ``meta`` device tensors take no memory, however wide a network claims to be; a deep one is refused as it
    grows.
    """
    built = 0

    def count(_module: nn.Module, _name: str, values: Tensor | None) -> None:
        nonlocal built
        built += 0 if values is None else values.numel()
        if built > size:
            raise InputError("its settings tell of a larger network than its weights do")

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def weights_size(folder: Path) -> int:
    """Returns how many bytes of safetensors a folder has, all with whole headers."""
    files = list(folder.glob("*.safetensors"))
    for file in files:
        with safe_open(regular(file), "pt"):
            pass
    return sum(file.stat().st_size for file in files)
