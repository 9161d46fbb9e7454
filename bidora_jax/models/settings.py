"""What `model.*` and `mesh.*` mean in a configuration."""

from dataclasses import dataclass
from typing import Literal

from bidora_jax.models.architectures.decoder import LINEARS

QUANTIZATIONS = ("none", "int8", "nf4")
"""Forms of the frozen weights, from most bits to fewest."""


@dataclass(frozen=True)
class ModelConfig:
    """The frozen base model."""

    path: str = ""
    """Folder with config.json, safetensors and tokenizer, or the name of a model on the Hugging Face hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """dtype of the frozen weights and of the products; auto keeps the dtype of the files."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """int8: 8 bits a weight, nf4: 4 bits, both as bitsandbytes; a folder that bitsandbytes quantised is read as it is."""
    double_quant: bool = True
    """nf4: keep the block scales in 8 bits too (4.13 bits a weight instead of 4.5)."""
    quantized_modules: tuple[str, ...] = LINEARS
    """Modules to quantise by name; 'all-linear' stands for the seven of a layer, lm_head and embed_tokens can be added."""
    remat: Literal["auto", "none", "dots", "layer", "offload"] = "auto"
    """none: keep all activations for the backward pass; dots: keep the sums of the linear layers and what attention in chunks
    gives, recompute what is cheap, and of one micro-batch hand them on to the mixed product of bidora, which has half the products
    with frozen weights then; layer: keep one activation a layer, recompute the rest; offload: dots, kept in the host's memory (a
    GPU only); auto: the fastest of dots, layer and, on a GPU, offload that the compiler counts to fit."""
    attention: Literal["auto", "chunked", "cudnn"] = "auto"
    """Attention of the first-order gradients. cudnn: cuDNN's fused kernels, on an NVIDIA GPU, in 16-bit floats, without
    data.packing; chunked: XLA's, anywhere; auto: cudnn where it works. The mixed product of bidora is always chunked. The two
    give the same gradients to rounding."""
    attention_chunk: int = 1024
    """Sequences of up to so many tokens are attended whole, a layer's scores at a time; longer ones at most half as many queries
    at a time, so that they never hold a [T, T] score matrix."""
    loss_chunk: int = 256
    """The loss holds no more logits at a time than so many tokens have over the whole vocabulary."""


@dataclass(frozen=True)
class MeshConfig:
    """Devices that a model is trained on: replica × shard × tensor of them. Of one device nothing is spread."""

    replica: int = 1
    """Copies of the frozen base. Each takes its share of a step's records."""
    shard: int = 1
    """Devices that hold one copy together, and share its records: the weights of linear layers are cut over them, and gathered a
    layer at a time where they are used, in the bits that they are held in."""
    tensor: int = 1
    """Devices that share the products of each layer, and take the same records: for steps of fewer records than devices. The base
    is cut over them too. Of decoders that are trained as language models."""

    @property
    def devices(self) -> int:
        return self.replica * self.shard * self.tensor

    @property
    def row_parts(self) -> int:
        """Into how many parts the records of a step are cut."""
        return self.replica * self.shard
