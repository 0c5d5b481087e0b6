"""Tensors by their names from checkpoints of others, and networks no larger than their files.

torch reads a file with ``weights_only``, mapped into memory; where other objects lie beside the tensors,
`models.pickles` reads it, which runs nothing either. An archive's checksums are compared; safetensors has none.

Weights lie under a prefix that says what held the network:

    state_dict.model.layer1.0.conv1.weight        of Lightning, whose module has the network as ``model``
    model_ema.module.layer1.0.conv1.weight        of torchvision's references, the averaged copy beside ``model``
    state_dict._orig_mod.layer1.0.conv1.weight    of a compiled network

All tensors of a network under one prefix are a copy of its weights. Of several copies the averaged one is taken, with a
notice; another is chosen by its prefix.
"""

import re
import warnings
import zipfile
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
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
from steersman.models.pickles import Record, read_checkpoint

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

SHOWN, LONGEST = 3, 80  # names in a message, and characters of each
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
        known = [part for part in self.parts if part.rpartition(".")[2] in HOLDERS or _averaged(part)]
        if weights is not None and weights not in self.parts:
            raise InputError(self._not_there(weights, known))
        chosen = self._chosen(known) if weights is None else weights
        tensors = self.parts[chosen]
        if all(name.startswith("module.") for name in tensors):
            tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
        return self._checked(tensors)

    def _chosen(self, known: list[str]) -> str:
        def rank(part: str) -> tuple[bool, int]:
            last = part.rpartition(".")[2]
            return not _averaged(part), HOLDERS.index(last) if last in HOLDERS else len(HOLDERS)

        ordered = sorted(known, key=rank)
        if len({_averaged(part) for part in known}) > 1:
            other = next(part for part in ordered if not _averaged(part))
            notice(self._several(known, ordered[0], other))
        return next(iter([*ordered, *([""] if "" in self.parts else []), *self.parts]))

    def _several(self, copies: Collection[str], taken: str, other: str) -> str:
        return f"{str(self.path)!r} holds weights as {_listed(copies)}: {taken} is read, unless weights={other}"

    def _not_there(self, weights: str, copies: Collection[str]) -> str:
        return f"weights must be one of {_listed(copies) or 'none'}, as in {str(self.path)!r}, got {weights}"

    def state(self, names: Collection[str], *, weights: str | None = None) -> dict[str, Tensor]:
        """Returns a network's tensors by their names, floats in float32, of the copy whose prefix is ``weights``."""
        tensors = {
            WRAPPED.sub("", f"{part}.{name}" if part else name): tensor
            for part, held in self.parts.items()
            for name, tensor in held.items()
        }
        wanted = [name for name in names if not ASIDE.search(name)]
        copies = _copies(tensors, wanted)
        start = self._start(tensors, wanted, [copy for copy, missing in copies.items() if not missing], weights)
        if start is None:
            raise self._misfit(tensors, wanted, copies)
        found = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
        other = [name for name in found if name not in names and not ASIDE.search(name)]
        others = tuple(
            f"{part}." for part in self.parts if part and f"{part}.".startswith(start) and f"{part}." != start
        )
        if other := [name for name in other if not f"{start}{name}".startswith(others)] if others else other:
            raise Misfit(f"it has tensors that the network has no place for: {_listed(other)}")
        return {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in self._checked({name: found[name] for name in names if name in found}).items()
        }

    def _start(
        self, tensors: Mapping[str, Tensor], wanted: list[str], whole: list[str], weights: str | None
    ) -> str | None:
        """Returns the prefix of the copy to take, None where there is none."""
        first = {copy: tensors[f"{copy}{wanted[0]}"] for copy in reversed(whole)}
        plain = {copy: tensor.layout == torch.strided for copy, tensor in first.items()}
        distinct = {each.data_ptr() if plain[copy] else id(each): copy for copy, each in first.items()}
        listed = [copy.rstrip(".") or "the file itself" for copy in reversed(distinct.values())]
        if weights is not None:
            chosen = [copy for copy in whole if f"{copy}.".startswith(f"{weights}.")]
            if not chosen:
                raise InputError(self._not_there(weights, listed))
            return chosen[0]
        averaged = [copy for copy in distinct.values() if _averaged(copy)]
        chosen = averaged or list(distinct.values())
        if len(chosen) > 1:
            raise InputError(
                f"{str(self.path)!r} holds several copies of the weights: {_listed(listed)}; say which, as in "
                f"weights={_said(listed[0])}"
            )
        if len(distinct) > 1:
            taken = chosen[0].rstrip(".")
            notice(self._several(listed, taken, next(each for each in listed if each != taken)))
        return chosen[0] if chosen else None

    def _misfit(self, tensors: Mapping[str, Tensor], wanted: list[str], copies: Mapping[str, list[str]]) -> Misfit:
        if not copies:
            return Misfit(f"it has none of the network's tensors ({_listed(wanted)}), but {_listed(tensors) or 'none'}")
        start = min(copies, key=lambda copy: len(copies[copy]))
        other = [name.removeprefix(start) for name in tensors if name.startswith(start)]
        other = [name for name in other if name not in wanted and not ASIDE.search(name)]
        more = f"; it has {_listed(other)} besides" if other else ""
        return Misfit(f"it lacks {_listed(copies[start])}{more}")

    def _checked(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        size = self.path.stat().st_size
        for name, tensor in tensors.items():
            if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized:
                raise _refused(self.path, f"{_said(name)} is not a plain tensor")
            if not tensor.nbytes <= tensor.untyped_storage().nbytes() <= size:
                raise _refused(self.path, f"{_said(name)} is not a plain tensor with all its values")
        try:
            check_finite(tensors)
        except InputError as error:
            raise _refused(self.path, str(error)) from error
        return {name: tensor.detach() for name, tensor in tensors.items()}


def _averaged(part: str) -> bool:
    return AVERAGED.search(part) is not None


def _said(name: str) -> str:
    """Returns a file's own text, fit for a message."""
    return ascii(name)[1:-1][:LONGEST]


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(_said, list(names)[:SHOWN])) + (f", … ({len(names)} in all)" if len(names) > SHOWN else "")


