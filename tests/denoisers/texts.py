"""Text pipelines of every family with tiny encoders of random weights, and how small their images are drawn."""

import diffusers
import torch
import transformers

from pipelines import families

WORDS = ("a", "ball", "dab", "bed")
SPECIAL = ("<pad>", "</s>", "<unk>")


def clip(kind=transformers.CLIPTextModel, seed=0, **config):
    torch.manual_seed(seed)
    return kind(families.text_config(**config)).eval()


def t5():
    torch.manual_seed(3)
    config = transformers.T5Config(
        vocab_size=16, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    vocab = [(each, 0.0) for each in SPECIAL] + [(f"▁{word}", -1.0) for word in WORDS]
    encoder = transformers.T5EncoderModel(config).eval()
    torch.nn.init.normal_(encoder.shared.weight)
    return encoder, transformers.T5Tokenizer(vocab=vocab, extra_ids=0)


def gemma():
    torch.manual_seed(4)
    config = transformers.Gemma2Config(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *sorted(set("".join(WORDS)))]
    tokenizer = transformers.GemmaTokenizer(vocab={each: place for place, each in enumerate(letters)})
    return transformers.Gemma2Model(config).eval(), tokenizer


def make(name):
    """A family's pipeline with encoders; those of noise by DDIM."""
    pipe = families.make(name)
    projected = transformers.CLIPTextModelWithProjection
    match name:
        case "SDXL":
            parts = {"text_encoder": clip(), "text_encoder_2": clip(projected, 1, projection_dim=32)}
            parts |= {"tokenizer": families.tokenizer(), "tokenizer_2": families.tokenizer()}
        case "SD3":
            parts = {key: clip(projected, seed, size=16, projection_dim=32) for seed, key in enumerate(ENCODERS)}
            parts |= {"tokenizer": families.tokenizer(), "tokenizer_2": families.tokenizer()}
            parts |= dict(zip(("text_encoder_3", "tokenizer_3"), t5(), strict=True))
        case "Flux":
            parts = {"text_encoder": clip(), "tokenizer": families.tokenizer()}
            parts |= dict(zip(("text_encoder_2", "tokenizer_2"), t5(), strict=True))
        case "PixArt":
            parts = dict(zip(("text_encoder", "tokenizer"), t5(), strict=True))
        case "Sana":
            parts = dict(zip(("text_encoder", "tokenizer"), gemma(), strict=True))
        case _:
            parts = {}
    pipe.register_modules(**parts)
    if not families.FAMILIES[name].flow:
        pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    network = pipe.components.get("unet") or pipe.transformer
    for weight in network.parameters():  # of the size that they have after training, so that texts matter
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5 / weight[0].numel() ** 0.5)
    return pipe


ENCODERS = ("text_encoder", "text_encoder_2")
SIZES = {"Flux": (16, 24), "Sana": (32, 32)}
TEXTS = ("SD", "SDXL", "SD3", "Flux", "PixArt", "Sana")
