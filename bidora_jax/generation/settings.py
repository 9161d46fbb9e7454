"""How a command draws tokens, and how many."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bidora_jax.kernels.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Greedy by default."""

    max_new_tokens: int = 256
    """Tokens that an answer may have."""
    temperature: float = 0.0
    """0: always the most probable token; 1: draw from the model's distribution; between: less at random."""
    top_k: int = 0
    """Draw among the k most probable tokens; 0: all."""
    top_p: float = 1.0
    """Draw among the fewest tokens whose probabilities reach p; 1: all."""
    min_p: float = 0.0
    """Draw among tokens of at least this share of the largest probability; 0: all."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that were there before less probable."""
    seed: int = 0
    """Seed of the draws; the same seed writes the same text."""

    @property
    def sampling(self) -> "Sampling":
        """How a token is drawn."""
        from bidora_jax.kernels.sampling import Sampling

        return Sampling(*(asdict(self)[name] for name in Sampling._fields))

    def wrong(self) -> list[str]:
        """What is out of bounds or without effect, in lines."""
        a, infinity = self, float("inf")
        narrowed = (a.top_k, a.top_p, a.min_p) != (0, 1, 0)
        checks = {
            f"--max-new-tokens must be at least 1, found {a.max_new_tokens}": a.max_new_tokens < 1,
            f"--temperature must be at least 0, found {a.temperature}": not 0 <= a.temperature < infinity,
            f"--top-k must be at least 0, found {a.top_k}": a.top_k < 0,
            f"--top-p must be above 0 and at most 1, found {a.top_p}": not 0 < a.top_p <= 1,
            f"--min-p must be at least 0 and at most 1, found {a.min_p}": not 0 <= a.min_p <= 1,
            f"--repetition-penalty must be above 0, found {a.repetition_penalty}": not 0
            < a.repetition_penalty
            < infinity,
            "--top-k, --top-p and --min-p act on draws: give a --temperature above 0 with them": a.temperature == 0
            and narrowed,
        }
        return [message for message, found in checks.items() if found]