def _copies(tensors: Mapping[str, Tensor], wanted: list[str]) -> dict[str, list[str]]:
    """Returns the prefixes of some of a network's tensors, and which tensors each lacks."""
    starts: dict[str, None] = {}
    for name in (wanted[0], wanted[len(wanted) // 2], wanted[-1]) if wanted else ():
        for each in tensors:
            if each == name or each.endswith(f".{name}"):
                starts[each.removesuffix(name)] = None
    return {start: [name for name in wanted if f"{start}{name}" not in tensors] for start in starts}


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Returns the content of a ``.safetensors`` file or of one that `torch.save` wrote, whatever holds the weights."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint must be a file of tensors, .safetensors, .pt or .pth, got {str(path)!r}")
    parts: dict[str, dict[str, Tensor]] = {}
    facts: dict[str, Any] = {}
    asked = ""
    if path.suffix == ".safetensors":
        parts[""] = _safetensors(path)
    else:
        content = _unpickled(path)
        asked = f", and asks for {_said(content.name)}" if isinstance(content, Record) else ""
        for place, value in _leaves(content, path):
            if isinstance(value, Record):
                asked = asked or f", and asks for {_said(value.name)}"
            elif isinstance(value, Tensor):
                parts.setdefault(place[0], {})[place[1]] = value
            elif place[0] == "args":
                facts[place[1]] = value
    if not any(parts.values()):
        raise _refused(path, f"it holds no tensors by their names{asked}")
    return Checkpoint(path=path, parts=parts, facts=facts)


def read_tensors(path: str | Path, *, weights: str | None = None) -> dict[str, Tensor]:
    """Returns the tensors of a file, on the CPU, in their own dtypes; see `Checkpoint.tensors`."""
    return open_checkpoint(path).tensors(weights=weights)


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuses weights that are not finite."""
    for name, tensor in tensors.items():
        narrow = tensor.is_floating_point() and tensor.itemsize == 1  # torch asks no float8 whether it is finite
        if not torch.isfinite(tensor.float() if narrow else tensor).all():
            raise InputError(f"{_said(name)} is not finite")


def _leaves(content: Any, path: Path) -> Iterator[tuple[tuple[str, str], Any]]:  # noqa: ANN401
    """Yields tensors, plain values and records with the key that holds them and their names within it."""
    waiting: deque[tuple[str, str, Any]] = deque([("", "", content)])
    length = 0
    while waiting:
        holder, within, node = waiting.popleft()
        module = isinstance(node, Record) and isinstance(node.state, dict) and "_modules" in node.state
        inside = module or bool(within)
        for key, value in _items(node):
            if not isinstance(key, str):
                continue
            transparent = key in TRANSPARENT and isinstance(node, Record)
            name = within if transparent else f"{within}{key}"
            length += len(holder) + len(name) + 1
            if length > MOST:
                raise _refused(path, "it nests deeper than a checkpoint does")
            if isinstance(value, Tensor | Record | int | float | str | list | tuple | None):
                yield (holder, name), value
            if isinstance(value, dict | Record):
                if inside or transparent:
                    waiting.append((holder, name if transparent else f"{name}.", value))
                else:
                    waiting.append((f"{holder}.{key}" if holder else key, "", value))


def _items(node: Any) -> list[tuple[Any, Any]]:  # noqa: ANN401
    if isinstance(node, Record):
        state = node.state if isinstance(node.state, dict) else {}
        return [*node.items.items(), *state.items()]
    return list(node.items()) if isinstance(node, dict) else []


def _safetensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors, with the shared ones that the writer names in the metadata alone."""
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            shared = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _refused(path, f"damaged, or not in the format of safetensors; {one_line(error)}") from error
    return tensors | {name: tensors[same] for name, same in shared.items() if name not in tensors and same in tensors}


def _unpickled(path: Path) -> Any:  # noqa: ANN401
    if check_archive(path):
        # A damaged file fails it anywhere, and what else it holds than tensors is refused.
        with suppress(Exception), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    try:
        return read_checkpoint(path)
    except InputError as error:
        raise _refused(path, "damaged, or not torch's") from error


def check_archive(path: Path) -> bool:
    """Returns whether a file is an archive as torch writes it; refuses a damaged or compressed one."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            # torch packs nothing, and what is packed may be a thousand times as large
            packed = [each.filename for each in archive.infolist() if each.compress_type != zipfile.ZIP_STORED]
            wrong = None if packed else archive.testzip()
    except Exception as error:  # a damaged directory can point anywhere
        raise _refused(path, f"damaged; {one_line(error)}") from error
    if packed or wrong:
        raise _refused(path, f"{packed[0]} is compressed" if packed else f"damaged; wrong checksum of {wrong}")
    return True


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
