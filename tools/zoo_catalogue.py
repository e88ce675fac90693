"""Which architectures the zoo is made of: data, and how each library builds one with random weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

TORCHVISION = {
    "alexnet": 224, "vgg11_bn": 224, "resnet34": 96, "resnet101": 96, "wide_resnet50_2": 96,
    "resnext101_64x4d": 96, "densenet169": 96, "googlenet": 96, "mnasnet1_0": 96, "mobilenet_v3_large": 96,
    "shufflenet_v2_x1_0": 96, "squeezenet1_0": 96, "efficientnet_b1": 96, "regnet_x_400mf": 96,
    "convnext_tiny": 96, "vit_b_32": 224, "swin_t": 96, "maxvit_t": 224,
}  # fmt: skip
"""Image classifiers of torchvision and the picture size that they are exported at."""

TIMM = {
    "cs3darknet_s": 128, "csatv2": 224, "convnextv2_femto": 96, "crossvit_tiny_240": 240,
    "deit3_small_patch16_224": 224, "eca_resnet33ts": 128, "efficientnet_lite0": 96,
    "eva02_tiny_patch14_224": 224, "focalnet_tiny_srf": 224,
    "gcresnet33ts": 128, "ghostnetv2_100": 96, "hrnet_w18": 96, "inception_next_atto": 96, "levit_128s": 224,
    "mixer_s32_224": 224, "mobileone_s0": 96, "mobilevit_xxs": 128, "nfnet_l0": 128, "pit_ti_224": 224,
    "poolformer_s12": 96, "pvt_v2_b0": 96, "regnety_002": 96, "regnetz_b16": 96, "repvgg_a0": 96, "resnest14d": 96,
    "rexnet_100": 96, "selecsls42b": 96, "seresnet18": 96, "skresnet18": 96, "tf_efficientnetv2_b0": 96,
    "tiny_vit_5m_224": 224, "tresnet_m": 96, "vovnet39a": 96, "xception71": 96,
}  # fmt: skip
"""Models of timm and the picture size that they are exported at."""

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
WORDS = {"vocab_size": 200}
TOKENS, PICTURES, SOUND = "tokens", "pictures", "sound"
TRANSFORMERS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("Albert", "Model", {**SMALL, **WORDS, "embedding_size": 32}, TOKENS),
    ("BigBird", "Model", {**SMALL, **WORDS, "attention_type": "original_full"}, TOKENS),
    ("Bloom", "Model", {"hidden_size": 64, "n_layer": 2, "n_head": 4, **WORDS}, TOKENS),
    ("Electra", "Model", {**SMALL, **WORDS, "embedding_size": 32}, TOKENS),
    ("Falcon", "Model", {**SMALL, **WORDS, "ffn_hidden_size": 128}, TOKENS),
    ("GPTNeoX", "Model", {**SMALL, **WORDS}, TOKENS),
    ("Llama", "ForCausalLM", {**SMALL, **WORDS, "num_key_value_heads": 2}, TOKENS),
    ("Mistral", "ForCausalLM", {**SMALL, **WORDS, "num_key_value_heads": 2, "sliding_window": None}, TOKENS),
    ("Olmo2", "ForCausalLM", {**SMALL, **WORDS}, TOKENS),
    ("Qwen3", "ForCausalLM", {**SMALL, **WORDS, "num_key_value_heads": 2, "head_dim": 16}, TOKENS),
    ("Beit", "Model", {**SMALL, "image_size": 32, "patch_size": 8}, PICTURES),
    ("Segformer", "Model", {"hidden_sizes": [16, 32, 64, 96], "depths": [1, 1, 1, 1]}, PICTURES),
    ("ResNet", "Model", {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 1, 1]}, PICTURES),
    ("ViT", "Model", {**SMALL, "image_size": 32, "patch_size": 8}, PICTURES),
    ("UniSpeech", "Model", {**SMALL, "conv_dim": (32, 32, 32), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2),
                            "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}, SOUND),
)  # fmt: skip
"""Models of transformers: family, head, what makes the configuration small, and what they are fed."""

KERAS = ("DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "MobileNetV2", "ResNet101V2", "VGG16", "Xception")
"""Networks of keras.applications."""

FORMS: dict[str, Callable[[], torch.Tensor]] = {
    TOKENS: lambda: torch.randint(0, 200, (2, 12)),
    PICTURES: lambda: torch.randn(2, 3, 32, 32),
    SOUND: lambda: torch.randn(2, 800),
}
MOVING = {TOKENS: {0: "batch", 1: "tokens"}, PICTURES: {0: "batch"}, SOUND: {0: "batch"}}


@dataclass(frozen=True)
class Entry:
    """One architecture: `make` gives the network, an example input, and the names of its dynamic axes."""

    source: str
    name: str
    make: Callable[[], tuple[nn.Module, torch.Tensor, dict[int, str]]]
    legacy: bool = field(default=False)

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.source}_{self.name.lower()}.onnx"


def entries() -> Iterator[Entry]:
    """Yields every architecture; every third one of torchvision and timm is for the older exporter."""
    for k, (name, size) in enumerate(TORCHVISION.items()):
        yield Entry("torchvision", name, lambda n=name, s=size: _torchvision(n, s), legacy=k % 3 == 0)
    for k, (name, size) in enumerate(TIMM.items()):
        yield Entry("timm", name, lambda n=name, s=size: _timm(n, s), legacy=k % 3 == 0)
    for family, head, small, form in TRANSFORMERS:
        yield Entry("transformers", family, lambda a=(family, head, small, form): _transformers(*a))
    for name in KERAS:
        yield Entry("keras", name, lambda n=name: _keras(n))


def _torchvision(name: str, size: int) -> tuple[nn.Module, torch.Tensor, dict[int, str]]:
    """Returns a classifier; the wheel's own operators (boxes) don't load beside a CPU build; none here uses them."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

    extra = {"init_weights": True} if name == "googlenet" else {}
    net = torchvision.models.get_model(name, weights=None, **extra)
    return net, torch.randn(2, 3, size, size), {0: "batch"}


