"""A pipeline's networks while it is steered: offloaded, frozen, recomputed, and left as they were."""

import contextlib
import copy

import pytest
import torch
from torch import nn

import steersman
from pipelines.families import FAMILIES, draw, make, wide
from steersman.batching import each_tensor
from steersman.errors import InputError
from steersman.guidance import ClassProbability

FUNCTION = "_gradient_checkpointing_func"  # diffusers leaves it there when it stops


def state_of(pipe):
    """Everything that steering could leave behind."""
    modules = [each for each in pipe.components.values() if isinstance(each, nn.Module)]
    parts = [part for module in modules for part in module.modules()]
    return (
        {key for key in vars(pipe.scheduler)},
        [(sorted(set(vars(part)) - {FUNCTION}), getattr(part, "gradient_checkpointing", None)) for part in parts],
        [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts],
        [weight.requires_grad for module in modules for weight in module.parameters()],
        [weight.grad is None for module in modules for weight in module.parameters()],
        dict(vars(pipe)).keys(),
    )


@pytest.mark.parametrize(
    ("name", "wrt"),
    wide(
        [(name, wrt) for name in ("DDPM", "DiT", "SD", "Flux") for wrt in ("x0_hat", "x_t")],
        [("SD", "x_t"), ("DDPM", "x0_hat")],
    ),
)
def test_the_pipeline_is_left_as_it_was(name, wrt, guide):
    pipe = make(name)
    draw(pipe, name)
    before = state_of(pipe)
    with steersman.steer(pipe, guide(wrt=wrt), target=1):
        assert state_of(pipe) != before
        draw(pipe, name)
    assert state_of(pipe) == before

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    calls = []
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    with pytest.raises(Stop), steersman.steer(pipe, guide(wrt=wrt), target=1):
        hook = network.register_forward_hook(lambda *_: calls.append(0) or (stop() if len(calls) == 2 else None))
        draw(pipe, name)
    hook.remove()
    assert len(calls) == 2
    assert state_of(pipe) == before
    assert torch.is_grad_enabled()


@pytest.mark.long
def test_an_offloaded_pipeline_is_steered_without_its_gradient(guide):
    accelerate = pytest.importorskip("accelerate")
    pipe = make("SD")
    with steersman.steer(pipe, guide(), target=1):
        expected = draw(pipe, "SD")
    for module in (pipe.text_encoder, pipe.unet, pipe.vae):
        accelerate.cpu_offload(module, torch.device("cpu"))
    with steersman.steer(pipe, guide(), target=1):
        assert (draw(pipe, "SD") - expected).abs().max() < 1e-5
    with pytest.raises(InputError, match="offloaded"), steersman.steer(pipe, guide(wrt="x_t"), target=1):
        pass


def test_a_pipeline_whose_models_come_and_go_is_steered_without_its_gradient(guide):
    """As ``enable_model_cpu_offload`` does: each model is fetched when it is called, and sent away for the next one."""
    accelerate = pytest.importorskip("accelerate")
    pipe = make("SD")
    with steersman.steer(pipe, guide(), target=1):
        expected = draw(pipe, "SD")
    before, device = None, torch.device("cpu")
    for module in (pipe.text_encoder, pipe.unet, pipe.vae):
        _, before = accelerate.cpu_offload_with_hook(module, device, prev_module_hook=before)
    with steersman.steer(pipe, guide(), target=1):
        assert (draw(pipe, "SD") - expected).abs().max() < 1e-5
    with pytest.raises(InputError, match="offloaded"), steersman.steer(pipe, guide(wrt="x_t"), target=1):
        pass


NEW = ("Chroma", "FLUX.2", "Qwen-Image", "Z-Image", "Kandinsky 2.2", "Wan", "LTX", "CogVideoX")


