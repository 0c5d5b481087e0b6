"""EDM's released network of ImageNet from its ``.pkl``: ADM's U-Net inside EDM's preconditioning (`edm_layout`)."""

from pathlib import Path

from steersman.errors import InputError, unknown
from steersman.models.denoisers.edm import EDMDenoiser
from steersman.models.denoisers.edm_layout import edm_unet
from steersman.models.denoisers.records import modules
from steersman.models.pickles import Record, read_pickle
from steersman.schedule import EDM

__all__ = ["load_edm"]

RELEASED = "edm-imagenet-64x64-cond-adm.pkl"
FETCH = (
    f"edm:FILE, of a network that EDM saved; fetch https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/{RELEASED} to there"
)


def load_edm(name: str) -> EDMDenoiser:
    """Returns the network of a file, in float32 on the CPU.

    Labels have ImageNet's names in the released file, else their numbers.
    It walks through the range of sigma that it supports, within EDM's own. It knows images without a label where
    labels were left out in training (``label_dropout``), which EDM's released ones did not.

    Args:
        name: A file as EDM's training writes it, with the network under ``ema``. The code in it is not run.

    Raises:
        InputError: It is not there, cannot be read, or holds another network than EDM's ADM.
    """
    path = Path(name)
    if not path.is_file():
        raise InputError(f"denoiser: no file {name!r}; give {FETCH}")
    content = read_pickle(path)
    root = content.get("ema") if isinstance(content, dict) else None
    try:
        if not isinstance(root, Record):
            raise InputError("it holds no network named ema")
        denoiser = _denoiser(root)
    except InputError as error:
        raise InputError(f"denoiser: {name!r} is another network ({error})") from error
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise InputError(f"denoiser: {name!r} is another network, or damaged; give {FETCH}") from error
    if path.name == RELEASED and len(denoiser.classes) == 1000:
        from steersman.names import imagenet_names

        denoiser.classes = imagenet_names()
    return denoiser


def _denoiser(root: Record) -> EDMDenoiser:
    found = modules(root)
    outside = found[""]
    if outside.kind != "EDMPrecond":
        raise unknown("preconditioning", outside.kind, ["EDMPrecond"])
    if found["model"].kind != "DhariwalUNet":
        raise unknown("architecture", found["model"].kind, ["DhariwalUNet"])
    told, own = outside.attributes, EDM()
    size, channels = told["img_resolution"], told["img_channels"]
    inside = {name.removeprefix("model."): each for name, each in found.items() if name.startswith("model.")}
    network = edm_unet(inside, size=size, channels=channels)
    labels = (network.config["num_class_embeds"] or 1) - 1  # the last row is for none
    if told["label_dim"] != labels:
        raise InputError(f"label_dim must be {labels}, as its network has, got {told['label_dim']}")
    return EDMDenoiser(
        network,
        shape=(channels, size, size),
        classes=tuple(map(str, range(labels))),
        unconditional=found["model"].attributes["label_dropout"] > 0,
        sigma_data=float(told["sigma_data"]),
        schedule=EDM(
            ratio_min=max(own.ratio_min, float(told["sigma_min"])),
            ratio_max=min(own.ratio_max, float(told["sigma_max"])),
        ),
    )