def _timm(name: str, size: int) -> tuple[nn.Module, torch.Tensor, dict[int, str]]:
    import timm

    return timm.create_model(name, exportable=True), torch.randn(2, 3, size, size), {0: "batch"}


class _First(nn.Module):
    """The first output of a model of transformers, without its cache."""

    def __init__(self, net: nn.Module, form: str) -> None:
        super().__init__()
        self.net, self.form = net, form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        extra = {"use_cache": False} if self.form == TOKENS and hasattr(self.net.config, "use_cache") else {}
        first: torch.Tensor = self.net(x, return_dict=False, **extra)[0]
        return first


def _transformers(family: str, head: str, small: dict[str, Any], form: str) -> Any:
    import transformers

    config = getattr(transformers, f"{family}Config")(**small)
    config._attn_implementation = "eager"
    net = getattr(transformers, family + head)(config)
    return _First(net, form), FORMS[form](), MOVING[form]


def _keras(name: str) -> tuple[nn.Module, torch.Tensor, dict[int, str]]:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    net = getattr(keras.applications, name)(weights=None, input_shape=(96, 96, 3), classifier_activation=None)
    return OfKeras(net), torch.randn(2, 96, 96, 3), {0: "batch"}


class OfKeras(nn.Module):
    """A network of Keras with a signature that the exporter can read."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the scores."""
        result: torch.Tensor = self.net(x, training=False)
        return result

    def settle(self, x: torch.Tensor) -> None:
        """Takes the statistics of `x` into every BatchNormalization."""
        for layer in self.net._flatten_layers():
            if type(layer).__name__ == "BatchNormalization":
                layer.momentum = 0.0
        self.net(x, training=True)