@pytest.mark.parametrize("name", wide(["SD", "SDXL", "SD3", "Flux", *NEW], ["FLUX.2"]))
def test_models_that_come_and_go_on_an_accelerator_are_steered(name, guide, classifier, accelerator):
    pytest.importorskip("accelerate")
    objective = ClassProbability(classifier=copy.deepcopy(classifier).to("cuda"))
    call = {**each_tensor(FAMILIES[name].call(), lambda x: x.to("cuda")), "output_type": "latent", "generator": None}
    found = []
    for offloads in (False, True):
        pipe = copy.deepcopy(make(name))  # other tests share its networks
        pipe.enable_model_cpu_offload(device="cuda") if offloads else pipe.to("cuda")
        with steersman.steer(pipe, guide(objective=objective), target=1):
            found.append(draw(pipe, name, **call).cpu())
    assert (found[0] - found[1]).abs().max() < 1e-5
    with (
        pytest.raises(InputError, match="offloaded"),
        steersman.steer(pipe, guide(objective=objective, wrt="x_t"), target=1),
    ):
        pass


@pytest.mark.parametrize("name", wide(NEW, ["Z-Image"]))
def test_a_new_family_whose_weights_are_offloaded_one_by_one_is_steered(name, guide):
    accelerate = pytest.importorskip("accelerate")
    pipe = copy.deepcopy(make(name))
    with steersman.steer(pipe, guide(), target=1):
        expected = draw(pipe, name, output_type="latent")
    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            own = len(module._parameters) > 0  # as enable_sequential_cpu_offload has it
            accelerate.cpu_offload(module, torch.device("cpu"), offload_buffers=own)
    with steersman.steer(pipe, guide(), target=1):
        assert (draw(pipe, name, output_type="latent") - expected).abs().max() < 1e-5


@pytest.mark.few(9)
@pytest.mark.parametrize("how", ["slicing", "tiling"])
def test_a_vae_in_slices_or_tiles_is_differentiated_so(how, guide, likelihood):
    pipe = make("SD")
    with steersman.steer(pipe, guide(), target=1):
        whole = draw(pipe, "SD", output_type="latent")
    getattr(pipe.vae, f"enable_{how}")()
    pipe.vae.tile_latent_min_size = 6
    with steersman.steer(pipe, guide(), target=1):
        parts = draw(pipe, "SD", output_type="latent")
    # it decodes one image at a time anyway; tiles have borders of their own
    assert (parts - whole).abs().max() < 1e-6 if how == "slicing" else (parts - whole).abs().max() > 1e-3
    plain = draw(pipe, "SD")
    with steersman.steer(pipe, guide(), target=1):
        assert (likelihood(draw(pipe, "SD"), 1) > likelihood(plain, 1) + 0.01).all()


def test_a_network_that_recomputes_has_the_same_gradient(guide):
    pipe = make("SD")
    with steersman.steer(pipe, guide(wrt="x_t"), target=1):
        expected = draw(pipe, "SD")
    pipe.unet.enable_gradient_checkpointing()
    with steersman.steer(pipe, guide(wrt="x_t"), target=1):
        assert (draw(pipe, "SD") - expected).abs().max() < 1e-5
    assert pipe.unet.is_gradient_checkpointing


def test_the_vae_s_blocks_are_computed_again_rather_than_kept(guide, monkeypatch):
    def kept():
        sizes = {}

        def note(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        pipe = make("SD", "Euler")
        with steersman.steer(pipe, guide(), target=1), torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            draw(pipe, "SD", 1)
        weights = {weight.untyped_storage().data_ptr() for weight in pipe.vae.parameters()}
        return sum(size for place, size in sizes.items() if place not in weights)

    few = kept()
    monkeypatch.setattr("steersman.pipelines.steered._recomputed", lambda _: contextlib.nullcontext())
    assert few < 0.5 * kept()


def test_a_vae_that_overflows_in_half_precision_decodes_in_single(guide):
    pipe = make("SDXL")
    pipe.vae.half()
    pipe.vae.register_to_config(force_upcast=True)
    draw(pipe, "SDXL")
    before = state_of(pipe)
    with steersman.steer(pipe, guide(), target=1):
        images = draw(pipe, "SDXL")
    assert images.isfinite().all()
    assert pipe.vae.dtype == torch.float16
    assert state_of(pipe) == before
