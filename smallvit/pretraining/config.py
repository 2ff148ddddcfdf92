"""The methods of stage 1 and their settings; this file imports no torch, so that help is quick."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from smallvit.core.config import Range
from smallvit.core.errors import ConfigError, UnknownNameError
from smallvit.data.config import ViewsConfig


def one_plain_view(scale: tuple[float, float]) -> ViewsConfig:
    """Return one large view, cropped and flipped, in the image's own colours.

    Args:
        scale: Area of the crop as a fraction of the image's, in [0, 1].
    """
    return ViewsConfig(
        num_global=1,
        num_local=0,
        global_scale=scale,
        color_jitter_prob=0.0,
        grey_prob=0.0,
        blur_prob=(0.0, 0.0, 0.0),
        solarize_prob=0.0,
    )


def check_views(views: ViewsConfig, why: str, **needed: int) -> None:
    """Refuse other numbers of views than a method looks at.

    Args:
        views: What was asked for.
        why: Which method, and what it does with the views.
        needed: The only value of each setting of their number.

    Raises:
        ConfigError: Names the settings, and the values that are needed.
    """
    wrong = [
        f"method.views.{key} ({getattr(views, key)}) must be {number}"
        for key, number in needed.items()
        if getattr(views, key) != number
    ]
    if wrong:
        raise ConfigError(f"{' and '.join(wrong)}: {why}")


def check_one_view(method: str, views: ViewsConfig) -> None:
    """Refuse any views but one large one."""
    check_views(views, f"{method} sees one view an image", num_global=1, num_local=0)


def check_two_views(method: str, views: ViewsConfig) -> None:
    """Refuse any views but two large ones."""
    check_views(views, f"{method} compares two large views", num_global=2, num_local=0)


@dataclass(frozen=True, kw_only=True)
class PrototypeConfig:
    """Head, temperatures and momentum; the defaults are those of Gani et al.

    Attributes:
        name: The method.
        views: The views and their colours.
        num_prototypes: K, the width of the output.
        hidden_dim: Width of the projection head.
        bottleneck_dim: Width before the prototypes.
        head_batch_norm: Whether the head normalises over the batch, as DINO's does for CNNs; the
            paper does not, but a run of a few hundred steps gets off the ground sooner with it.
        student_temp: Temperature of the student's softmax.
        teacher_temp: Temperature of the momentum teacher's softmax after its warm-up.
        warmup_teacher_temp: Temperature at the start.
        warmup_teacher_temp_epochs: Passes over which it rises linearly.
        center_momentum: Decay of the centre that is subtracted from the momentum teacher's output.
        momentum: Decay of the momentum teacher at the start; it rises to 1 along a cosine.
        freeze_last_layer_epochs: Passes in which the prototypes stay fixed.

    Raises:
        ConfigError: If the temperature would fall.
    """

    name: str = ""
    views: ViewsConfig = field(default_factory=ViewsConfig)
    num_prototypes: Annotated[int, Range(ge=2)] = 1024
    hidden_dim: Annotated[int, Range(ge=1)] = 512
    bottleneck_dim: Annotated[int, Range(ge=1)] = 256
    head_batch_norm: bool = False
    student_temp: Annotated[float, Range(gt=0)] = 0.1
    teacher_temp: Annotated[float, Range(gt=0)] = 0.07
    warmup_teacher_temp: Annotated[float, Range(gt=0)] = 0.04
    warmup_teacher_temp_epochs: Annotated[float, Range(ge=0)] = 10.0
    center_momentum: Annotated[float, Range(ge=0, lt=1)] = 0.9
    momentum: Annotated[float, Range(ge=0, le=1)] = 0.996
    freeze_last_layer_epochs: Annotated[float, Range(ge=0)] = 1.0

    def __post_init__(self) -> None:
        if self.warmup_teacher_temp > self.teacher_temp:
            raise ConfigError(
                f"method.warmup_teacher_temp ({self.warmup_teacher_temp}) must not exceed "
                f"method.teacher_temp ({self.teacher_temp})"
            )

    def target_temp(self, epoch: float) -> float:
        """Return the temperature of targets after ``epoch`` passes: linear, then constant."""
        warmup = self.warmup_teacher_temp_epochs
        done = epoch / warmup if epoch < warmup else 1.0
        return self.warmup_teacher_temp + done * (self.teacher_temp - self.warmup_teacher_temp)


@dataclass(frozen=True, kw_only=True)
class DinoConfig(PrototypeConfig):
    """View prediction; the defaults are those of Gani et al.

    Attributes:
        name: The method.
        ema_teacher_mode: Mode of the momentum teacher's network: ``train`` leaves its stochastic
            depth on, as in the paper's code, so that targets are noisy.

    Source:
        Gani et al., 2022, https://arxiv.org/abs/2210.07240; Caron et al., 2021, Emerging
        Properties in Self-Supervised Vision Transformers, https://arxiv.org/abs/2104.14294.
        hananshafi/vits-for-small-scale-datasets@43a7493, train_ssl.py and projection_head.py. There
        the momentum teacher stayed in training mode, CaiT read the positions of the first patches
        in place of interpolated ones, a run shorter than its warm-up failed, and all processes
        had the same seed; the temperature rose by the epoch, where it rises by the step here.
    """

    name: Literal["dino"] = "dino"
    ema_teacher_mode: Literal["eval", "train"] = "eval"


@dataclass(frozen=True, kw_only=True)
class IbotConfig(PrototypeConfig):
    """Masked view prediction; the defaults are those of dino here, and iBOT's where it adds to it.

    Attributes:
        name: The method.
        mask_ratio: Part of the tokens that are hidden, in one of the two large views.
        patch_weight: Weight of the term of the patch tokens.
        koleo_weight: Weight of the term that spreads the student's features over the sphere;
            DINOv2 has 0.1.

    Source:
        Zhou et al., 2022, iBOT: Image BERT Pre-Training with Online Tokenizer,
        https://arxiv.org/abs/2111.07832; bytedance/ibot@564f363, main_ibot.py. Oquab et al., 2023,
        DINOv2, https://arxiv.org/abs/2304.07193; facebookresearch/dinov2@01c3638,
        dinov2/configs/ssl_default_config.yaml.
    """

    name: Literal["ibot"] = "ibot"
    mask_ratio: Annotated[float, Range(gt=0, lt=1)] = 0.3
    patch_weight: Annotated[float, Range(ge=0)] = 1.0
    koleo_weight: Annotated[float, Range(ge=0)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        why = "ibot hides tokens of one large view, and the other stays whole"
        check_views(self.views, why, num_global=2)


@dataclass(frozen=True, kw_only=True)
class MaeConfig:
    """Masked autoencoding; the decoder is MAE-Lite's for ViT-Tiny.

    The paper's decoder, 8 blocks of width 512, goes with a network of width 1024: it would be
    larger than a small network, and do its work.

    Attributes:
        name: The method.
        views: The view; one, in the image's own colours.
        mask_ratio: Part of the patches that the network does not see.
        decoder_dim: Width of the decoder, a multiple of 4.
        decoder_depth: Blocks of the decoder.
        decoder_num_heads: Attention heads of the decoder.
        norm_pix: Whether each hidden patch is predicted less its mean, over its standard
            deviation.

    Source:
        He et al., 2021, Masked Autoencoders Are Scalable Vision Learners,
        https://arxiv.org/abs/2111.06377; facebookresearch/mae@be47fef, models_mae.py. Decoder:
        Wang et al., 2022, A Closer Look at Self-Supervised Lightweight Vision Transformers,
        https://arxiv.org/abs/2205.14443; wangsr126/MAE-Lite@4fd33d1,
        projects/mae_lite/models_mae.py.
    """

    name: Literal["mae"] = "mae"
    views: ViewsConfig = field(default_factory=lambda: one_plain_view((0.2, 1.0)))
    mask_ratio: Annotated[float, Range(gt=0, lt=1)] = 0.75
    decoder_dim: Annotated[int, Range(ge=4)] = 96
    decoder_depth: Annotated[int, Range(ge=1)] = 1
    decoder_num_heads: Annotated[int, Range(ge=1)] = 3
    norm_pix: bool = True

    def __post_init__(self) -> None:
        check_one_view(self.name, self.views)
        if self.decoder_dim % 4:
            raise ConfigError(
                f"method.decoder_dim ({self.decoder_dim}) must be a multiple of 4: sines and "
                "cosines of rows and columns share it"
            )
        if self.decoder_dim % self.decoder_num_heads:
            raise ConfigError(
                f"method.decoder_num_heads ({self.decoder_num_heads}) must divide "
                f"method.decoder_dim ({self.decoder_dim})"
            )


@dataclass(frozen=True, kw_only=True)
class SimMimConfig:
    """Masked pixels in place; the defaults are the paper's.

    A masked cell is a final token: 4 px of 32, or 8 px for a Swin, where the paper's is 32 px of
    192 or 224.

    Attributes:
        name: The method.
        views: The view; one, in the image's own colours.
        mask_ratio: Part of the cells that the network does not see.

    Source:
        Xie et al., 2022, SimMIM: A Simple Framework for Masked Image Modeling,
        https://arxiv.org/abs/2111.09886; microsoft/SimMIM@0e71746, models/simmim.py and
        data/data_simmim.py.
    """

    name: Literal["simmim"] = "simmim"
    views: ViewsConfig = field(default_factory=lambda: one_plain_view((0.67, 1.0)))
    mask_ratio: Annotated[float, Range(gt=0, lt=1)] = 0.6

    def __post_init__(self) -> None:
        check_one_view(self.name, self.views)


@dataclass(frozen=True, kw_only=True)
class MocoV3Config:
    """Momentum contrast; the defaults are the authors' for a ViT, with smaller heads.

    Attributes:
        name: The method.
        views: The two views and their colours.
        hidden_dim: Width of the hidden layers of projection and prediction head; the authors' 4096
            would be most of a small network's parameters.
        output_dim: Width of what is compared.
        temperature: Temperature of the softmax over the images of the batch.
        momentum: Decay of the momentum teacher at the start; it rises to 1 along a cosine.
        freeze_patch_embed: Whether the patch embedding stays as it starts: the authors found that
            a ViT is more stable so.

    Source:
        Chen, Xie and He, 2021, An Empirical Study of Training Self-Supervised Vision Transformers,
        https://arxiv.org/abs/2104.02057; facebookresearch/moco-v3@38aae44, CONFIG.md.
    """

    name: Literal["mocov3"] = "mocov3"
    views: ViewsConfig = field(
        default_factory=lambda: ViewsConfig(
            num_local=0, global_scale=(0.08, 1.0), blur_prob=(1.0, 0.1, 0.0)
        )
    )
    hidden_dim: Annotated[int, Range(ge=1)] = 1024
    output_dim: Annotated[int, Range(ge=1)] = 256
    temperature: Annotated[float, Range(ge=1e-3)] = 0.2
    momentum: Annotated[float, Range(ge=0, le=1)] = 0.99
    freeze_patch_embed: bool = True

    def __post_init__(self) -> None:
        check_two_views(self.name, self.views)


@dataclass(frozen=True, kw_only=True)
class SimClrConfig:
    """Contrast within a batch; views and temperature are the authors' for CIFAR-10.

    Attributes:
        name: The method.
        views: The two views and their colours; images of 32 pixels are not blurred.
        hidden_dim: Width of the projection head; the authors take that of the features, which of
            their ResNet-18 is 512.
        output_dim: Width of what is compared.
        temperature: Temperature of the softmax over the other views of the batch.

    Source:
        Chen et al., 2020, A Simple Framework for Contrastive Learning of Visual Representations,
        https://arxiv.org/abs/2002.05709, appendix B.9; google-research/simclr@0075cc0, README.md.
    """

    name: Literal["simclr"] = "simclr"
    views: ViewsConfig = field(
        default_factory=lambda: ViewsConfig(
            num_local=0,
            global_scale=(0.08, 1.0),
            # Strength 0.5 of the authors' (0.8, 0.8, 0.8, 0.2).
            color_jitter=(0.4, 0.4, 0.4, 0.1),
            blur_prob=(0.0, 0.0, 0.0),
            solarize_prob=0.0,
        )
    )
    hidden_dim: Annotated[int, Range(ge=1)] = 512
    output_dim: Annotated[int, Range(ge=1)] = 128
    temperature: Annotated[float, Range(ge=1e-3)] = 0.5

    def __post_init__(self) -> None:
        check_two_views(self.name, self.views)


@dataclass(frozen=True, kw_only=True)
class LeJepaConfig:
    """Views predicted in latent space; the defaults are the authors', narrower for small images.

    Their local views show a twentieth to three tenths of an image; of 32 px a twentieth is 7 px a
    side, so here they begin at a tenth.

    Attributes:
        name: The method.
        views: The views and their colours; two at least.
        sigreg_weight: Lambda, the weight of the distribution's term; the invariance has the rest.
        num_directions: Random directions along which each step looks at the distribution. Memory
            grows with views x images x directions x 17.
        hidden_dim: Width of the projection head.
        output_dim: Width of its output.

    Source:
        Balestriero and LeCun, 2025, LeJEPA: Provable and Scalable Self-Supervised Learning Without
        the Heuristics, https://arxiv.org/abs/2511.08544; rbalestr-lab/lejepa@a0d6745, README.md
        (views), and rbalestr-lab/lejepa@2f2d970, MINIMAL.md (256 directions for small images; the
        paper has 1024).
    """

    name: Literal["lejepa"] = "lejepa"
    views: ViewsConfig = field(
        default_factory=lambda: ViewsConfig(
            num_local=6,
            global_scale=(0.3, 1.0),
            local_scale=(0.1, 0.3),
            blur_prob=(0.5, 0.5, 0.5),
        )
    )
    sigreg_weight: Annotated[float, Range(ge=0, le=1)] = 0.05
    num_directions: Annotated[int, Range(ge=1)] = 256
    hidden_dim: Annotated[int, Range(ge=1)] = 512
    output_dim: Annotated[int, Range(ge=1)] = 64

    def __post_init__(self) -> None:
        if self.views.num_global + self.views.num_local < 2:
            raise ConfigError(
                "lejepa compares views, and method.views makes one: set method.views.num_global 2"
            )


MethodConfig = (
    DinoConfig | IbotConfig | MaeConfig | SimMimConfig | MocoV3Config | SimClrConfig | LeJepaConfig
)
METHODS: dict[str, type] = {config().name: config for config in get_args(MethodConfig)}


def get_method(name: str) -> type:
    """Look up a method's config by name.

    Raises:
        UnknownNameError: If there is none; the message lists those there are.
    """
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return METHODS[name]
