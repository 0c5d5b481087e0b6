"""A pipeline's folder as diffusers saves it: a folder a part, and ``model_index.json`` that says which there are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError

from steersman.errors import InputError, one_line, unknown

__all__ = ["Folder"]

PARTS = ("scheduler", "unet", "transformer", "vae")
WHOLE = ({"scheduler", "unet"}, {"scheduler", "unet", "vae"}, {"scheduler", "transformer", "vae"})
LAYOUT = "a folder with unet/ and scheduler/, or transformer/, vae/ and scheduler/, as diffusers saves them"

Model = TypeVar("Model", bound=ModelMixin)


class Folder:
    """The parts of a denoiser in a folder.

    Args:
        path: The folder.

    Attributes:
        found: Which parts there are.
        names: The names of the labels in its ``model_index.json``, by their numbers; none where it has none.

    Raises:
        InputError: It is not there, or what it holds is not a denoiser, of pixels or of a VAE's latents.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.found = {part for part in PARTS if (self.path / part).is_dir()}
        if self.found not in WHOLE:
            raise InputError(f"denoiser: {str(path)!r} given; allowed: {LAYOUT}")
        index = self.settings("model_index.json") if (self.path / "model_index.json").is_file() else {}
        more = [key for key, value in index.items() if isinstance(value, list) and any(value) and key not in PARTS]
        if more:
            kind = index.get("_class_name", "pipeline")
            raise InputError(f"denoiser: {str(path)!r} is a {kind} with {', '.join(more)} as well; allowed: {LAYOUT}")
        names = index.get("id2label") or {}
        self.names = tuple(names[key] for key in sorted(names, key=int))

    def settings(self, name: str) -> Mapping[str, Any]:
        """Returns what a JSON file of the folder says.

        Raises:
            InputError: It is not there, or is no JSON.
        """
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error

    def model(self, part: str, *kinds: type[Model]) -> Model:
        """Returns a part with its weights, of one of these kinds; of the first where it does not say which.

        Raises:
            InputError: It is of another kind, or cannot be read.
        """
        known = {kind.__name__: kind for kind in kinds}
        given = self.settings(f"{part}/config.json").get("_class_name", kinds[0].__name__)
        if given not in known:
            raise unknown(part, given, known)
        try:
            return known[given].from_pretrained(self.path / part, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> InputError:
        return InputError(f"denoiser: {str(self.path)!r} cannot be read ({one_line(error)})")
