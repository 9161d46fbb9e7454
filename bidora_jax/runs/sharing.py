"""What runs in one process have in common: a base that is read once, and steps that are compiled once.

Runs over one model differ in their records, and their adapters have the same shapes. A `Shared` is handed from run to run: the
first one reads the base and compiles, the others find both. Steps are found again where everything they are made of is equal, the
padded lengths too (data.padded_lengths). Learning rates and numbers of steps are arrays that a step takes (training/optim.py).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from bidora_jax.models.architectures.architecture import Architecture
    from bidora_jax.models.settings import ModelConfig


class Shared:
    """Empty at first. It holds one base at a time: another model, or another form of it, takes the place of the one before."""

    def __init__(self) -> None:
        from bidora_jax.training.compiled_steps import Programs

        self.programs: Programs = Programs()
        self.loads = 0
        """How often a base was read."""
        self._held: tuple[Any, PyTree] | None = None

    def base(self, settings: "ModelConfig", folder: Path, model: "Architecture", flag: str = "model.dtype") -> "PyTree":
        """The base in the folder, in the form that the settings say."""
        from bidora_jax.models import quantization
        from bidora_jax.models.formats import hf

        form = settings.dtype, quantization.resolve(settings, model)
        key = form, folder, model, _state(folder)
        if self._held is None or self._held[0] != key:
            self._held = None  # before the next one is read: both may not fit
            self._held = key, hf.load(settings, folder, model, flag=flag)
            self.loads += 1
        return self._held[1]


def _state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of the folder's weights: a base is read anew where they have changed."""
    files = sorted(folder.glob("*.safetensors"))
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
