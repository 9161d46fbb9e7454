"""python -m bidora_jax COMMAND …, see cli.py."""

from bidora_jax.cli import entry

if __name__ == "__main__":
    entry()
